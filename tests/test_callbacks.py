"""The callbacks: what they log, keep, print and refuse."""

import csv
import math
import warnings

import numpy as np
import pytest

from keras_lsb import scaling
from keras_lsb.callbacks import AdaptiveBatch, Curvature, NoiseScale, NoiseScaleRecord
from keras_lsb.callbacks.noise_scale import verdict
from keras_lsb.scaling import NoiseScaleEstimate
from keras_lsb.training import CurvatureProbe, Microbatched
from tests.microbatches import X, Y, accuracy, averages, compiled, fit, microbatched, small_model, weights
from tests.support import TENSORFLOW, assert_all_close, keras, tensorflow_only

KEYS = ("noise_scale", "grad_sq_norm", "grad_trace", "noise_scale_low", "noise_scale_high")
SLOW = 0.05  # a rate at which the noise scale of these 50 examples is resolved
accumulates = tensorflow_only("Microbatched.accumulate")


def slow(microbatches=5, rate=SLOW, **arguments):
    return microbatched(microbatches, optimizer=keras.optimizers.SGD(rate), arguments=arguments)


def estimate(simple=100.0, low=80.0, high=130.0, measurements=50, skipped=0):
    return NoiseScaleEstimate(simple, low, high, 1.0, simple, measurements, skipped)


@pytest.fixture(scope="module")
def noise_run(tmp_path_factory):
    """(model, callback, history, rows of the CSV file) of one fit."""
    keras.utils.set_random_seed(7)
    path = tmp_path_factory.mktemp("logs") / "log.csv"
    model = slow()
    callback = NoiseScale(groups={"hidden": "hidden"}, history_interval=2, confidence=0.5, verbose=0)
    history = fit(model, batch_size=25, epochs=4, callbacks=[callback, keras.callbacks.CSVLogger(str(path))])
    with open(path, newline="", encoding="utf-8") as file:
        return model, callback, history, list(csv.DictReader(file))


def test_logs_are_those_of_the_model_and_reach_history_and_file(noise_run):
    model, _, history, rows = noise_run
    last = model.noise_scale_estimate(confidence=0.5)
    values = (last.simple, last.grad_sq_norm, last.trace, last.low, last.high)
    assert 0 < last.low < last.simple < last.high < math.inf
    for key, value in zip(KEYS, values, strict=True):
        assert history[key][-1] == pytest.approx(value, rel=1e-6)
        assert [float(row[key]) for row in rows] == pytest.approx(history[key], rel=1e-6)
    assert history["noise_scale/hidden"][-1] == pytest.approx(model.noise_scale_estimate("hidden").simple)
    assert history["noise_scale/hidden"][-1] != pytest.approx(last.simple, rel=1e-3)


def test_history_counts_batches_over_epochs(noise_run):
    model, callback, history, _ = noise_run
    assert [record.step for record in callback.history] == [2, 4, 6, 8]
    assert all(isinstance(record, NoiseScaleRecord) for record in callback.history)
    assert [record.estimate.measurements for record in callback.history] == [2, 4, 6, 8]
    assert [record.estimate.simple for record in callback.history] == pytest.approx(history["noise_scale"], rel=1e-6)
    assert callback.history[-1].estimate == model.noise_scale_estimate(confidence=0.5)


def test_plots(noise_run):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    _, callback, history, _ = noise_run
    axes = callback.plot()
    np.testing.assert_allclose(axes.lines[0].get_xydata().T, [[2, 4, 6, 8], history["noise_scale"]], rtol=1e-6)
    assert axes.get_yscale() == "log"
    assert callback.plot(axes) is axes
    assert len(axes.lines) == 2


def test_callback_sets_interval_and_decay_and_keeps_the_model_s():
    model = slow(interval=2, decay=0.5)
    fit(model, epochs=1, callbacks=[NoiseScale(verbose=0)])
    assert (model.interval, model.decay, averages(model)["measurements"]) == (2, 0.5, 2)
    fit(model, epochs=1, callbacks=[NoiseScale(4, decay=1, verbose=0)])
    assert (model.interval, model.decay, averages(model)["measurements"]) == (4, 1, 3)


