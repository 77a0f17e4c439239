"""What `Microbatched` measures: averages, groups, intervals, odd gradients, layers that see one microbatch."""

import numpy as np
import pytest

from keras_lsb.training import Microbatched
from keras_lsb.training import microbatched as module
from tests.microbatches import (
    BATCH,
    X,
    Y,
    assert_averages,
    averages,
    compiled,
    dense,
    fit,
    gradients,
    loss,
    microbatched,
    parts,
    small_model,
    train_by_hand,
    weights,
)
from tests.reference import noise_scale as reference
from tests.support import LEGACY, assert_all_close, assert_close, keras, to_numpy

HIDDEN_AND_OUTPUT = {"hidden": "hidden", "biases": "bias"}


@pytest.mark.parametrize(("microbatches", "decay"), [(4, 0.9), (7, 1)])
def test_averages_are_those_of_gradients_at_the_same_weights(microbatches, decay):
    """Two epochs with a ragged batch each; seven microbatches have a remainder, in the batches of 16 and of 2."""
    by_hand = small_model()
    measurements = train_by_hand(by_hand, microbatches)
    model = microbatched(microbatches, arguments={"decay": decay, "groups": HIDDEN_AND_OUTPUT})
    history = fit(model)
    assert_all_close(weights(model), weights(by_hand), 1e-5)
    expected = reference.averages(measurements, decay)
    assert_averages(averages(model), expected)
    assert float(to_numpy(model.measured_batch)) == BATCH
    found = model.noise_scale_estimate()
    ratio = expected["trace"] / expected["grad_sq_norm"]
    assert found.simple == pytest.approx(ratio if ratio > 0 else np.inf, rel=1e-3)
    assert found.measurements == 8
    assert history["noise_scale"][-1] == pytest.approx(found.simple, rel=1e-5)
    assert history["grad_sq_norm"][-1] == pytest.approx(found.grad_sq_norm, rel=1e-5)
    assert history["grad_trace"][-1] == pytest.approx(found.trace, rel=1e-5)
    for group, chosen in (("hidden", (0, 1)), ("biases", (1, 3))):
        measured = train_by_hand(small_model(), microbatches, keep=lambda index, chosen=chosen: index in chosen)
        row = dict(zip(module.COLUMNS, to_numpy(model.group_averages)[list(model.groups).index(group)], strict=True))
        assert_averages(row, reference.averages(measured, decay))


def test_remainder_is_a_small_gradient_of_its_own():
    """Sizes 3, 3, 3, 3, 3, 1 and their harmonic mean, far from the arithmetic one."""
    model = microbatched(7)
    chosen = parts(BATCH, 7)
    assert [len(part) for part in chosen] == [3, 3, 3, 3, 3, 1]
    small = [np.concatenate([g.ravel() for g in gradients(model.model, X[part], Y[part])]) for part in chosen]
    signal, trace = reference.measurement(small, [len(part) for part in chosen])
    fit(model, X[:BATCH], Y[:BATCH], epochs=1)
    found = averages(model)
    assert found["trace"] == pytest.approx(trace, rel=1e-4)
    assert found["grad_sq_norm"] == pytest.approx(signal, rel=1e-3)


@pytest.mark.parametrize("interval", [3])
def test_interval(interval):
    by_hand = small_model()
    measurements = train_by_hand(by_hand, 4)
    model = microbatched(4, arguments={"interval": interval})
    fit(model)
    assert_all_close(weights(model), weights(by_hand), 1e-5)
    assert_averages(averages(model), reference.averages(measurements[::interval], 0.99))


def test_measure_changes_decay_and_interval_between_fits():
    by_hand = small_model()
    measurements = train_by_hand(by_hand, 4)
    model = microbatched(4, arguments={"decay": 1})
    fit(model, epochs=1)
    model.measure(interval=2)
    fit(model, epochs=1)
    assert model.decay == 1
    assert_averages(averages(model), reference.averages([*measurements[:4], measurements[4], measurements[6]], 1))
    model.measure(decay=0)
    fit(model, epochs=1)
    assert averages(model)["weight"] == BATCH
    assert averages(model)["measurements"] == 8


def test_batch_whose_gradient_is_not_finite_is_skipped_and_counted():
    model, expected = microbatched(4, arguments={"groups": HIDDEN_AND_OUTPUT}), microbatched(4)
    fit(expected, X[:32], Y[:32], epochs=1)
    broken = np.ones(48, "float32")
    broken[40] = np.nan
    history = fit(model, X[:48], Y[:48], epochs=1, sample_weight=broken)
    assert_averages(averages(model), averages(expected) | {"skipped": 1})
    assert np.isfinite(history["noise_scale"]).all()
    assert to_numpy(model.group_averages)[:, -1].tolist() == [1, 1]
    model.model.set_weights(expected.model.get_weights())  # they were NaN
    fit(model, X[:16], Y[:16], epochs=1)
    fit(expected, X[:16], Y[:16], epochs=1)
    assert_averages(averages(model), averages(expected) | {"skipped": 1})


def test_batch_of_one_example_has_nothing_to_compare():
    model = microbatched(4)
    fit(model, X[:33], Y[:33], epochs=1)
    assert averages(model)["measurements"] == 2
    assert averages(model)["skipped"] == 1


