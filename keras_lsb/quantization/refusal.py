"""Layers that tfmot rejects, or accepts and leaves in floating point: errors that name them and say how to go on."""

from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Layer, Model

_INSIDE = ("linear", "relu", "softmax", "sigmoid", "tanh", "gelu", "NoOpActivation")
_INSIDE_TRANSPOSED = ("linear", "softmax", "sigmoid", "tanh", "gelu", "NoOpActivation")
_ALONE = ("linear", "relu", "relu6", "softmax", "sigmoid", "tanh", "gelu", "swish")
_WITH_ACTIVATION = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense", "Conv2DTranspose")


def refuse_before(model: Model, layer_quantize_map: dict) -> None:
    """ValueError for what would end in floating point, or fail without a name, in an annotated model of tf_keras."""
    for layer in model.layers:
        if isinstance(layer, _keras.Model):
            raise ValueError(
                f"The model {layer.name!r} is a layer of another model, which tfmot leaves in float. "
                "Use `quantize_model`, or annotate what `flatten_model` returns. "
                f"Received: {type(layer).__name__} {layer.name!r} in {model.name!r}"
            )
        annotated = layer.name in layer_quantize_map
        if annotated and not layer_quantize_map[layer.name].get("quantize_config"):
            _refuse_float(layer)


def _refuse_float(layer: Layer) -> None:
    kind = type(layer).__name__
    activation = getattr(layer, "activation", None)
    name = getattr(activation, "__name__", type(activation).__name__)
    if kind == "ReLU" and (layer.max_value not in (None, 6) or layer.threshold):
        given = f"max_value={layer.max_value}, threshold={layer.threshold}"
        _refuse(layer, "ends in float with these arguments", "Use `ReLU()` or `ReLU(6.0)`", given)
    if kind == "Activation" and name not in _ALONE:
        _refuse(layer, "has an activation that tfmot does not quantize", f"Use one of {_ALONE}", f"activation={name}")
    if kind in _WITH_ACTIVATION and name not in (_INSIDE_TRANSPOSED if kind == "Conv2DTranspose" else _INSIDE):
        remedy = "Leave it out, and put an `Activation` or `ReLU` layer behind"
        _refuse(layer, "ends in float, or fails, with this activation inside", remedy, f"activation={name}")
    if kind == "SeparableConv1D":
        remedy = "Use `SeparableConv2D` between two `Reshape` layers"
        _refuse(layer, "is replaced by `Lambda` layers, which do not load again", remedy, kind)


def _refuse(layer: Layer, what: str, remedy: str, received: str) -> None:
    raise ValueError(f"Layer {layer.name!r} {what}. {remedy}. Received: {type(layer).__name__} with {received}")


def refuse_after(model: Model, layer_quantize_map: dict, registry: Any) -> None:
    """ValueError for annotated layers that have no config once all transforms are done.

    Args:
        registry: what tfmot has configs for.
    """
    for layer in model.layers:
        kind = type(layer).__name__
        wanted = layer.name in layer_quantize_map and kind not in ("InputLayer", "QuantizeLayer")
        if not wanted or layer_quantize_map[layer.name].get("quantize_config") or registry.supports(layer):
            continue
        hint = (
            "It is used more than once: give each place a layer of its own."
            if len(layer._inbound_nodes) > 1
            else "Annotate it with a `QuantizeConfig` of your own, or annotate the other layers only, "
            "which leaves this one in float."
        )
        raise ValueError(f"Layer {layer.name!r} has no quantization in tfmot. {hint} Received: {kind} {layer.name!r}")
