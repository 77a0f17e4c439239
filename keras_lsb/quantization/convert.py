"""Keras models as LiteRT files with integers only, and in them the integers of the normalizations."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._checks import choice
from keras_lsb._types import Layer, Model, Structure, Tensor
from keras_lsb.fixedpoint import Int8Affine, float_affine, solve_depthwise
from keras_lsb.fixedpoint.depthwise import DEPTHWISE_KERNELS
from keras_lsb.quantization.data import batches
from keras_lsb.quantization.litert import LiteRTFile
from keras_lsb.quantization.normalization import FixedPointNormalization

INPUT_NAME = "input_{}"
_SCOPE = "fixed_point_normalization_{}"
# Not all that is computed in the scope: a reshape in front can give its name to the operator before it.
_TAG = re.compile(r"fixed_point_normalization_(\d+)/(?:depthwise|BiasAdd|FakeQuant)")


def to_tflite(model: Model, representative_data: Structure = None, *, target_kernel: str = "xnnpack") -> bytes:
    """A LiteRT file of a model, int8 from input to output, for one example at a time.

    The integers of each `FixedPointNormalization` are chosen so that one of LiteRT's kernels computes the exact rounded
    outputs, for every input where that is possible; `verify` says for which channels. They are exact on that kernel
    only. The scales of activations are those that quantization-aware training has found, or else are measured on data.

    Args:
        model: Sequential or functional, from `quantize_model` or with layers of its own; of either Keras.
        representative_data: inputs to measure the ranges of activations on: an array of examples, or an iterable of
            batches, each an array or a list of one array per input. Not for quantization-aware models.
        target_kernel: "xnnpack", the interpreter's default on CPU, "builtin" or "reference".

    Raises:
        ValueError: representative data that is missing; an unknown kernel; a model without fixed inputs; a recurrent
            layer of Keras 3 that is not unrolled; a layer whose operator is not in the converted file.
        ImportError: without ai-edge-litert.
    """
    choice("target_kernel", target_kernel, DEPTHWISE_KERNELS)
    if not getattr(model, "inputs", None):
        raise ValueError(
            "`model` must be Sequential or functional, with known inputs. "
            f"Received: {type(model).__name__} {getattr(model, 'name', '')!r}"
        )
    trained = is_quantization_aware(model)
    if representative_data is None and not trained:
        raise ValueError(
            "`representative_data` must hold examples on which the ranges of activations are measured: the model has "
            "had no quantization-aware training. Received: representative_data=None"
        )
    if not _keras.LEGACY:
        _refuse_loops(model)
    layers = normalizations(model)
    with _tagged(layers):
        content = _convert(model, None if trained else _examples(representative_data, len(model.inputs)))
    return _with_exact_integers(content, layers, target_kernel)


def is_quantization_aware(model: Model) -> bool:
    """Whether tfmot has quantized the model."""
    return any(type(layer).__name__.startswith("Quantize") for layer in model._flatten_layers())


def normalizations(model: Model) -> list[FixedPointNormalization]:
    """The layers of a model and of models in it that become integers."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, FixedPointNormalization)]


def layer_affine(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset) of a normalization at inference, float64, shape (channels,)."""
    variables = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    values: list[Any] = [None if one is None else _keras.host_values([one])[0] for one in variables]
    gamma, beta, mean, variance = values
    try:
        return float_affine(gamma, beta, mean, variance, layer.epsilon)
    except ValueError as error:
        raise ValueError(f"Layer {layer.name!r} has no integers: {error}") from error


def operator_affine(file: LiteRTFile, operator: Any, layer: Layer) -> Int8Affine:
    """The affine of a layer between the int8 tensors of its operator."""
    ends, levels = (operator.inputs[0], operator.outputs[0]), file.activation_range(operator)
    input_scale, output_scale = (float(file.scale(index)[0]) for index in ends)
    input_point, output_point = (file.zero_point(index) for index in ends)
    scale, offset = layer_affine(layer)
    return Int8Affine(scale, offset, input_scale, output_scale, input_point, output_point, levels).checked()


def _refuse_loops(model: Any) -> None:
    """ValueError for a loop of Keras 3, at which TensorFlow's calibration ends the process instead."""
    for layer in model._flatten_layers():
        if isinstance(layer, _keras.keras.layers.RNN) and not layer.unroll:
            raise ValueError(
                f"Layer {layer.name!r} is a loop, in which the ranges of activations cannot be measured. "
                f"Make it with `unroll=True`. Received: {type(layer).__name__} with unroll=False"
            )


