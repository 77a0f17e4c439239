"""The same estimate, weights and losses on one device, on several, and by hand."""

import numpy as np
import pytest

from keras_lsb import distribute
from tests.microbatches import (
    X,
    Y,
    accuracy,
    assert_averages,
    averages,
    compiled,
    fit,
    microbatched,
    small_model,
    weights,
)
from tests.noise_scale_problem import SMALL, by_hand, trained
from tests.support import (
    LEGACY,
    TENSORFLOW,
    assert_all_close,
    keras,
    keras3_only,
    tensorflow_only,
    to_numpy,
)
from tests.workers import EIGHT_DEVICES, one

if TENSORFLOW:
    import tensorflow as tf

    from tests.test_replicas import mirrored

replicas_only = tensorflow_only("tf.distribute")
on_jax = pytest.mark.skipif(TENSORFLOW, reason="keras.distribution.DataParallel needs JAX")
GROUPS = {"hidden": "hidden"}


def assert_same_run(found, expected, rtol=1e-5, atol=5e-7):
    """Against the training by hand in float64, which knows no replicas."""
    np.testing.assert_allclose(found["estimate"], expected["estimate"], rtol=rtol)
    for name, values in expected["history"].items():
        np.testing.assert_allclose(found["history"][name], values, rtol=rtol, err_msg=name)
    assert_all_close(found["weights"], expected["weights"], atol)
    assert all(np.abs(np.subtract(*pair)).max() > 0.1 for pair in zip(found["start"], found["weights"], strict=True))


def test_one_device_as_by_hand():
    assert_same_run(trained(SMALL), by_hand())


@replicas_only
def test_eight_replicas_with_one_microbatch_each(tmp_path):
    found = one("tests.noise_scale_run", "mirrored", folder=tmp_path)
    assert found["devices"] == 8
    assert_same_run(found, by_hand())


@on_jax
def test_data_parallel(tmp_path):
    """On eight devices, each with one example of every microbatch."""
    found = one("tests.noise_scale_run", "parallel", folder=tmp_path, XLA_FLAGS=EIGHT_DEVICES)
    assert found["devices"] == 8
    assert_same_run(found, by_hand())


@pytest.mark.skipif(TENSORFLOW and not LEGACY, reason="it would change Keras 3 for all later tests")
def test_nothing_to_enable_here():
    assert distribute.enable_multi_worker_fit() is False


def train(replicas, microbatches, x=X, y=Y, batch_size=16, epochs=2, accumulation=1, **arguments):
    """A model trained on some replicas, 0 for no strategy, and its history."""
    strategy = mirrored(replicas) if replicas else tf.distribute.get_strategy()
    with strategy.scope():
        optimizer = arguments.pop("optimizer", lambda: keras.optimizers.SGD(0.3))()
        model = microbatched(
            microbatches, arguments={"groups": GROUPS}, optimizer=optimizer, metrics=[accuracy()], **arguments
        )
    model.accumulate(accumulation)
    return model, fit(model, x, y, batch_size, epochs)


def assert_same_training(found, expected):
    (model, history), (one, logs) = found, expected
    assert_all_close(weights(model), weights(one), 5e-6)
    assert_averages(averages(model), averages(one), 1e-4)
    np.testing.assert_allclose(to_numpy(model.group_averages)[0, :4], to_numpy(one.group_averages)[0, :4], rtol=1e-3)
    for name, values in logs.items():
        np.testing.assert_allclose(history[name], values, rtol=2e-4, err_msg=name)


@replicas_only
@pytest.mark.parametrize(("replicas", "microbatches"), [(4, 2), (2, 4)])
def test_shares_are_split_further(replicas, microbatches):
    found, expected = train(replicas, microbatches, X[:48], Y[:48]), train(0, 8, X[:48], Y[:48])
    assert_same_training(found, expected)
    assert to_numpy(found[0].measured_batch) == 16


@replicas_only
@pytest.mark.parametrize("examples", [34, 38, 45])
def test_shares_of_different_size(examples):
    """A last batch of 2, 6 or 13 examples on four replicas: shares of 1, 1, 0, 0, of 2, 2, 2, 0 or of 4, 4, 4, 1."""
    x, y = X[:examples], Y[:examples]
    found, expected = train(4, 1, x, y), train(0, 4, x, y)
    assert_same_training(found, expected)
    assert averages(found[0])["measurements"] == 6
    assert averages(found[0])["skipped"] == 0


@replicas_only
def test_a_single_example_on_four_replicas_is_not_a_measurement():
    model, _ = train(4, 1, X[:33], Y[:33], epochs=1)
    assert (averages(model)["measurements"], averages(model)["skipped"]) == (2, 1)
    assert all(np.isfinite(value).all() for value in weights(model))


@replicas_only
def test_empty_shares_that_would_be_split():
    assert_same_training(train(4, 2, X[:34], Y[:34]), train(0, 8, X[:34], Y[:34]))


@replicas_only
@pytest.mark.parametrize("jit_compile", [False])
def test_accumulated_batches_on_replicas(jit_compile):
    found = train(4, 1, X[:48], Y[:48], 8, accumulation=2, jit_compile=jit_compile)
    expected = train(0, 8, X[:48], Y[:48])
    assert_all_close(weights(found[0]), weights(expected[0]), 5e-6)
    assert_averages(averages(found[0]), averages(expected[0]), 1e-4)


@replicas_only
def test_stock_optimizer_clips_the_sum():
    def optimizer():
        return keras.optimizers.SGD(0.5, global_clipnorm=0.1)

    found, expected = train(4, 2, X[:48], Y[:48], optimizer=optimizer), train(0, 8, X[:48], Y[:48], optimizer=optimizer)
    assert_same_training(found, expected)
    free = train(0, 8, X[:48], Y[:48], optimizer=lambda: keras.optimizers.SGD(0.5))
    assert np.abs(weights(free[0])[0] - weights(expected[0])[0]).max() > 1e-2


@replicas_only
def test_updates_are_those_of_stock_fit_on_one_device():
    plain = compiled(small_model(), metrics=[accuracy()])
    expected = fit(plain)
    model, history = train(4, 2)
    assert_all_close(weights(model), weights(plain), 5e-6)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)


@replicas_only
def test_loss_scaling_on_replicas():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        found, expected = train(2, 2, X[:32], Y[:32]), train(0, 4, X[:32], Y[:32])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert averages(found[0])["measurements"] == averages(expected[0])["measurements"] > 0
    assert averages(found[0])["trace"] == pytest.approx(averages(expected[0])["trace"], rel=1e-2)
    assert_all_close(weights(found[0]), weights(expected[0]), 2e-3)


@replicas_only
@keras3_only("`gradient_accumulation_steps`")
def test_accumulation_of_keras_3_still_raises_on_replicas():
    """The reason for `accumulate`; fails when Keras mends it."""
    with mirrored(2).scope():
        model = compiled(small_model(), optimizer=keras.optimizers.SGD(0.3, gradient_accumulation_steps=2))
    with pytest.raises(Exception, match="merge_call"):
        fit(model, epochs=1)


@replicas_only
def test_saved_on_replicas_and_restored_on_one_device(tmp_path):
    model, _ = train(2, 2, X[:32], Y[:32])
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert averages(restored) == averages(model)
    assert_all_close(weights(restored), weights(model), 0)
    assert restored.noise_scale_estimate("hidden") == model.noise_scale_estimate("hidden")
