"""Batch normalization whose inference is a depthwise convolution with a kernel of 8 bits."""

import subprocess
import sys

import numpy as np
import pytest

from keras_lsb import _keras
from keras_lsb.quantization import FixedPointNormalization
from tests.quantization_problem import functional, randomized
from tests.support import TENSORFLOW, keras, keras3_only, tensorflow_only, to_numpy

layers = keras.layers
SHAPES = [(6,), (4, 3), (None, 3), (5, 5, 3)]
needs_tensorflow = tensorflow_only("the layer that LiteRT files are made of")


def pair(shape, **options):
    """A `FixedPointNormalization` and a `BatchNormalization` with the same weights, as models."""
    ours = functional(shape, FixedPointNormalization(**options))
    stock = functional(shape, layers.BatchNormalization(**options))
    stock.set_weights(ours.get_weights())
    return ours, stock


def data(shape, count=8):
    return np.random.default_rng(1).normal(size=(count, *(size or 7 for size in shape))).astype("float32")


@needs_tensorflow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False, "epsilon": 0.1}])
def test_inference_is_that_of_batch_normalization(shape, options):
    ours, stock = pair(shape, **options)
    x = data(shape)
    expected = stock.predict(x, verbose=0)
    np.testing.assert_allclose(ours.predict(x, verbose=0), expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@needs_tensorflow
@pytest.mark.parametrize("shape", SHAPES)
def test_training_is_that_of_batch_normalization(shape):
    models = pair(shape, momentum=0.9)
    x = data(shape)
    outputs = [to_numpy(model(x, training=True)) for model in models]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    for ours, stock in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(ours, stock, atol=1e-6)
    assert np.abs(outputs[0] - models[0].predict(x, verbose=0)).max() > 0.1


@needs_tensorflow
def test_a_frozen_layer_infers():
    ours, _ = pair((6,))
    ours.layers[-1].trainable = False
    x = data((6,))
    before = ours.get_weights()
    np.testing.assert_allclose(to_numpy(ours(x, training=True)), ours.predict(x, verbose=0), atol=1e-6)
    for old, new in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@needs_tensorflow
def test_kernel_of_a_small_gamma_has_steps_of_its_own():
    """A scale of 1e-7 with an offset of 1 is below half a step of 1e-4 / 127; one of 1e-6 without offset is kept."""
    layer = FixedPointNormalization(epsilon=0.0)
    layer.build((None, 3))
    layer.set_weights([np.array(values, "float32") for values in ([1e-7, 1e-6, 2.0], [1, 0, 1], [0, 0, 0], [1, 1, 1])])
    found = to_numpy(layer(np.full((1, 3), 1000.0, "float32")))
    np.testing.assert_allclose(found, [[1.0, 1e-3, 2001.0]], rtol=1e-6)


@needs_tensorflow
def test_gradients_of_inference_reach_gamma_and_beta():
    import tensorflow as tf

    ours, stock = pair((6,))
    found = []
    for model in (ours, stock):
        model.layers[-1].trainable = True
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(data((6,)), training=False) ** 2)
        gradients = tape.gradient(loss, [_keras.native(v) for v in model.layers[-1].trainable_variables])
        found.append([to_numpy(gradient) for gradient in gradients])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@needs_tensorflow
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5, 5), 1), ((4, 3), 1), ((2, 3, 4, 5), -1)], ids=["first", "middle", "rank 5"]
)
def test_layouts_that_are_refused(shape, axis):
    with pytest.raises(ValueError, match=r"'odd' takes inputs of rank 2, 3 or 4 with the channels last.*Received"):
        functional(shape, FixedPointNormalization(axis=axis, name="odd"))


@needs_tensorflow
def test_config_round_trip():
    layer = FixedPointNormalization(momentum=0.8, epsilon=0.01, center=False, name="same")
    again = FixedPointNormalization.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert not type(layer).__name__.startswith("BatchNormalization")


@needs_tensorflow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_saved_and_loaded(tmp_path, suffix):
    model, x = randomized(functional((4, 3), FixedPointNormalization())), data((4, 3))
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    again = keras.models.load_model(path)
    assert isinstance(again.layers[-1], FixedPointNormalization)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


@needs_tensorflow
@keras3_only("float16 without a cast of the whole model")
def test_half_precision_keeps_its_type():
    layer = FixedPointNormalization(dtype="mixed_float16")
    found = layer(data((6,)).astype("float16"))
    assert _keras.keras3.backend.standardize_dtype(found.dtype) == "float16"


@pytest.mark.skipif(TENSORFLOW, reason="the refusal is of other backends, this is TensorFlow")
def test_other_backends_are_refused():
    with pytest.raises(ValueError, match=r"needs the TensorFlow backend.*Received: KERAS_BACKEND"):
        FixedPointNormalization()


def test_importing_the_room_imports_no_converter():
    """tfmot sets TF_USE_LEGACY_KERAS when it is imported: that must not happen behind a user's back."""
    code = (
        "import sys, keras_lsb.quantization\n"
        "names = {'tensorflow_model_optimization', 'ai_edge_litert', 'keras_lsb.quantization.scheme'}\n"
        "found = names & set(sys.modules)\n"
        "sys.exit(str(found) if found else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
