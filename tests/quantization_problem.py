"""Small models with batch normalization, random weights and data, for the tests of quantization."""

import numpy as np

from keras_lsb import _keras
from keras_lsb.quantization import FixedPointNormalization, to_tflite
from keras_lsb.quantization.litert import LiteRTFile
from tests.support import keras, legacy_only

needs_tfmot = legacy_only("quantization-aware training by tfmot")
FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64")


def randomized(model, seed=3):
    """The model with random statistics, gammas of both signs, and offsets."""
    random = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        count = layer.moving_mean.shape[0]
        layer.moving_mean.assign(random.normal(0, 0.4, count))
        layer.moving_variance.assign(random.uniform(0.3, 1.5, count))
        if layer.gamma is not None:
            layer.gamma.assign(random.uniform(0.5, 1.5, count) * random.choice([1, 1, 1, -1], count))
        if layer.beta is not None:
            layer.beta.assign(random.normal(0, 0.3, count))
    return model


def examples(model, count=16, seed=5):
    """Random inputs for a model with one input."""
    shape = [size or 4 for size in model.inputs[0].shape[1:]]
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def functional(shape, build):
    """A model of random weights from a function of its input."""
    inputs = keras.Input(shape)
    return randomized(keras.Model(inputs, build(inputs)))


def fixed_points(model) -> list:
    """Names of the normalizations that become integers."""
    return [layer.name for layer in model._flatten_layers() if isinstance(layer, FixedPointNormalization)]


def operators(content) -> list[tuple[str, bool]]:
    """(name, whether it touches a float tensor) of each operator of a file."""
    file = LiteRTFile(content)
    return [
        (
            file.operator_name(one),
            any(file.tensor_type(i) in FLOATS for i in [*one.inputs, *one.outputs] if i >= 0),
        )
        for one in file.operators
    ]


def converted(model, kernel="xnnpack") -> bytes:
    """The file of a model that was trained with quantization, or else is measured on its examples."""
    data = None if _keras.LEGACY and any("Quantize" in type(one).__name__ for one in model.layers) else examples(model)
    return to_tflite(model, data, target_kernel=kernel)
