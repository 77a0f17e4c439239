"""Ranges of activations that are measured before quantization-aware training."""

import re

import numpy as np
import pytest

from keras_lsb import quantization
from tests.quantization_problem import examples, functional, needs_tfmot
from tests.support import keras

pytestmark = [needs_tfmot]


def wide():
    """Activations up to some hundreds, one of them a sum, and one without a layer of its own."""
    layers = keras.layers

    def build(inputs):
        value = layers.Conv2D(4, 3, padding="same", activation="relu", kernel_initializer="ones")(inputs)
        value = layers.BatchNormalization()(layers.Add()([value, layers.Conv2D(4, 1)(value)]))
        return layers.Dense(3, kernel_initializer="ones")(layers.Flatten()(layers.ReLU()(value)))

    keras.utils.set_random_seed(11)
    return functional((4, 4, 2), build)


def apart(one, other, data) -> float:
    """Largest difference of two predictions, over the range of the first."""
    expected = one.predict(data, verbose=0)
    return np.abs(other.predict(data, verbose=0) - expected).max() / np.ptp(expected)


def ranges(model) -> dict:
    """The ranges of activations by name."""
    names = re.compile(r"(output|activation|quantize_layer(_\d+)?)_(min|max):")
    return {one.name: float(one) for one in model.weights if names.search(one.name)}


def range_of(found: dict, layer: str) -> list[float]:
    """[minimum, maximum] of the only activation of a layer."""
    return [value for end in ("_min", "_max") for name, value in found.items() if layer in name and end in name]


@pytest.fixture(scope="module")
def float_model():
    return wide()


def test_predictions_are_near_those_in_float_from_the_start(float_model):
    data = 8 * examples(float_model, 32)
    assert apart(float_model, quantization.quantize_model(float_model), data) > 0.3, "tfmot cuts off at 6"
    calibrated = quantization.quantize_model(float_model, data)
    assert apart(float_model, calibrated, data) < 0.06
    file = quantization.to_tflite(calibrated)
    (output,) = quantization.verify(file, calibrated, data[:8]).outputs
    assert output.largest <= 2


def test_ranges_are_the_least_and_the_largest_of_all_batches(float_model):
    data = 8 * examples(float_model, 32)
    model = quantization.quantize_model(float_model)
    others = [one.numpy() for one in model.weights if one.name not in ranges(model)]
    quantization.calibrate(model, [data[:16], data[16:]])
    found = ranges(model)
    assert range_of(found, "quantize_layer") == [data.min(), data.max()]
    logits = float_model.predict(data, verbose=0)
    steps = 255 / np.ptp(logits)
    low, high = range_of(found, "dense")
    assert abs(low - min(0, logits.min())) * steps < 10
    assert abs(high - max(0, logits.max())) * steps < 10
    for before, after in zip(others, (one for one in model.weights if one.name not in found), strict=True):
        np.testing.assert_array_equal(before, after)


def test_training_goes_on_from_the_ranges(float_model):
    data = 8 * examples(float_model, 32)
    model = quantization.quantize_model(float_model, data)
    before = ranges(model)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(data, np.zeros((32, 3)), batch_size=16, verbose=0)
    after = ranges(model)
    assert after != before
    for name, value in after.items():
        assert abs(value - before[name]) < 0.02 * max(1, abs(before[name])), name


@pytest.mark.parametrize(
    ("data", "message"), [([], "a batch of examples"), (np.full((4, 4, 4, 2), np.nan, "float32"), "finite activations")]
)
def test_bad_data_leaves_the_ranges(float_model, data, message):
    model = quantization.quantize_model(float_model)
    before = ranges(model)
    with pytest.raises(ValueError, match=message):
        quantization.calibrate(model, data)
    assert ranges(model) == before
    assert np.isfinite(model.predict(examples(float_model), verbose=0)).all(), "the quantizers are back"


def test_a_model_in_float_is_refused(float_model):
    with pytest.raises(ValueError, match="quantize_model"):
        quantization.calibrate(float_model, examples(float_model))