@pytest.mark.parametrize("arguments", [{"microbatches": 4, "noise_scale": False}, {"microbatches": 1}])
def test_nothing_is_measured_or_logged(arguments):
    model = compiled(Microbatched(small_model(), **arguments))
    assert list(fit(model, epochs=1)) == ["loss"]
    assert not any(averages(model).values())
    assert np.isnan(model.noise_scale_estimate().simple)
    assert str(model.noise_scale_estimate()) == "not measured yet"


def test_frozen_and_unused_weights_are_left_out():
    model = small_model(dense(4, "tanh", 5))
    model.layers[0].trainable = False
    wrapped = microbatched(4, model, {"groups": {"later": "output|dense"}})
    fit(wrapped, epochs=1)
    assert to_numpy(wrapped.group_averages)[0].tolist() == list(averages(wrapped).values())


def test_identical_examples_have_no_noise():
    model = microbatched(4)
    fit(model, np.tile(X[:1], (16, 1)), np.tile(Y[:1], 16), epochs=1)
    found = averages(model)
    assert abs(found["trace"]) < 1e-5 * found["grad_sq_norm"]
    assert model.noise_scale_estimate().simple == pytest.approx(0, abs=1e-5)


def test_bad_groups():
    with pytest.raises(ValueError, match=r"pattern that matches no weight\. Received: 'none': 'convolution'"):
        fit(microbatched(4, arguments={"groups": {"none": "convolution"}}), epochs=1)
    model = microbatched(4, arguments={"groups": HIDDEN_AND_OUTPUT})
    with pytest.raises(ValueError, match=r"`groups` cannot change\. Received: groups=.*'biases'.* and before"):
        model.measure(groups={"biases": "bias"})
    model.measure(groups=HIDDEN_AND_OUTPUT)
    with pytest.raises(ValueError, match=r"`group` must be one of \['hidden', 'biases'\]\. Received: group='hiden'"):
        model.noise_scale_estimate("hiden")
    with pytest.raises(ValueError, match="`interval` must be"):
        model.measure(interval=0)
    with pytest.raises(ValueError, match="`decay` must be"):
        model.measure(decay=2)


def test_groups_set_between_fits_start_there():
    model = microbatched(4)
    fit(model, epochs=1)
    model.measure(groups=HIDDEN_AND_OUTPUT)
    fit(model, epochs=1)
    assert averages(model)["measurements"] == 8
    assert model.noise_scale_estimate("hidden").measurements == 4


def test_batch_normalization_uses_and_records_each_microbatch():
    """The moving averages advance once for each microbatch, with its own statistics."""
    norm = keras.layers.BatchNormalization(momentum=0.8, input_shape=(5,)) if LEGACY else None
    norm = norm or keras.layers.BatchNormalization(momentum=0.8)
    model = keras.Sequential([keras.layers.Input((5,)), norm, dense(3)])
    wrapped = microbatched(4, model)
    mean, variance = np.zeros(5), np.ones(5)
    chosen = parts(BATCH, 4)
    for part in chosen:
        mean = 0.8 * mean + 0.2 * X[part].mean(0)
        variance = 0.8 * variance + 0.2 * X[part].var(0)
    small = [np.concatenate([g.ravel() for g in gradients(model, X[part], Y[part])]) for part in chosen]
    norm.moving_mean.assign(np.zeros(5))
    norm.moving_variance.assign(np.ones(5))
    start = [to_numpy(variable) for variable in model.trainable_variables]
    fit(wrapped, X[:BATCH], Y[:BATCH], epochs=1)
    assert_close(to_numpy(norm.moving_mean), mean, 1e-6)
    assert_close(to_numpy(norm.moving_variance), variance, 1e-6)
    assert averages(wrapped)["trace"] == pytest.approx(reference.measurement(small, [4] * 4)[1], rel=1e-4)
    moved = np.concatenate(
        [(before - to_numpy(after)).ravel() for before, after in zip(start, model.trainable_variables, strict=True)]
    )
    assert_close(moved, 0.3 * np.mean(small, 0), 1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_draws_anew_for_each_microbatch(rate):
    """Identical examples, one in each microbatch: only the dropout can make their gradients differ."""
    model = microbatched(8, small_model(keras.layers.Dropout(rate, seed=3)))
    fit(model, np.tile(X[:1], (8, 1)), np.tile(Y[:1], 8), epochs=1)
    found = averages(model)
    assert (found["trace"] > 0.05 * abs(found["grad_sq_norm"])) == (rate > 0)
    loss_before = model.evaluate(X, Y, verbose=0)
    fit(model, epochs=5)
    assert model.evaluate(X, Y, verbose=0) < loss_before


def test_loss_falls_and_the_estimate_has_an_interval():
    model = microbatched(5, optimizer=keras.optimizers.SGD(0.05))
    history = fit(model, batch_size=25, epochs=8)
    assert history["loss"][-1] < 0.95 * history["loss"][0]
    found = model.noise_scale_estimate(confidence=0.5)
    assert 0 < found.low < found.simple < found.high
    assert loss()(Y, model.predict(X, verbose=0)) < history["loss"][0]