@contextlib.contextmanager
def _tagged(layers: Iterable[Layer]) -> Iterator[None]:
    """Has each layer compute in a scope of its own, whose name the tensors of the file carry."""
    for index, layer in enumerate(layers):
        layer.export_scope = _SCOPE.format(index)
    try:
        yield
    finally:
        for layer in layers:
            layer.export_scope = None


def _convert(model: Model, examples: int | Tensor) -> bytes:
    tensorflow = _keras.tensorflow
    lite = tensorflow.lite
    specs = [
        tensorflow.TensorSpec([1, *tensor.shape[1:]], tensor.dtype, name=INPUT_NAME.format(index))
        for index, tensor in enumerate(model.inputs)
    ]

    @tensorflow.function(input_signature=specs, autograph=False)
    def infer(*inputs: Tensor) -> Structure:
        return model(_keras.packed_inputs(model, inputs), training=False)

    root = tensorflow.Module()
    root.kept = [infer, [_keras.native(variable) for variable in model.variables]]
    converter = lite.TFLiteConverter.from_concrete_functions([infer.get_concrete_function()], root)
    converter.optimizations = [lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tensorflow.int8
    if examples is not None:
        converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = examples
    return converter.convert()


def _examples(data: Structure, inputs: int) -> Callable[[], Iterator[dict[str, np.ndarray]]]:
    """A function that yields the examples one at a time, each a dictionary of the arrays of all inputs by name."""

    def examples() -> Iterator[dict[str, np.ndarray]]:
        for batch in batches(data, inputs):
            for index in range(len(batch[0])):
                yield {
                    INPUT_NAME.format(place): one[index : index + 1].astype("float32")
                    for place, one in enumerate(batch)
                }

    return examples


def _with_exact_integers(content: bytes, layers: Sequence[Layer], kernel: str) -> bytes:
    file = LiteRTFile(content)
    found = {}
    for operator in file.depthwise_operators():
        index = _layer_index(file, operator)
        if index is None:
            continue
        affine = operator_affine(file, operator, layers[index])
        _require_same(file, operator, affine, layers[index])
        file.set_depthwise(operator, *solve_depthwise(affine, kernel=kernel)[:3])
        found[int(operator.outputs[0])] = index
    for index, layer in enumerate(layers):
        if index not in found.values():
            raise ValueError(
                "The converted file has no int8 operator of a normalization, so that no integers can be chosen for it. "
                f"Received: layer {layer.name!r}"
            )
    file.set_notes({"kernel": kernel, "layers": {str(tensor): index for tensor, index in found.items()}})
    return file.content()


def _layer_index(file: LiteRTFile, operator: Any) -> int | None:
    """Which layer an operator is, from the names of its tensors; constants can be shared, so that they come last."""
    for index in (operator.outputs[0], operator.inputs[2], operator.inputs[1]):
        tags = set(_TAG.findall(file.tensor_name(index)))
        if len(tags) == 1:
            return int(tags.pop())
    return None


def _require_same(file: LiteRTFile, operator: Any, affine: Int8Affine, layer: Layer) -> None:
    """Requires that the operator holds the layer's kernel, as nearly as the converter can."""
    step = file.scale(operator.inputs[1]).astype("float64")
    kernel = file.values(operator.inputs[1], "int8") * step
    if kernel.shape == affine.scale.shape and (np.abs(kernel - affine.scale) <= step).all():
        return
    raise ValueError(
        "The converter has merged a multiplication beside a normalization into it, such as a Rescaling layer, so that "
        "its integers cannot be chosen: have a convolution or dense layer take that in. "
        f"Received: layer {layer.name!r}, operator {file.tensor_name(operator.outputs[0])!r}"
    )
