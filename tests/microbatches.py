"""Models, data, and gradients by hand for the tests of `training.Microbatched`."""

import numpy as np

from keras_lsb.scaling.noise_scale import COLUMNS
from keras_lsb.training import Microbatched
from tests.reference import noise_scale as reference
from tests.support import TENSORFLOW, assert_all_close, keras, ops, to_numpy, with_slots

BATCH = 16
_random = np.random.default_rng(5)
X = _random.normal(size=(50, 5)).astype("float32")  # batches of 16, 16, 16 and 2
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] + 0.5 * _random.normal(size=50) > 0)
WEIGHTS = _random.uniform(0.2, 3, size=50).astype("float32")
RATE = 0.3


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def accuracy():
    """The metric that "accuracy" stands for, with its variables: in want of them the first step is traced twice."""
    return keras.metrics.SparseCategoricalAccuracy(name="accuracy")


def dense(units, activation=None, seed=0, **arguments):
    """A layer that starts alike whenever it is built."""
    return keras.layers.Dense(
        units, activation, kernel_initializer=keras.initializers.GlorotUniform(seed=seed), **arguments
    )


def small_model(*between):
    return keras.Sequential(
        [keras.layers.Input((5,)), dense(6, "tanh", 1, name="hidden"), *between, dense(3, None, 2, name="output")]
    )


def compiled(model, **arguments):
    """The model, compiled with plain gradient descent unless told otherwise."""
    defaults = {"optimizer": keras.optimizers.SGD(RATE), "loss": loss(), "jit_compile": not TENSORFLOW}
    model.compile(**(defaults | arguments))
    return with_slots(model)


def microbatched(microbatches, model=None, arguments=None, **compile_arguments):
    model = Microbatched(model or small_model(), microbatches, **(arguments or {}))
    return compiled(model, **compile_arguments)


def fit(model, x=X, y=Y, batch_size=BATCH, epochs=2, **arguments):
    """Fits without shuffling; the history."""
    history = model.fit(x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **arguments)
    return history.history


def weights(model):
    """Trainable and other weights of the model inside the wrapper, or of a plain model."""
    return [
        np.asarray(ops.convert_to_numpy(weight), "float64") for weight in getattr(model, "model", model).get_weights()
    ]


def averages(model) -> dict:
    """The running averages of all weights, by name."""
    return dict(zip(COLUMNS, to_numpy(model.averages), strict=True))


def assert_averages(found: dict, expected: dict, rel=2e-4):
    """Averages within a share of themselves; scatters, which are differences, within one of the squared averages."""
    scale = {"grad_sq_norm": abs(expected["trace"]) / BATCH + abs(expected["grad_sq_norm"]), "trace": expected["trace"]}
    for name, value in expected.items():
        tolerance = rel * scale.get(name, abs(value))
        if name.endswith("scatter"):
            tolerance = 5 * rel * (abs(value) + scale["trace" if name == "trace_scatter" else "grad_sq_norm"] ** 2)
        assert abs(found[name] - value) <= tolerance, (name, found[name], value)


def parts(examples: int, microbatches: int) -> list:
    """Positions of the examples of each microbatch: in a row on TensorFlow, with a stride on JAX; the rest is last."""
    size = -(-examples // microbatches)
    whole = np.arange(examples // size * size)
    rows = whole.reshape(-1, size) if TENSORFLOW else whole.reshape(size, -1).T
    return [*rows, *([np.arange(len(whole), examples)] if examples % size else [])]


def gradients(model, x, y) -> list[np.ndarray]:
    """Gradient of the mean loss for each trainable variable."""
    if TENSORFLOW:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()(y, model(x, training=True))
        found = tape.gradient(value, model.trainable_weights)
    else:
        import jax

        rest = [variable.value for variable in model.non_trainable_variables]
        found = jax.grad(lambda values: loss()(y, model.stateless_call(values, rest, x, training=True)[0]))(
            [variable.value for variable in model.trainable_variables]
        )
    return [to_numpy(gradient) for gradient in found]


def train_by_hand(model, microbatches, x=X, y=Y, batch_size=BATCH, epochs=2, keep=lambda index: True) -> list:
    """Gradient descent with gradients of microbatches at the same weights; (grad_sq_norm, trace, examples) by step.

    `keep` chooses the trainable variables that are measured, by position.
    """
    measurements = []
    for _ in range(epochs):
        for start in range(0, len(x), batch_size):
            batch_x, batch_y = x[start : start + batch_size], y[start : start + batch_size]
            chosen = parts(len(batch_x), microbatches)
            small = [gradients(model, batch_x[part], batch_y[part]) for part in chosen]
            sizes = np.array([len(part) for part in chosen], "float64")
            flat = [np.concatenate([g.ravel() for index, g in enumerate(one) if keep(index)]) for one in small]
            measurements.append([*reference.measurement(flat, sizes), len(batch_x)])
            for index, variable in enumerate(model.trainable_variables):
                mean = sum(size * one[index] for size, one in zip(sizes, small, strict=True)) / sizes.sum()
                variable.assign(to_numpy(variable) - RATE * mean)
    return measurements


def assert_same_training(plain, wrapped, atol=5e-6, logs=2e-5, **fit_arguments):
    """Both models, compiled, end with the same weights and report the same losses and metrics."""
    start = weights(plain) if plain.built else None
    expected, found = fit(plain, **fit_arguments), fit(wrapped, **fit_arguments)
    assert_all_close(weights(wrapped), weights(plain), atol)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=logs, atol=logs, err_msg=name)
    if start is not None:
        trained = zip(start, weights(plain), strict=True)
        assert any(np.abs(end - begin).max() > 1e-3 for begin, end in trained), "nothing was trained"
    return found
