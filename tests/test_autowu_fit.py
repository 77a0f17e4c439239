"""`callbacks.AutoWU` in `fit`: the losses of the steps, the decisions on them, and what comes of the decisions."""

import csv
import math

import numpy as np
import pytest

from keras_lsb import schedules
from keras_lsb.callbacks import AutoWU
from keras_lsb.training import Microbatched
from tests.autowu_problem import (
    BATCH,
    EPOCHS,
    KERNEL,
    LONG_ENOUGH,
    STEPS,
    SWITCH,
    TOTAL,
    At,
    Watch,
    X,
    Y,
    batches,
    by_hand,
    compiled,
    fit,
    linear_model,
    loss,
    loss_and_gradients,
    made,
    poison,
    weights,
)
from tests.support import (
    LEGACY,
    TENSORFLOW,
    assert_all_close,
    assert_close,
    keras,
    tensorflow_only,
    to_numpy,
)

CLOSE = 5e-5  # float32 against float64 after a hundred steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(model, callback, history, rows of the CSV file, weights after each batch) of one fit."""
    keras.utils.set_random_seed(7)
    path, watch = tmp_path_factory.mktemp("logs") / "log.csv", Watch()
    model, callback = made()
    history = fit(model, callback, watch, keras.callbacks.CSVLogger(str(path)))
    with open(path, newline="", encoding="utf-8") as file:
        return model, callback, history, list(csv.DictReader(file)), watch


def assert_same_run(callback, hand, tolerance=CLOSE):
    """The losses, the switch and the rates of a callback are those by hand."""
    assert callback.losses.dtype == "float32"
    np.testing.assert_allclose(callback.losses, hand.losses, rtol=tolerance, atol=tolerance)
    controller, expected = callback.schedule.controller, hand.controller
    assert (controller.switch_step, controller.reason) == (expected.switch_step, expected.reason)
    assert controller.peak == (expected.peak and pytest.approx(expected.peak, rel=1e-6))
    assert [test.vote for test in controller.tests] == [test.vote for test in expected.tests]
    found = to_numpy(callback.schedule(np.arange(len(hand.rates), dtype="int32")))
    np.testing.assert_allclose(found, hand.rates, rtol=2e-6, atol=1e-6)


def test_losses_decisions_and_weights_are_those_by_hand(run):
    model, callback, _, _, watch = run
    hand = by_hand()
    assert_same_run(callback, hand)
    assert (hand.controller.switch_step, hand.controller.reason, hand.switch) == (SWITCH, "gaussian process", SWITCH)
    assert_close(watch.losses, hand.losses, 1e-4)
    for step in (SWITCH - 1, SWITCH, TOTAL - 1):  # weights are not rolled back
        assert_all_close(watch.weights[step], hand.weights[step], CLOSE)
    assert_all_close(weights(model), watch.weights[-1], 0)
    assert np.abs(hand.weights[SWITCH][0] - hand.weights[45][0]).max() > 0.1


def test_logs(run):
    _, callback, history, rows, _ = run
    hand = by_hand()
    probability = [test.probability for test in hand.controller.tests] + [math.nan] * (EPOCHS - SWITCH // STEPS)
    rates = [*hand.rates[STEPS::STEPS], 0.0]
    phase = [0.0] * (SWITCH // STEPS - 1) + [1.0] * (EPOCHS - SWITCH // STEPS + 1)
    logged = {"autowu_probability": probability, "autowu_phase": phase, "learning_rate": rates}
    for name, values in logged.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, atol=1e-8, err_msg=name)
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-4, atol=1e-8, err_msg=name)
    assert np.mean(callback.losses[-STEPS:]) == pytest.approx(history["loss"][-1], rel=1e-5)


def test_nothing_is_fetched_after_each_batch():
    """Keras fetches the logs from the device after each batch for a callback that has a method for batches."""
    hooks = [name for name in dir(AutoWU) if "batch" in name and not name.startswith("_")]
    assert len(hooks) >= 8
    assert all(getattr(AutoWU, name) is getattr(keras.callbacks.Callback, name) for name in hooks)


def test_evaluation_is_not_recorded(run):
    model, callback = made()
    evaluate = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: model.evaluate(10 * X, Y, verbose=0))
    fit(model, callback, evaluate, validation_data=(5 * X, Y), epochs=4)
    assert_close(callback.losses, run[1].losses[: 4 * STEPS], 0)


