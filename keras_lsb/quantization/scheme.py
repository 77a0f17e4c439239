"""The quantization scheme for tfmot, built on its public extension points. Importing this module imports tfmot.

tfmot folds a batch normalization into the convolution before it, and rejects or leaves in float every other one. Here
those become `FixedPointNormalization`: first where tfmot would take them for foldable and LiteRT's converter does not
fold them, then, after tfmot's own transforms have claimed theirs, all that are left.
"""

from collections.abc import Callable
from typing import Any, Self

import tensorflow_model_optimization as tfmot

from keras_lsb import _keras
from keras_lsb._types import Layer, Model
from keras_lsb.quantization.normalization import FixedPointNormalization
from keras_lsb.quantization.refusal import refuse_after, refuse_before

_tools = tfmot.quantization.keras
_transforms = _tools.graph_transformations.transforms
_Pattern, _Transformer = _transforms.LayerPattern, _tools.graph_transformations.model_transformer.ModelTransformer
_QuantizeConfig: Any = _tools.QuantizeConfig
_Transform: Any = _transforms.Transform
_LayoutTransform: Any = _tools.default_8bit.Default8BitQuantizeLayoutTransform
_Scheme: Any = _tools.default_8bit.Default8BitQuantizeScheme
_NORMALIZATIONS = "(BatchNormalization|SyncBatchNormalization)"
_RELUS: tuple = (("ReLU", {}), ("Activation", {"activation": "(relu|relu6)"}))
_OURS = "(keras_lsb>)?FixedPointNormalization"


class _Config(_QuantizeConfig):
    """Quantizes no weight and no activation function of a layer: its kernel is quantized by the layer itself."""

    def get_weights_and_quantizers(self, layer: Layer) -> list:
        """None."""
        return []

    def get_activations_and_quantizers(self, layer: Layer) -> list:
        """None."""
        return []

    def set_quantize_weights(self, layer: Layer, quantize_weights: list) -> None:
        """Nothing to set."""
        return None  # autograph cannot convert a body that is a docstring only

    def set_quantize_activations(self, layer: Layer, quantize_activations: list) -> None:
        """Nothing to set."""
        return None  # autograph cannot convert a body that is a docstring only

    def get_output_quantizers(self, layer: Layer) -> list:
        """None."""
        return []

    def get_config(self) -> dict:
        """No arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> Self:
        """Inverse of `get_config`."""
        return cls(**config)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(type(self))


@_keras.register_by_class
class FixedPointOutputConfig(_Config):
    """Quantizes the output of a `FixedPointNormalization`: 8 bits, one range, a moving average of it."""

    def get_output_quantizers(self, layer: Layer) -> list:
        """One."""
        average = _tools.quantizers.MovingAverageQuantizer
        return [average(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)]


@_keras.register_by_class
class FixedPointNoOutputConfig(_Config):
    """Quantizes nothing: a ReLU follows, which the operator takes in and after which the output is quantized."""


@_keras.register_by_class
class KernelOnlyConfig(_Config):
    """Quantizes the kernel of a convolution or dense layer, and leaves the output to the ReLU that follows.

    tfmot leaves the kernel in float there, so that training does not see the kernel that ships.

    Args:
        disable_per_axis: see `quantize_scheme`.
    """

    def __init__(self, disable_per_axis: bool = False):
        self.disable_per_axis = disable_per_axis

    def get_weights_and_quantizers(self, layer: Layer) -> list:
        """As tfmot's config of the layer."""
        return self._stock(layer).get_weights_and_quantizers(layer)

    def set_quantize_weights(self, layer: Layer, quantize_weights: list) -> None:
        """As tfmot's config of the layer."""
        self._stock(layer).set_quantize_weights(layer, quantize_weights)

    def _stock(self, layer: Layer) -> Any:
        return _registry(self.disable_per_axis).get_quantize_config(layer)

    def get_config(self) -> dict:
        """The argument."""
        return {"disable_per_axis": self.disable_per_axis}


class _QuantizeKernel(_Transform):
    """Quantizes the kernel in front of a ReLU, which tfmot's transforms have left in float."""

    def __init__(self, relu: tuple, disable_per_axis: bool):
        self._relu, self._disable_per_axis = relu, disable_per_axis

    def pattern(self) -> Any:
        """The ReLU after the layer."""
        return _Pattern(*self._relu, inputs=[_Pattern("(Conv2D|DepthwiseConv2D|Dense)")])

    def replacement(self, match_layer: Any) -> Any:
        """The same layers; the first with our config in place of tfmot's that quantizes nothing."""
        (node,) = match_layer.input_layers
        if type(node.metadata.get("quantize_config")).__name__ == "NoOpQuantizeConfig":
            node.metadata["quantize_config"] = KernelOnlyConfig(self._disable_per_axis)
        return match_layer


