"""Helpers that let a test read the same in both flavours of Keras and on JAX."""

import numpy as np
import pytest

from keras_lsb import _keras

keras, ops, LEGACY, BACKEND = _keras.keras, _keras.ops, _keras.LEGACY, _keras.BACKEND
TENSORFLOW = BACKEND == "tensorflow"


def tensorflow_only(what: str):
    """Marks a test of something that only the TensorFlow backend has; `what` names it in the report of skips."""
    return pytest.mark.skipif(not TENSORFLOW, reason=f"{what} needs the TensorFlow backend, this is {BACKEND}")


def keras3_only(what: str):
    """Marks a test of something that tf_keras does not have; `what` names it in the report of skips."""
    return pytest.mark.skipif(LEGACY, reason=f"{what} exists in Keras 3 only, this is tf_keras")


def legacy_only(what: str):
    """Marks a test of something that Keras 3 does not have; `what` names it in the report of skips."""
    return pytest.mark.skipif(not LEGACY, reason=f"{what} exists in tf_keras only, this is Keras 3")


def make_variable(value, path: str = "layer/kernel", dtype: str = "float32"):
    """A variable of the flavour whose path is `path`."""
    value = np.asarray(value)
    if LEGACY:
        import tensorflow as tf

        return tf.Variable(tf.cast(value, dtype), name=path)
    *scopes, name = path.split("/")
    if not scopes:
        return keras.Variable(value, dtype=dtype, name=name)
    with keras.name_scope(scopes[0]):
        return make_variable(value, "/".join([*scopes[1:], name]), dtype)


def to_numpy(array) -> np.ndarray:
    """A variable or tensor of any flavour and float type as a float64 array."""
    array = array.numpy() if hasattr(array, "numpy") else ops.convert_to_numpy(array)
    return np.asarray(array).astype("float64")


def to_tensor(value, dtype: str = "float32"):
    """A tensor of the backend; None stays None."""
    return None if value is None else ops.cast(ops.convert_to_tensor(np.asarray(value)), dtype)


def with_slots(model):
    """The compiled model with all variables of its optimizer: in want of them the first step is traced twice."""
    if model.built:
        model.optimizer.build(model.trainable_variables)
    return model


def apply(optimizer, gradients, variables):
    """One update by hand. `gradients` are arrays, tensors or None, one per variable."""
    gradients = [
        to_tensor(gradient, _keras.dtype_name(variable))
        if isinstance(gradient, (np.ndarray, float, list))
        else gradient
        for gradient, variable in zip(gradients, variables, strict=True)
    ]
    optimizer.apply_gradients(zip(gradients, variables, strict=True))


def error_of(function) -> str:
    """The error that a call ends in, empty where it does not."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def slots(optimizer, name: str) -> list[np.ndarray]:
    """The slots of one name, in the order of the variables."""
    return [to_numpy(slot) for slot in optimizer._slots[name]]


def snapshot(optimizer, variables) -> list[np.ndarray]:
    """Everything that an update may change: weights, slots and the number of updates."""
    kept = [to_numpy(slot) for name in optimizer.slot_names for slot in optimizer._slots[name]]
    return [*map(to_numpy, variables), *kept, to_numpy(ops.cast(optimizer.iterations, "int32"))]


def assert_close(actual, expected, atol: float):
    """Absolute comparison, entry by entry."""
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=atol)


def assert_all_close(actual, expected, atol: float):
    """Absolute comparison of two lists of arrays."""
    for left, right in zip(actual, expected, strict=True):
        assert_close(left, right, atol)
