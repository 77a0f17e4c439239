"""`Microbatched.accumulate`: one update from several batches of `fit`."""

import numpy as np
import pytest

from keras_lsb.training import Microbatched
from tests.microbatches import (
    X,
    Y,
    assert_averages,
    averages,
    compiled,
    fit,
    microbatched,
    small_model,
    weights,
)
from tests.support import TENSORFLOW, assert_all_close, keras, ops, tensorflow_only, to_numpy

accumulates = tensorflow_only("Microbatched.accumulate")


def accumulating(batches, microbatches=2, **arguments):
    model = microbatched(microbatches, **arguments)
    model.accumulate(batches)
    return model


def updates(model) -> int:
    return int(to_numpy(ops.cast(model.optimizer.iterations, "int32")))


@accumulates
@pytest.mark.parametrize("jit_compile", [False, True])
def test_as_batches_three_times_as_large(jit_compile):
    arguments = {"arguments": {"groups": {"hidden": "hidden"}}, "metrics": ["accuracy"]}
    large, small = microbatched(6, **arguments), accumulating(3, **arguments, jit_compile=jit_compile)
    expected = fit(large, X[:48], Y[:48], batch_size=24)
    history = fit(small, X[:48], Y[:48], batch_size=8)
    assert_all_close(weights(small), weights(large), 5e-6)
    assert updates(small) == updates(large) == 4
    assert_averages(averages(small), averages(large))
    np.testing.assert_allclose(to_numpy(small.group_averages)[0, :4], to_numpy(large.group_averages)[0, :4], rtol=1e-3)
    assert to_numpy(small.measured_batch) == 24
    assert list(history) == list(expected)


@accumulates
def test_optimizer_with_state_clips_the_sum():
    def optimizer():
        return keras.optimizers.Adam(0.02, global_clipnorm=0.1)

    plain, small = compiled(small_model(), optimizer=optimizer()), accumulating(2, optimizer=optimizer())
    fit(plain, X[:48], Y[:48], batch_size=16)
    fit(small, X[:48], Y[:48], batch_size=8)
    assert_all_close(weights(small), weights(plain), 2e-6)


@accumulates
def test_batches_of_different_size_count_by_their_examples():
    plain, small = compiled(small_model()), accumulating(3)
    fit(plain, X[:19], Y[:19], batch_size=19, epochs=1)
    fit(small, X[:19], Y[:19], batch_size=8, epochs=1)
    assert_all_close(weights(small), weights(plain), 5e-6)
    assert to_numpy(small.measured_batch) == 19


@accumulates
def test_unfinished_sum_is_carried_over_the_end_of_an_epoch():
    plain, small = compiled(small_model()), accumulating(3)
    start = weights(small)
    fit(small, X[:16], Y[:16], batch_size=8, epochs=1)
    assert small.pending_batches == 2
    assert updates(small) == 0
    assert_all_close(weights(small), start, 0)
    fit(small, X[16:24], Y[16:24], batch_size=8, epochs=1)
    assert small.pending_batches == 0
    fit(plain, X[:24], Y[:24], batch_size=24, epochs=1)
    assert_all_close(weights(small), weights(plain), 5e-6)
    assert updates(small) == 1


@accumulates
def test_the_number_of_batches_changes_during_the_run():
    """1, 2 and 3 batches for an update; then a sum of two waits, and a third finishes it although two are due."""
    plain, small = compiled(small_model()), accumulating(1)
    position = 0
    for batches in (1, 2, 3):
        small.accumulate(batches)
        size = 8 * batches
        fit(small, X[position : position + size], Y[position : position + size], batch_size=8, epochs=1)
        fit(plain, X[position : position + size], Y[position : position + size], batch_size=size, epochs=1)
        position += size
        assert small.pending_batches == 0
    assert_all_close(weights(small), weights(plain), 5e-6)
    small.accumulate(4)
    fit(small, X[:16], Y[:16], batch_size=8, epochs=1)
    small.accumulate(2)
    fit(small, X[16:24], Y[16:24], batch_size=8, epochs=1)
    fit(plain, X[:24], Y[:24], batch_size=24, epochs=1)
    assert_all_close(weights(small), weights(plain), 5e-6)
    assert averages(small)["measurements"] == updates(small) == 4


@accumulates
def test_batches_are_small_gradients_where_nothing_else_is():
    """One microbatch on one replica: the batches themselves are compared."""
    large, small = microbatched(3), accumulating(3, microbatches=1)
    fit(large, X[:48], Y[:48], batch_size=24)
    fit(small, X[:48], Y[:48], batch_size=8)
    assert_averages(averages(small), averages(large))