class _Swap(_Transform):
    """Makes a batch normalization that has no config of its own a `FixedPointNormalization`; `before` it are these."""

    def __init__(self, *before: Any, where: Callable[[dict], bool] = lambda config: True):
        self._before, self._where = list(before), where

    def pattern(self) -> Any:
        """The batch normalization, with the layers in front of it where they matter."""
        return _Pattern(_NORMALIZATIONS, inputs=self._before)

    def replacement(self, match_layer: Any) -> Any:
        """The same layer of our class; unchanged where the layer in front is not meant."""
        if match_layer.metadata.get("quantize_config") is not None:
            return match_layer
        if not all(self._where(node.layer["config"]) for node in match_layer.input_layers):
            return match_layer
        layer = match_layer.layer
        if layer["class_name"] == "SyncBatchNormalization":
            layer["config"]["synchronized"] = True
        layer["class_name"] = "keras_lsb>FixedPointNormalization"
        return match_layer

    def custom_objects(self) -> dict:
        """What the model is rebuilt with."""
        return {"FixedPointNormalization": FixedPointNormalization}


class _QuantizeOutput(_Transform):
    """Quantizes the output of each `FixedPointNormalization` that has no config."""

    def pattern(self) -> Any:
        """The layer, whatever is in front of it."""
        return _Pattern(_OURS)

    def replacement(self, match_layer: Any) -> Any:
        """The same layers, with a config."""
        return self._configured(match_layer, match_layer, FixedPointOutputConfig)

    def _configured(self, head: Any, normalization: Any, config: Any) -> Any:
        if normalization.metadata.get("quantize_config") is None:
            normalization.metadata["quantize_config"] = config()
        return head


class _LeaveOutputToRelu(_QuantizeOutput):
    """Leaves the output unquantized where the operator takes in the ReLU that follows."""

    def __init__(self, relu: tuple):
        self._relu = relu

    def pattern(self) -> Any:
        """The ReLU after the layer."""
        return _Pattern(*self._relu, inputs=[_Pattern(_OURS)])

    def replacement(self, match_layer: Any) -> Any:
        """The same layers, with a config; unchanged where LiteRT's operator has no such activation."""
        config = match_layer.layer["config"]
        plain = not config.get("negative_slope") and not config.get("threshold")
        if not plain or config.get("max_value") not in (None, 6):
            return match_layer
        return self._configured(match_layer, match_layer.input_layers[0], FixedPointNoOutputConfig)


def _dilated(config: dict) -> bool:
    return any(rate != 1 for rate in config.get("dilation_rate", ()))


class FixedPointLayoutTransform(_LayoutTransform):
    """tfmot's transforms of the model, between ours.

    Args:
        per_axis: whether kernels have one scale per channel; without, what would fold ends in float, so none does.
    """

    def __init__(self, per_axis: bool = True):
        self._per_axis = per_axis

    def apply(self, model: Model, layer_quantize_map: dict) -> tuple[Model, dict]:
        """(transformed model, its layers' metadata); see tfmot.

        Raises:
            ValueError: a nested model, or a layer that would be rejected; with its name and what to do.
        """
        refuse_before(model, layer_quantize_map)
        with _tools.quantize_scope():  # the model is rebuilt with tfmot's objects in it
            model, layer_quantize_map = self._apply(model, layer_quantize_map)
        refuse_after(model, layer_quantize_map, _registry())
        return model, layer_quantize_map

    def _apply(self, model: Model, layer_quantize_map: dict) -> tuple[Model, dict]:
        not_folded = [
            _Swap(_Pattern("(Dense|Conv2DTranspose)")),
            _Swap(_Pattern("(Conv2D|DepthwiseConv2D)"), where=_dilated if self._per_axis else lambda config: True),
        ]
        model, layer_quantize_map = _transformed(model, layer_quantize_map, not_folded)
        model, layer_quantize_map = super().apply(model, layer_quantize_map)
        model, layer_quantize_map = _transformed(model, layer_quantize_map, [_Swap()])
        before_relu = [_LeaveOutputToRelu(relu) for relu in _RELUS]
        before_relu += [_QuantizeKernel(relu, not self._per_axis) for relu in _RELUS]
        model, layer_quantize_map = _transformed(model, layer_quantize_map, before_relu)
        return _transformed(model, layer_quantize_map, [_QuantizeOutput()])


class FixedPointScheme(_Scheme):
    """tfmot's scheme of 8 bits, with every batch normalization an integer operator.

    Args:
        disable_per_axis: see `quantize_scheme`.
    """

    def __init__(self, disable_per_axis: bool = False):
        super().__init__(disable_per_axis)
        self._disable_per_axis = disable_per_axis

    def get_layout_transformer(self) -> FixedPointLayoutTransform:
        """Ours."""
        return FixedPointLayoutTransform(per_axis=not self._disable_per_axis)


def _registry(disable_per_axis: bool = False) -> Any:
    return _tools.default_8bit.Default8BitQuantizeRegistry(disable_per_axis)


def _transformed(model: Model, layer_quantize_map: dict, transforms: list) -> Any:
    return _Transformer(model, transforms, set(layer_quantize_map), layer_quantize_map).transform()
