"""What every optimizer of the registry must do when it is called by hand: numbers, types, config, Keras' arguments."""

import numpy as np
import pytest

from keras_lsb import _keras
from tests import registry
from tests.support import (
    LEGACY,
    TENSORFLOW,
    apply,
    assert_all_close,
    assert_close,
    keras,
    keras3_only,
    make_variable,
    ops,
    slots,
    snapshot,
    tensorflow_only,
    to_numpy,
    to_tensor,
)

every_optimizer = pytest.mark.parametrize("name", registry.OPTIMIZERS)
every_class = pytest.mark.parametrize("name", registry.CLASSES)


def tolerance(array):
    return 1e-6 * max(1.0, np.abs(array).max())


def test_gradients_of_the_registry_change_sign_and_size():
    weights, gradients = registry.inputs()
    for path, values in gradients.items():
        assert (values.min(axis=0) < 0).all(), path
        assert (values.max(axis=0) > 0).all(), path
        assert np.abs(values).max() > 8 * np.abs(values[values != 0]).min(), path
        assert path == "fresh/kernel" or np.ndim(weights[path]) == 0 or np.ptp(weights[path]) > 0.2, path


@every_optimizer
def test_agrees_with_the_transcription(name):
    weights, gradients = registry.inputs()
    schedule, rate = registry.decaying_rate(registry.OPTIMIZERS[name][1]["learning_rate"])
    optimizer = registry.make(name, learning_rate=schedule)
    variables = registry.train(optimizer, weights, gradients)
    expected = registry.transcription(name, weights, gradients, rate)
    for index, (path, variable) in enumerate(zip(weights, variables, strict=True)):
        weight, expected_slots = expected[path]
        np.testing.assert_allclose(to_numpy(variable), weight, rtol=0, atol=tolerance(weight), err_msg=path)
        for slot_name, slot in zip(optimizer.slot_names, expected_slots, strict=True):
            np.testing.assert_allclose(slots(optimizer, slot_name)[index], slot, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("fused", [True, False])
@every_optimizer
def test_large_variables_agree_with_the_transcription(name, fused):
    random = np.random.default_rng(9)
    weights = {"dense/kernel": random.normal(size=(144, 128))}
    gradients = {"dense/kernel": [size * random.normal(size=(144, 128)) for size in (1.0, 0.1, 3.0)]}
    rate = registry.OPTIMIZERS[name][1]["learning_rate"]
    (variable,) = registry.train(registry.make(name, fused=fused), weights, gradients, 3)
    expected = registry.transcription(name, weights, gradients, lambda step: rate, 3)["dense/kernel"][0]
    assert_close(to_numpy(variable), expected, tolerance(expected))


@tensorflow_only("float64 without a global switch")
@every_optimizer
def test_float64_variables_are_computed_in_float64(name):
    weights, gradients = registry.inputs()
    rate = registry.OPTIMIZERS[name][1]["learning_rate"]
    variables = registry.train(registry.make(name), weights, gradients, dtype="float64")
    expected = registry.transcription(name, weights, gradients, lambda step: rate)
    for path, variable in zip(weights, variables, strict=True):
        assert_close(to_numpy(variable), expected[path][0], 1e-12)


@pytest.mark.parametrize(("dtype", "ulp"), [("bfloat16", 2**-8), ("float16", 2**-11)])
@every_optimizer
def test_half_precision_variables_have_float32_slots(name, dtype, ulp):
    weights, gradients = registry.inputs()
    rate = registry.OPTIMIZERS[name][1]["learning_rate"]
    optimizer, variables = registry.make(name), registry.variables_of(weights, dtype)
    expected_slots = {path: [np.zeros_like(weight)] * len(optimizer.slot_names) for path, weight in weights.items()}
    for step in range(5):
        before = dict(zip(weights, map(to_numpy, variables), strict=True))
        rounded = {path: to_numpy(to_tensor(gradients[path][step], dtype)) for path in weights}
        apply(optimizer, list(rounded.values()), variables)
        for path, variable in zip(weights, variables, strict=True):
            # One step of the transcription from the rounded weights, then rounded once: half a unit of the last place.
            weight, expected_slots[path] = registry.transcribed_step(
                name, before[path], rounded[path], expected_slots[path], step + 1, rate, path
            )
            assert (np.abs(to_numpy(variable) - weight) <= 1.01 * ulp * np.abs(weight) + 1e-6).all(), path
    assert {_keras.dtype_name(slot) for name in optimizer.slot_names for slot in optimizer._slots[name]} == {"float32"}
    assert {_keras.dtype_name(variable) for variable in variables} == {dtype}


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_norm_does_not_overflow_in_float16(name):
    # The sum of squares of 90,000 entries of size 1 is above float16's 65,504: the ratio would be 0 or NaN.
    variable = make_variable(np.ones(90_000), "dense/kernel", "float16")
    before = to_numpy(variable)
    apply(registry.make(name, weight_decay=0.0), [np.full(90_000, 0.25)], [variable])
    change = (before - to_numpy(variable)).max()
    length = 0.5 * 0.02 if name == "lars" else 2**-6
    assert_close(change, length, 5e-4)


@every_class
def test_missing_gradient_leaves_variable_and_slots_alone(name):
    weights, gradients = registry.inputs()
    optimizer = registry.make(name)
    variables = registry.train(optimizer, weights, gradients, 2)
    before = snapshot(optimizer, variables)
    values = [None if path == "dense/kernel" else gradients[path][2] for path in weights]
    if LEGACY:
        apply(optimizer, values, variables)
    else:
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            apply(optimizer, values, variables)
    after = snapshot(optimizer, variables)
    skipped = range(0, len(before) - 1, len(variables))
    for index in range(len(before)):
        assert np.array_equal(before[index], after[index]) == (index in skipped), index


CLIPS = {"clipnorm": 0.5, "global_clipnorm": 1.5, "clipvalue": 0.25}


def clipped(gradients, clip):
    """Keras' three ways to clip, in float64."""
    if clip == "clipvalue":
        return {path: np.clip(values, -0.25, 0.25) for path, values in gradients.items()}
    result = {path: np.array(values) for path, values in gradients.items()}
    for step in range(6):
        total = np.sqrt(sum(np.sum(values[step] ** 2) for values in gradients.values()))
        for values in result.values():
            norm = total if clip == "global_clipnorm" else np.sqrt(np.sum(values[step] ** 2))
            values[step] *= min(1, CLIPS[clip] / norm) if norm else 1
    return result


@pytest.mark.parametrize("clip", CLIPS)
@every_class
def test_clipping_comes_before_the_rule(name, clip):
    weights, gradients = registry.inputs()
    rate = registry.OPTIMIZERS[name][1]["learning_rate"]
    variables = registry.train(registry.make(name, **{clip: CLIPS[clip]}), weights, gradients)
    expected = registry.transcription(name, weights, clipped(gradients, clip), lambda step: rate)
    for path, variable in zip(weights, variables, strict=True):
        np.testing.assert_allclose(to_numpy(variable), expected[path][0], rtol=0, atol=4e-6, err_msg=path)


@every_class
def test_moving_average_overwrites_the_weights(name):
    weights, gradients = registry.inputs()
    rate = registry.OPTIMIZERS[name][1]["learning_rate"]
    optimizer = registry.make(name, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    variables = registry.train(optimizer, weights, gradients, 2)
    first, second = (registry.transcription(name, weights, gradients, lambda step: rate, steps) for steps in (1, 2))
    for path, variable in zip(weights, variables, strict=True):
        # Keras 3 starts the average at the weights after the first update, tf_keras at those before it.
        average = first[path][0] if not LEGACY else 0.5 * (weights[path] + first[path][0])
        expected = 0.5 * (average + second[path][0])
        assert_close(to_numpy(variable), expected, tolerance(expected))


@keras3_only("gradient accumulation")
@every_class
def test_accumulated_halves_are_one_step(name):
    weights, gradients = registry.inputs()
    whole = registry.make(name, global_clipnorm=1.5)
    halves = registry.make(name, global_clipnorm=1.5, gradient_accumulation_steps=2)
    expected, variables = registry.train(whole, weights, gradients, 3), registry.variables_of(weights)
    for step in range(3):
        # The two halves differ; their mean is the gradient of the whole batch.
        apply(halves, [0.25 * gradients[path][step] for path in weights], variables)
        apply(halves, [1.75 * gradients[path][step] for path in weights], variables)
    assert_all_close(map(to_numpy, variables), map(to_numpy, expected), 4e-6)
    assert int(to_numpy(ops.cast(halves.iterations, "int32"))) == 3


@tensorflow_only("sparse gradients (tf.IndexedSlices)")
@pytest.mark.parametrize("clip", [None, *CLIPS])
@every_class
def test_sparse_gradients_are_summed_into_the_dense_rule(name, clip):
    import tensorflow as tf

    arguments = {clip: CLIPS[clip]} if clip else {}
    random = np.random.default_rng(3)
    start = random.normal(size=(5, 3))
    sparse, dense = make_variable(start, "embedding/embeddings"), make_variable(start, "embedding/embeddings")
    one, other = registry.make(name, **arguments), registry.make(name, **arguments)
    for indices in ([1, 3, 1, 1], [0, 0, 4, 2], [3, 3, 3, 3]):
        values = random.normal(size=(4, 3))
        whole = np.zeros((5, 3))
        np.add.at(whole, indices, values)
        apply(one, [tf.IndexedSlices(tf.constant(values, "float32"), tf.constant(indices), (5, 3))], [sparse])
        apply(other, [whole], [dense])
    assert_close(to_numpy(sparse), to_numpy(dense), 1e-6)
    assert np.abs(to_numpy(sparse) - start).max() > 1e-3


@every_class
def test_learning_rate_zero_moves_only_the_slots(name):
    weights, gradients = registry.inputs()
    schedule = registry.make_schedule("legw")
    assert float(to_numpy(schedule(0))) == 0
    optimizer = registry.make(name, learning_rate=schedule)
    variables = registry.train(optimizer, weights, gradients, 1)
    assert_all_close(map(to_numpy, variables), weights.values(), 0)
    # With the rate inside the momentum (LARS), a zero rate adds nothing to it.
    moved = [np.abs(slot).max() > 0 for slot in slots(optimizer, optimizer.slot_names[0])]
    assert moved == [name != "lars" and not path.startswith("idle") for path in weights]
    assert int(to_numpy(ops.cast(optimizer.iterations, "int32"))) == 1


@every_class
def test_second_call_does_not_retrace(name):
    weights, gradients = registry.inputs()
    optimizer, variables, traces = registry.make(name), registry.variables_of(weights), []
    optimizer.build(variables)
    if TENSORFLOW:
        import tensorflow as tf

        @tf.function
        def update(values):
            traces.append(1)
            optimizer.apply_gradients(zip(values, variables, strict=True))

        for step in range(3):
            update([to_tensor(gradients[path][step]) for path in weights])
    else:
        import jax

        @jax.jit
        def update(state, values, weights):
            traces.append(1)
            return optimizer.stateless_apply(state, values, weights)

        state, values = [v.value for v in optimizer.variables], [v.value for v in variables]
        for step in range(3):
            values, state = update(state, [to_tensor(gradients[path][step]) for path in weights], values)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    assert len(traces) == 1
    expected = registry.train(registry.make(name), weights, gradients, 3)
    assert_all_close(map(to_numpy, variables), map(to_numpy, expected), 2e-6)


@every_class
def test_optimizer_tracks_every_slot_once(name):
    ours, stock = registry.make(name), keras.optimizers.Adam() if name != "lars" else keras.optimizers.SGD(0.1, 0.9)
    for optimizer in (ours, stock):
        optimizer.build(registry.variables_of(registry.inputs()[0]))
    assert (
        len(ours.variables) == len(stock.variables) if not LEGACY else len(ours.variables()) == len(stock.variables())
    )