def test_training_is_the_same_with_the_callback():
    plain, watched = slow(), slow()
    fit(plain, epochs=1)
    fit(watched, epochs=1, callbacks=[NoiseScale(groups={"hidden": "hidden"}, verbose=0)])
    assert_all_close(weights(watched), weights(plain), 5e-6)


@pytest.mark.parametrize("verbose", [0, 1])
def test_verdict_is_printed_only_when_asked_and_names_the_full_batch(capsys, verbose):
    model, callback = slow(4), NoiseScale(verbose=verbose, confidence=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(model, epochs=2, callbacks=[callback])
    assert capsys.readouterr().out == (f"{callback.verdict}\n" if verbose else "")
    assert callback.verdict.startswith(f"Noise scale at the end: {model.noise_scale_estimate(confidence=0.1)}")
    assert "batch size 16" in callback.verdict  # not 2, which is the last batch of the epoch


def test_verdict_without_measurements():
    model, callback = slow(4), NoiseScale(verbose=0)
    fit(model, X[:1], Y[:1], epochs=3, callbacks=[callback])
    expected = "Noise scale: not measured, 3 measurements were skipped because they were not finite."
    assert callback.verdict == expected
    assert verdict(estimate(math.nan, math.nan, math.nan, 0, 3), 16.0) == expected


def test_verdict_of_a_batch_far_below_the_noise_scale_is_that_it_is_not_resolved():
    """Labels drawn at random: no signal, so that nothing bounds the noise scale from above."""
    random = np.random.default_rng(0)
    callback = NoiseScale(verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(slow(2, 1e-4), X, random.integers(0, 3, 50), 2, epochs=1, callbacks=[callback])
    assert "It is not resolved at batch size 2: the data only say that it is above" in callback.verdict
    assert "larger batch or smaller microbatches" in callback.verdict


# Steps 1 + N / B and examples 1 + B / N times the fewest, at N = 100.
@pytest.mark.parametrize(
    ("batch_size", "law", "advice"),
    [
        (25.0, "5 times the fewest steps and 1.25 times", "A batch of 1e+02 would take 2.5 times fewer steps."),
        (400.0, "1.25 times the fewest steps and 5 times", "A batch of 1e+02 would save 60 % of the examples."),
        (100.0, "2 times the fewest steps and 2 times", "near the noise scale: steps and examples trade evenly."),
    ],
)
def test_verdict_on_the_batch_size(batch_size, law, advice):
    text = verdict(estimate(), batch_size, [math.nan, 40.0, 100.0, math.inf])
    assert text.startswith("Noise scale at the end: 100 examples [80, 130], 50 measurements. Over the run: 40 to 100 ")
    assert f"At batch size {batch_size:g} the model of McCandlish et al. predicts {law} the fewest examples." in text
    assert text.endswith(advice)


def test_verdict_of_odd_estimates():
    assert "50 measurements, 2 skipped." in verdict(estimate(skipped=2), 100.0)
    assert "do not differ: a smaller batch would do" in verdict(estimate(0.0, 0.0, 0.0), 16.0)
    assert "is above 80 examples" in verdict(estimate(math.inf, 80.0, math.inf), 16.0)


def test_warns_once_when_the_noise_scale_is_infinite():
    x, y = np.repeat(X[:2], 8, 0), np.tile([0, 1, 2, 0, 1, 2, 1, 0], 2)
    model = slow(8, 0.5)
    fit(model, x, y, epochs=60)  # to the minimum, where the gradient of the batch is zero
    model.measure(decay=0)
    with pytest.warns(UserWarning, match=r"not resolved after \d+ measurements: the average of \|G\|\^2 is -") as seen:
        fit(model, x, y, epochs=3, callbacks=[NoiseScale(verbose=0)])
    assert len([one for one in seen if "not resolved" in str(one.message)]) == 1


MEASURING = [
    lambda: NoiseScale(verbose=0),
    lambda: AdaptiveBatch(10, batch_size=16, max_batch_size=32, verbose=0),
]


@pytest.mark.parametrize("make", MEASURING)
def test_what_cannot_be_measured_is_refused_when_training_begins(make):
    name = type(make()).__name__
    for model, message in (
        (compiled(small_model()), r"needs a model wrapped in .*Received: model of type Sequential"),
        (slow(4, noise_scale=False), r"noise_scale=True.*Received: noise_scale=False"),
        (slow(1), r"at least two small gradients.*Received: microbatches=1 on 1 replica"),
    ):
        start = weights(model)
        with pytest.raises(ValueError, match=f"`callbacks.{name}` needs ") as error:
            fit(model, epochs=1, callbacks=[make()])
        assert error.match(message)
        assert_all_close(weights(model), start, 0)


@pytest.mark.parametrize(("name", "value"), [("confidence", 1), ("confidence", 90), ("history_interval", 0)])
def test_bad_arguments_of_noise_scale(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: {name}={value}"):
        NoiseScale(**{name: value})


def test_bad_arguments_of_adaptive_batch():
    good = {"exchange_rate": 10, "batch_size": 8, "max_batch_size": 64}
    for name, value in (
        ("exchange_rate", 0),
        ("batch_size", 0),
        ("max_batch_size", 7),
        ("interval", 0),
        ("follow", "cube"),
    ):
        with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: {name}={value!r}"):
            AdaptiveBatch(**(good | {name: value}))


@accumulates
@pytest.mark.parametrize("follow", ["noise", "linear", "sqrt", "none"])
def test_batch_grows_and_the_rate_follows(follow, capsys):
    model = slow(2, 0.02)
    adaptive = AdaptiveBatch(200, batch_size=10, max_batch_size=44, interval=2, follow=follow)
    history = fit(model, batch_size=10, epochs=7, callbacks=[adaptive])
    sizes = adaptive.batch_sizes
    assert sizes[:2] == [10, 10]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 40  # the largest multiple of 10 up to 44
    assert history["batch_size"][-1] == 40
    assert len(sizes) == len(adaptive.noise_scales) == int(np.asarray(model.optimizer.iterations))
    assert np.isnan(adaptive.noise_scales[:2]).all()
    assert np.isfinite(adaptive.noise_scales[-1])
    factor = scaling.learning_rate_factor(40, 10, adaptive._noise_scale, follow)
    assert float(np.asarray(model.optimizer.learning_rate)) == pytest.approx(0.02 * factor, rel=1e-5)
    assert (factor > 1) == (follow != "none")
    known = [pair for pair in zip(adaptive.noise_scales, sizes, strict=True) if math.isfinite(pair[0])]
    assert adaptive.gain == scaling.adaptive_gain(*zip(*known, strict=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Update ")
    assert lines[0].endswith(", batch size 40")
    assert lines[-1].startswith(f"Adaptive batch: 10 to 40 examples, {len(known)} updates, ")
    assert f"gamma {adaptive.gain.gamma:.3f} predicts " in lines[-1]


@accumulates
def test_batch_never_shrinks(monkeypatch):
    model, readings = slow(2), iter([estimate(8.0), estimate(200.0), *[estimate(8.0)] * 99])
    monkeypatch.setattr(model, "noise_scale_estimate", lambda *args, **kwargs: next(readings))
    adaptive = AdaptiveBatch(8, batch_size=8, max_batch_size=400, interval=1, follow="noise", verbose=0)
    fit(model, X[:48], Y[:48], batch_size=8, epochs=4, callbacks=[adaptive])
    assert adaptive.batch_sizes == [8, 40, 40, 40, 40]  # sqrt(8 * 200) after the first of them, then sqrt(8 * 8)
    assert model.pending_batches == 3
    assert adaptive.noise_scales[-1] == 8.0
    rate = float(np.asarray(model.optimizer.learning_rate))
    assert rate == pytest.approx(SLOW * (1 + 8 / 8) / (1 + 8 / 40), rel=1e-5)


@accumulates
def test_schedule_is_refused_unless_nothing_follows():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model = microbatched(2, optimizer=keras.optimizers.SGD(schedule))
    with pytest.raises(ValueError, match=r"`follow` must be 'none'.*Received: follow='sqrt'"):
        fit(model, callbacks=[AdaptiveBatch(10, batch_size=8, max_batch_size=16, follow="sqrt")])
    fit(model, callbacks=[AdaptiveBatch(10, batch_size=16, max_batch_size=32, follow="none", verbose=0)], epochs=1)


@accumulates
def test_several_steps_per_execution_are_refused_when_training_begins():
    model = microbatched(2, steps_per_execution=2)
    with pytest.raises(ValueError, match=r"`steps_per_execution` must be 1 .*Received: steps_per_execution=2"):
        fit(model, callbacks=[AdaptiveBatch(10, batch_size=16, max_batch_size=32)])


@accumulates
def test_learning_rate_does_not_compound_over_fits():
    model = slow(2, 0.02)
    adaptive = AdaptiveBatch(200, batch_size=10, max_batch_size=44, interval=2, verbose=0)
    for _ in range(2):
        fit(model, batch_size=10, epochs=6, callbacks=[adaptive])
        assert model.accumulation == 4
        assert float(model.optimizer.learning_rate) == pytest.approx(0.04)  # the root of 40 / 10


@accumulates
def test_a_restored_run_continues_with_its_batch(tmp_path):
    model = slow(2, 0.02)
    sizes = {"batch_size": 10, "max_batch_size": 44, "interval": 2, "verbose": 0}
    fit(model, batch_size=10, epochs=6, callbacks=[AdaptiveBatch(200, **sizes)])
    assert model.accumulation == 4
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    adaptive = AdaptiveBatch(200, learning_rate=0.02, **sizes)
    fit(restored, batch_size=10, epochs=1, callbacks=[adaptive])
    assert adaptive.batch_sizes == [40]
    assert np.isfinite(adaptive.noise_scales[0])


@pytest.mark.skipif(TENSORFLOW, reason="the refusal is for backends other than TensorFlow")
def test_adaptive_batch_is_refused_on_jax():
    with pytest.raises(ValueError, match=r"accumulated on TensorFlow only\. Received: backend 'jax'"):
        fit(slow(), callbacks=[AdaptiveBatch(10, batch_size=16, max_batch_size=32)])


@pytest.mark.parametrize("wrapped", [False, True])
def test_curvature_is_measured_at_its_interval_without_touching_the_training(wrapped):
    def make():
        return compiled(Microbatched(small_model(), 4) if wrapped else small_model(), metrics=[accuracy()])

    plain, watched = make(), make()
    callback = Curvature(X[:32], Y[:32], interval=3, microbatches=8)
    expected, history = fit(plain, epochs=2), fit(watched, epochs=2, callbacks=[callback])
    assert_all_close(weights(watched), weights(plain), 5e-6)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)
    assert [step for step, _ in callback.history] == [1, 3, 6]
    last = callback.history[-1][1]
    assert history["curvature"] == pytest.approx([callback.history[1][1].lipschitz, last.lipschitz])
    assert history["noise_scale_hessian"][-1] == pytest.approx(last.noise)
    assert history["noise_scale_simple"][-1] == pytest.approx(last.simple)


def test_curvature_of_the_whole_batch_alone():
    model, callback = compiled(small_model()), Curvature(X[:32], Y[:32], interval=4)
    history = fit(model, epochs=1, callbacks=[callback])
    assert callback.history[-1][0] == 4
    assert callback.history[-1][1].lipschitz == pytest.approx(CurvatureProbe(model, X[:32], Y[:32])().lipschitz)
    assert set(history) == {"loss", "curvature"}


def test_plot_of_the_curvature():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    callback = Curvature(X, Y)
    callback.history = [(1, scaling.curvature([2.0], [1.0], (1, 1))), (100, scaling.curvature([3.0], [1.0], (1, 1)))]
    axes = callback.plot()
    assert axes.lines[0].get_xydata().tolist() == [[1, 2], [100, 3]]
    assert callback.plot(axes) is axes


@pytest.mark.parametrize("name", ["interval", "microbatches"])
def test_bad_arguments_of_curvature(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be a whole number >= 1\. Received: {name}=0"):
        Curvature(X, Y, **{name: 0})