@accumulates
def test_a_change_traces_each_part_once(monkeypatch):
    from keras_lsb.training import tensorflow_step

    traced, step = [], tensorflow_step.train_step
    monkeypatch.setattr(
        tensorflow_step, "train_step", lambda model, data: traced.append(model._accumulated.part) or step(model, data)
    )
    model = accumulating(1)
    fit(model, X[:48], Y[:48], batch_size=8, epochs=1)
    model.accumulate(2)
    fit(model, X[:48], Y[:48], batch_size=8, epochs=1)
    seen = len(traced)
    assert set(traced) == {"update", "accumulate", "finish"}
    for batches in (3, 2, 1, 6):
        model.accumulate(batches)
        fit(model, X[:48], Y[:48], batch_size=8, epochs=1)
    assert len(traced) == seen


def trained_under(policy: str):
    """A model trained on whole batches and one that accumulates thirds of them, under a dtype policy."""
    keras.mixed_precision.set_global_policy(policy)
    try:
        large, small = microbatched(6), accumulating(3)
        fit(large, X[:48], Y[:48], batch_size=24)
        fit(small, X[:48], Y[:48], batch_size=8)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    return large, small


@accumulates
def test_loss_scaling():
    large, small = trained_under("mixed_float16")
    assert_all_close(weights(small), weights(large), 2e-3)
    assert averages(small)["trace"] == pytest.approx(averages(large)["trace"], rel=2e-2)
    assert averages(small)["measurements"] == averages(large)["measurements"] > 0


@accumulates
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_weights_of_another_type(dtype):
    large, small = trained_under(dtype)
    assert_all_close(weights(small), weights(large), 1e-6 if dtype == "float64" else 2e-2)


@accumulates
def test_groups_set_after_accumulation_began():
    model = accumulating(2)
    fit(model, X[:16], Y[:16], batch_size=8, epochs=1)
    model.measure(groups={"hidden": "hidden"})
    fit(model, X[:16], Y[:16], batch_size=8, epochs=1)
    assert model.noise_scale_estimate("hidden").measurements == 1
    assert model.noise_scale_estimate().measurements == 2


@accumulates
@pytest.mark.parametrize("change", [{"groups": {"hidden": "hidden"}}, {"interval": 3}])
def test_a_sum_that_waits_keeps_its_measurement(change):
    model = accumulating(2)
    fit(model, X[:8], Y[:8], batch_size=8, epochs=1)
    with pytest.raises(ValueError, match=rf"`{next(iter(change))}` cannot be set while .*1 batches waiting"):
        model.measure(**change)
    assert (model.groups, model.interval) == ({}, 1)
    model.measure(decay=0.5, interval=1)
    fit(model, X[8:16], Y[8:16], batch_size=8, epochs=1)
    model.measure(**change)


@accumulates
def test_a_sum_of_single_gradients_ends_with_one_batch():
    large, small = microbatched(2), accumulating(3, microbatches=1)
    fit(small, X[:8], Y[:8], batch_size=8, epochs=1)
    small.accumulate(1)
    fit(small, X[8:16], Y[8:16], batch_size=8, epochs=1)
    fit(large, X[:16], Y[:16], epochs=1)
    assert_averages(averages(small), averages(large))


@pytest.mark.parametrize("batches", [0, 1.5, None])
def test_bad_batches(batches):
    with pytest.raises(ValueError, match=r"`batches` must be a whole number >= 1\. Received"):
        microbatched(2).accumulate(batches)


@accumulates
def test_several_steps_per_execution_are_refused():
    model = microbatched(2, steps_per_execution=2)
    model.accumulate(1)
    with pytest.raises(ValueError, match=r"`steps_per_execution` must be 1 .*Received: steps_per_execution=2"):
        model.accumulate(2)


@pytest.mark.skipif(TENSORFLOW, reason="the refusal is for backends other than TensorFlow")
def test_refused_on_jax():
    model = microbatched(2)
    model.accumulate(1)
    with pytest.raises(ValueError, match=r"on TensorFlow only\. Received: backend 'jax'"):
        model.accumulate(2)


class Lazy(keras.Model):
    def __init__(self):
        super().__init__()
        self.out = keras.layers.Dense(3)

    def call(self, inputs):
        return self.out(inputs)


@accumulates
def test_model_without_weights_is_refused():
    model = compiled(Microbatched(Lazy(), 2))
    model.accumulate(2)
    with pytest.raises(ValueError, match="Call the model on a batch before"):
        fit(model, epochs=1)
    model.accumulate(1)
    fit(model, X[:16], Y[:16], epochs=1)
    model.accumulate(2)
    fit(model, X[:32], Y[:32], epochs=1)
    assert updates(model) == 2
