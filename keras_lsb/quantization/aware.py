"""Quantization-aware training with tfmot: the scheme, and the one call that quantizes a whole model."""

import importlib
from types import ModuleType
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Model, Structure
from keras_lsb.quantization.calibrate import calibrate
from keras_lsb.quantization.flatten import flatten_model


def quantize_scheme(*, disable_per_axis: bool = False) -> Any:
    """The scheme to hand to `tfmot.quantization.keras.quantize_apply(annotated_model, scheme)`.

    What tfmot folds stays folded. Every other annotated batch normalization becomes a `FixedPointNormalization`; one
    with a `QuantizeConfig` of its own, and one that is not annotated, is left as it is.

    Args:
        disable_per_axis: one scale for the kernel of a convolution instead of one per channel. Nothing is folded then:
            tfmot would leave such convolutions in float.

    Raises:
        ValueError: in Keras 3, which tfmot does not know.
        ImportError: without tensorflow-model-optimization.
    """
    return require_tfmot().FixedPointScheme(disable_per_axis)


def quantize_model(model: Model, representative_data: Structure = None) -> Model:
    """A model for quantization-aware training, with the weights of this one; its batch normalizations are integers.

    Layers of nested models are taken into the outer one. Layers that are annotated keep their configs; all others are
    annotated here.

    Args:
        model: Sequential or functional model of tf_keras, built.
        representative_data: inputs for `calibrate`, which sets the ranges of activations. Without, they start at -6 to
            6, as tfmot has them.

    Raises:
        ValueError: a model of Keras 3; a model or a layer that cannot be quantized, by name; see also `calibrate`.
        ImportError: without tensorflow-model-optimization.
    """
    scheme, tools = require_tfmot(), importlib.import_module("tensorflow_model_optimization").quantization.keras
    if not isinstance(model, _keras.Model):
        raise ValueError(
            "`model` must be a model of tf_keras; one of Keras 3 does without tfmot: give it "
            "`FixedPointNormalization` layers by `fixed_point_model`, and convert it by `to_tflite` with "
            "representative data. "
            f"Received: model={type(model).__module__}.{type(model).__name__}"
        )
    with tools.quantize_scope():
        annotated = tools.quantize_annotate_model(flatten_model(model))
        quantized = tools.quantize_apply(annotated, scheme.FixedPointScheme())
    if representative_data is not None:
        calibrate(quantized, representative_data)
    return quantized


def require_tfmot() -> ModuleType:
    """The module that needs tfmot; an error that says what to do where it cannot be had."""
    if not _keras.LEGACY:
        raise ValueError(
            "tfmot quantizes models of tf_keras only. Set TF_USE_LEGACY_KERAS=1 before TensorFlow is imported; or stay "
            "with Keras 3, give the model `FixedPointNormalization` layers by `fixed_point_model`, and convert it by "
            f"`to_tflite` with representative data. Received: Keras {_keras.keras.__version__}"
        )
    try:
        return importlib.import_module("keras_lsb.quantization.scheme")
    except ImportError as error:
        raise ImportError('tfmot is not installed: pip install "keras_lsb[tfmot]"') from error
