"""Trained models with the normalizations that become integers, without tfmot."""

from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Layer, Model
from keras_lsb.quantization.flatten import flatten_model
from keras_lsb.quantization.normalization import FixedPointNormalization

_FOLDING = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense")


def fixed_point_model(model: Model) -> Model:
    """The same model with a `FixedPointNormalization` for each batch normalization that LiteRT's converter cannot fold.

    Those that directly follow a convolution or dense layer without an activation, to which they alone listen, stay: the
    converter folds them into its kernel. Weights are copied. For `to_tflite` with representative data, and for
    training before it; in tf_keras, `quantize_model` trains with quantized activations as well.

    Args:
        model: Sequential or functional, built; of either Keras. In tf_keras, nested models are flattened.

    Raises:
        ValueError: a model without a graph of layers; a normalization whose channels are not last.
    """
    if not isinstance(model, _keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            f"`model` must be Sequential or functional, with known inputs. Received: {type(model).__name__}"
        )
    options = {}
    if _keras.LEGACY:
        model = flatten_model(model)
    else:
        options["recursive"] = True
    made = _keras.keras.models.clone_model(model, clone_function=_replaced, **options)
    made.set_weights(model.get_weights())
    for layer, copy in zip(model._flatten_layers(), made._flatten_layers(), strict=True):
        copy.trainable = layer.trainable
    return made


def _replaced(layer: Layer) -> Layer:
    """A copy of a layer, of our class where it is a normalization that does not fold."""
    stock = isinstance(layer, _keras.BatchNormalization) and not isinstance(layer, FixedPointNormalization)
    kind = FixedPointNormalization if stock and not _folds(layer) else type(layer)
    return kind.from_config(layer.get_config())


def _folds(layer: Layer) -> bool:
    """Whether the converter takes a normalization into the kernel of the layer in front of it."""
    if len(layer._inbound_nodes) != 1:
        return False
    parents = layer._inbound_nodes[0].parent_nodes
    before: Any = getattr(parents[0], "operation", None) or getattr(parents[0], "layer", None)
    if type(before).__name__ not in _FOLDING or len(before._outbound_nodes) > 1:
        return False
    config = before.get_config()
    plain = config.get("activation") in (None, "linear")
    dilation = config.get("dilation_rate", 1)
    return plain and all(rate == 1 for rate in (dilation if isinstance(dilation, (list, tuple)) else [dilation]))