def test_training_without_the_callback_is_the_same_up_to_the_switch(run):
    model, _ = made()
    fit(model, epochs=SWITCH // STEPS)
    assert_all_close(weights(model), run[4].weights[SWITCH - 1], 1e-6)


@pytest.mark.parametrize(("interval", "execution"), [(16, 1), (16, 4), (16, 5), (16, 16), (6, 4), (6, 16)])
def test_steps_per_execution(interval, execution):
    """16 steps in an epoch. Where a decision comes within an execution, the decay begins with the next one."""
    size, total, slower = len(X) // 16, 320, {"min_learning_rate": 1e-3}
    model, callback = made(options={**slower, "steps_per_check": interval}, total=total, steps_per_execution=execution)
    fit(model, callback, batch_size=size, epochs=13)
    late = execution if interval == 6 else 1
    hand = by_hand(13, slower, total, interval, batches(batch_size=size), execution=late)
    assert hand.controller.switch_step == {16: 176, 6: 150}[interval]
    assert hand.switch == {1: hand.controller.switch_step, 4: 152, 16: 160}[late]
    assert_same_run(callback, hand, 2e-4)


@pytest.mark.parametrize("arguments", [{"jit_compile": True}, {"run_eagerly": True, "jit_compile": False}], ids=str)
@tensorflow_only("another compilation")
def test_compilation(arguments):
    model, callback = made(**arguments)
    fit(model, callback, epochs=LONG_ENOUGH)
    assert_same_run(callback, by_hand(LONG_ENOUGH))


def test_regularization_is_in_the_loss():
    model, callback = made(linear_model(decay=0.02))
    fit(model, callback, epochs=8)
    hand = by_hand(8, decay=0.02)
    assert_same_run(callback, hand)
    assert hand.losses[0] - by_hand(1).losses[0] > 0.05


def test_last_batch_that_is_smaller_counts_as_a_step():
    x, y = X[:300], Y[:300]
    model, callback = made()
    fit(model, callback, x=x, y=y, epochs=8)
    assert_same_run(callback, by_hand(8, data=batches(x, y)))


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=tensorflow_only("Microbatched.accumulate"))])
def test_microbatches_and_accumulation_record_the_loss_of_the_whole_update(accumulation):
    model, callback = made(Microbatched(linear_model(), 4))
    model.accumulate(accumulation)
    fit(model, callback, batch_size=BATCH // accumulation, epochs=LONG_ENOUGH)
    assert_same_run(callback, by_hand(LONG_ENOUGH))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    """The loss of an update is the mean over its batch and over those before it whose step was skipped."""
    keras.mixed_precision.set_global_policy(policy)
    try:
        model, callback = made(linear_model())
        if policy == "mixed_float16":
            inner = keras.optimizers.SGD(callback.schedule, momentum=0.9)
            scaled = keras.mixed_precision.LossScaleOptimizer(inner, initial_scale=2.0**19)
            model.compile(scaled, loss(), jit_compile=not TENSORFLOW)
        watch = Watch()
        fit(model, callback, watch, epochs=LONG_ENOUGH)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    skipped = np.diff(watch.updates, prepend=0) == 0
    ends = np.flatnonzero(~skipped) + 1
    expected = [np.mean(watch.losses[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    assert_close(callback.losses, expected, 1e-5)
    assert callback.schedule.controller.switch_step == SWITCH
    assert skipped.any() == (policy == "mixed_float16" and not LEGACY)
    if LEGACY and policy == "mixed_float16":  # it counts a step that it skips
        assert_all_close(watch.weights[0], [KERNEL, np.zeros(3)], 0)


def test_two_fits_in_a_row_continue(run):
    model, callback = made()
    fit(model, callback, epochs=9)
    fit(model, callback, initial_epoch=9, epochs=LONG_ENOUGH)
    assert_close(callback.losses, run[1].losses[: LONG_ENOUGH * STEPS], 1e-6)
    assert_all_close(weights(model), run[4].weights[LONG_ENOUGH * STEPS - 1], 1e-6)


def test_losses_left_over_by_a_fit_count_in_the_next(run):
    """The first one ends three steps into a decision, the second has a new callback and is compiled anew."""
    model, callback = made(options={"steps_per_check": STEPS})
    fit(model, callback, x=X[: 3 * BATCH], y=Y[: 3 * BATCH], epochs=1)
    model.compile(model.optimizer, loss(), jit_compile=not TENSORFLOW)
    again = AutoWU(verbose=0)
    fit(model, again, epochs=LONG_ENOUGH)
    hand = by_hand(1, data=[*batches()[:3], *batches() * LONG_ENOUGH])
    assert again.schedule is callback.schedule
    again.losses = np.concatenate([callback.losses, again.losses])
    assert_same_run(again, hand)


def test_decisions_across_epochs():
    model, callback = made(options={"steps_per_check": 7})
    fit(model, callback, epochs=LONG_ENOUGH)
    assert_same_run(callback, by_hand(LONG_ENOUGH, interval=7))
    assert callback.schedule.controller.switch_step % STEPS


def test_schedule_must_be_the_optimizer_s():
    model, callback = made()
    other = schedules.AutoWU(TOTAL)
    with pytest.raises(ValueError, match=r"`schedule` must be a `schedules.AutoWU`\. Received: schedule=0.1"):
        AutoWU(0.1)
    for wrong in (AutoWU(other), made()[1]):
        with pytest.raises(ValueError, match=r"needs the schedule that is the learning rate of the optimizer"):
            fit(model, wrong)
    plain = compiled(0.1)
    for wrong in (AutoWU(), callback):
        with pytest.raises(ValueError, match=r"needs the schedule that is the learning rate of the optimizer"):
            fit(plain, wrong)
    with pytest.raises(ValueError, match=r"`on_divergence` must be one of .*Received: on_divergence='raise'"):
        AutoWU(on_divergence="raise")


def test_updates_without_the_callback_are_noticed():
    model, callback = made()
    fit(model, epochs=2)
    with pytest.raises(ValueError, match=r"has done 10 updates, while AutoWU has seen 0"):
        fit(model, callback)


@pytest.mark.parametrize("on_divergence", ["continue", "stop", "restore"])
def test_losses_that_are_no_longer_finite(on_divergence, capsys):
    """From epoch 9 on. Three epochs later the guard ends the warm-up."""
    model, callback = made(callback={"on_divergence": on_divergence, "verbose": 1})
    watch = Watch()
    with pytest.warns(UserWarning, match="AutoWU, epoch 9: all 5 losses up to step 45 are NaN or infinite") as seen:
        history = fit(model, At(8, poison), watch, callback)
    assert len([one for one in seen if "AutoWU" in str(one.message)]) == 1
    rate = callback.schedule.rates.during_warmup(44)
    assert any(f"at a learning rate of {rate:.3g}. " in str(one.message) for one in seen)
    hand = by_hand(8)
    assert_close(callback.losses[:40], hand.losses, CLOSE)
    assert np.isnan(callback.losses[40:55]).all()
    controller = callback.schedule.controller
    if on_divergence == "stop":
        assert (len(history["loss"]), len(callback.losses), controller.phase) == (9, 45, "warmup")
        return
    hand.controller.replay([math.nan] * 15)
    assert (controller.switch_step, controller.reason, controller.non_finite) == (55, "guard", 15)
    assert controller.peak == pytest.approx(hand.controller.peak, rel=1e-6)
    assert " Decay begins from " in capsys.readouterr().out.splitlines()[-1]
    finite = np.isfinite(callback.losses[55:])
    if on_divergence == "continue":
        assert not finite.any()
        return
    assert finite.all()
    assert np.isfinite(weights(model)[0]).all()
    # Those of the end of epoch 7: with the weights of epoch 8 no loss has been computed.
    expected, _ = loss_and_gradients(*watch.weights[34], *batches()[0])
    assert callback.losses[55] == pytest.approx(expected, rel=1e-5)


def test_restored_weights_led_to_finite_losses_where_an_execution_has_many_decisions():
    """Those of step 64, as all losses after step 80 are NaN. The decision of step 102 is made after step 112."""
    options = {"min_learning_rate": 1e-3, "steps_per_check": 6}
    model, callback = made(callback={"on_divergence": "restore"}, options=options, total=320, steps_per_execution=16)
    with pytest.warns(UserWarning, match="all 6 losses up to step 90 are NaN or infinite"):
        fit(model, At(5, poison), callback, batch_size=len(X) // 16, epochs=8)
    assert callback.schedule.controller.switch_step == 102
    assert np.isnan(callback.losses[80:112]).all()
    assert np.isfinite(callback.losses[112:]).all()
    assert callback.losses[112] == pytest.approx(callback.losses[64], rel=1e-5)  # the same batch


@pytest.mark.parametrize("on_divergence", ["continue", "stop", "restore"])
def test_setback(on_divergence):
    """The last rates of this warm-up ruin the weights; a tenth of the decay's 50 steps is over when epoch 15 ends."""
    model, callback = made(callback={"on_divergence": on_divergence})
    watch = Watch()
    with pytest.warns(UserWarning, match="AutoWU, epoch 15, step 75: a tenth into the decay the loss is ") as seen:
        fit(model, watch, callback)
    (message,) = [str(one.message) for one in seen if "AutoWU" in str(one.message)]
    means = callback.losses.reshape(-1, STEPS).mean(axis=1)
    assert f" the loss is {means[14]:.3g}. " in message
    assert f" began at {means[0]:.3g} and had reached {means[:14].min():.3g}: " in message
    assert ("go back to those of the lowest loss" in message) == (on_divergence == "restore")
    if on_divergence != "restore":
        assert f" it found, {callback.schedule.controller.peak:.3g}, " in message
        assert_same_run(callback, by_hand() if on_divergence == "continue" else by_hand(15))
        return
    lowest = int(means[:15].argmin())
    assert 5 < lowest < 13  # neither the first nor the last
    expected, _ = loss_and_gradients(*watch.weights[lowest * STEPS - 1], *batches()[0])
    assert callback.losses[75] == pytest.approx(expected, rel=1e-5)
    assert_close(callback.losses[:75], by_hand(15).losses, CLOSE)
    assert means[-1] < means[lowest]


def test_report(capsys):
    model, callback = made(callback={"verbose": 1})
    fit(model, callback, epochs=LONG_ENOUGH)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("AutoWU: warms up for at most 84 steps and decides every 5; ")
    assert len(lines) == SWITCH // STEPS
    assert lines[0].startswith("AutoWU, epoch 1, step 5: p = 0.63, 0 of 3 votes, rate would be ")
    peak = callback.schedule.controller.peak
    assert lines[-1] == (
        f"AutoWU, epoch 14, step 70: p = 1.00, 3 of 3 votes, rate would be {peak:.2g}. "
        f"Decay begins from {peak:.3g} (gaussian process)."
    )


def test_tensorboard(tmp_path, run):
    import tensorflow as tf

    model, callback = made()
    history = fit(model, callback, keras.callbacks.TensorBoard(str(tmp_path)), epochs=3)
    logged = {}
    for path in (tmp_path / "train").glob("events*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            for value in tf.compat.v1.Event.FromString(record).summary.value:
                if value.tag.startswith("epoch_"):
                    logged.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    for name in ("autowu_probability", "autowu_phase", "learning_rate"):
        assert logged[f"epoch_{name}"] == pytest.approx(history[name], rel=1e-6)
        assert history[name] == pytest.approx(run[2][name][:3], rel=1e-6)


def test_recipe_is_one_for_legw(run):
    _, callback, _, _, _ = run
    rate, epochs = callback.recipe()
    assert rate == callback.schedule.controller.peak
    rates = callback.schedule.rates
    steps = np.linspace(0, rates.reached(rate), 1001)
    assert epochs * STEPS * rate / 2 == pytest.approx(np.trapezoid(rates.during_warmup(steps), steps), rel=1e-4)
    legw = schedules.LEGW(
        rate, base_batch_size=BATCH, batch_size=4 * BATCH, steps_per_epoch=STEPS / 4, warmup_epochs=epochs
    )
    assert legw.warmup_steps == pytest.approx(epochs * STEPS)
    assert float(to_numpy(legw(10 * TOTAL))) == pytest.approx(2 * rate, rel=1e-5)
    _, fresh = made()
    with pytest.raises(ValueError, match="AutoWU has found no learning rate yet"):
        fresh.recipe()


def test_plot(run):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    _, callback, _, _, _ = run
    axes = callback.plot()
    assert len(axes) == 3
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), callback.losses)
    assert list(axes[1].lines[0].get_xdata()) == [test.step for test in callback.schedule.controller.tests]


def test_a_step_is_traced_once_and_on_jax_once_more_at_the_switch():
    traced = []

    def counted(truth, output):
        traced.append(1)
        return keras.losses.sparse_categorical_crossentropy(truth, output, from_logits=True)

    model, callback = made(loss=counted)
    counts = []
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: counts.append(len(traced)))
    fit(model, callback, count, epochs=LONG_ENOUGH)
    assert callback.schedule.controller.switch_step == SWITCH
    later = 0 if TENSORFLOW else 1
    switch = SWITCH // STEPS
    assert [count - counts[0] for count in counts] == [0] * switch + [later] * (LONG_ENOUGH - switch)


def test_epoch_of_unknown_length():
    """Compiled by XLA: otherwise TensorFlow counts an update when it finds no more data."""
    tf = pytest.importorskip("tensorflow")
    spec = tf.TensorSpec((None, 10), "float32"), tf.TensorSpec((None,), "int64")

    def train(options, **arguments):
        data = tf.data.Dataset.from_generator(lambda: iter(batches()), output_signature=spec)
        model, callback = made(options=options, jit_compile=True)
        model.fit(data, epochs=2, verbose=0, callbacks=[callback], **arguments)
        return callback

    with pytest.raises(ValueError, match="`steps_per_check` is needed where the number of steps in an epoch"):
        train({})
    assert_close(train({"steps_per_check": 4}).losses, by_hand(2, interval=4).losses, CLOSE)
