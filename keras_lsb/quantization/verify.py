"""A LiteRT file against the exact integers and against its Keras model."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._checks import choice
from keras_lsb._types import Layer, Model, Structure
from keras_lsb.fixedpoint.depthwise import DEPTHWISE_KERNELS
from keras_lsb.quantization.convert import normalizations, operator_affine
from keras_lsb.quantization.litert import LiteRTFile, interpreter
from keras_lsb.quantization.report import LayerReport, OutputReport, Report

_FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64")


def verify(tflite: bytes | str | Path, model: Model, data: Structure, *, target_kernel: str = "xnnpack") -> Report:
    """Runs a LiteRT file in the interpreter and says where it is not integer, and where its integers are not exact.

    Args:
        tflite: the file's bytes, or its path.
        model: the Keras model that it was made of.
        data: inputs to run it on, an array of examples or a list with one array per input.
        target_kernel: which of LiteRT's kernels runs it: "xnnpack", "builtin" or "reference".

    Returns:
        Operators, float operators, and mismatches in LSB for each normalization and each output.

    Raises:
        ValueError: an unknown kernel; data that are not the model's inputs.
        ImportError: without ai-edge-litert.
    """
    choice("target_kernel", target_kernel, DEPTHWISE_KERNELS)
    file = LiteRTFile(tflite)
    inputs = _inputs(model, data)
    layers = normalizations(model)
    placed = _placed(file, layers)
    ends = [*map(int, file.graph.outputs)]
    operators = Counter(file.operator_name(operator) for operator in file.operators)
    floats = tuple(_float_operators(file))
    between = [index for operator, _ in placed for index in (operator.inputs[0], operator.outputs[0])]
    file.show(between)
    values = _run(file.content(), model, inputs, [*ends, *between], target_kernel)
    found = {id(layer) for _, layer in placed}
    return Report(
        target_kernel,
        file.notes().get("kernel"),
        len(inputs[0]),
        dict(operators),
        floats,
        tuple(layer.name for layer in layers if id(layer) not in found),
        tuple(_layer_report(file, operator, layer, values, target_kernel) for operator, layer in placed),
        tuple(_output_reports(file, model, inputs, _ordered_outputs(file, ends), values)),
    )


def _inputs(model: Model, data: Structure) -> list[np.ndarray]:
    arrays = [np.asarray(one) for one in (data if isinstance(data, (list, tuple)) else [data])]
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    fits = len(arrays) == len(shapes) and all(
        array.ndim == len(shape) + 1 and len(array) > 0 for array, shape in zip(arrays, shapes, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`data` must hold examples for inputs of shapes {shapes}. "
            f"Received: arrays of shapes {[array.shape for array in arrays]}"
        )
    return arrays


def _placed(file: LiteRTFile, layers: Sequence[Layer]) -> list[tuple]:
    """(operator, layer) of each normalization: as `to_tflite` has noted, or else by its kernel and bias."""
    noted = file.notes().get("layers")
    found: list[tuple] = []
    for operator in file.depthwise_operators():
        if noted is None:
            layer = _nearest(file, operator, layers, [layer for _, layer in found])
        else:
            index = noted.get(str(int(operator.outputs[0])))
            layer = None if index is None or index >= len(layers) else layers[index]
        if layer is not None:
            found.append((operator, layer))
    return found


def _nearest(file: LiteRTFile, operator: Any, layers: Iterable[Layer], taken: Any) -> Layer | None:
    """The layer whose kernel and bias an operator holds to within a step of each; None if there is none.

    Of layers with equal weights, one that is not taken.
    """
    if file.tensor_type(operator.inputs[0]) != "INT8":
        return None
    steps = [file.scale(index).astype("float64") for index in operator.inputs[1:3]]
    kernel, bias = (
        file.values(operator.inputs[1], "int8") * steps[0],
        file.values(operator.inputs[2], "int32") * steps[1],
    )
    distances = []
    for layer in layers:
        affine = operator_affine(file, operator, layer)
        if affine.scale.shape == kernel.shape:
            apart = max(
                np.max(np.abs(kernel - affine.scale) / steps[0]), np.max(np.abs(bias - affine.offset) / steps[1])
            )
            distances.append((float(apart), any(layer is one for one in taken), layer))
    distance, _, layer = min(distances, key=lambda entry: entry[:2], default=(np.inf, False, None))
    return layer if distance <= 1 else None


def _float_operators(file: LiteRTFile) -> Iterator[str]:
    """Operators with a float tensor, but for those that quantize an input and dequantize an output of the file."""
    inputs, outputs = set(map(int, file.graph.inputs)), set(map(int, file.graph.outputs))
    for operator in file.operators:
        name = file.operator_name(operator)
        sources, results = [int(i) for i in operator.inputs if i >= 0], [int(i) for i in operator.outputs]
        at_the_ends = (name == "QUANTIZE" and set(sources) <= inputs) or (
            name == "DEQUANTIZE" and set(results) <= outputs
        )
        if not at_the_ends and any(file.tensor_type(index) in _FLOATS for index in sources + results):
            yield f"{name} {file.tensor_name(results[0])}"


def _run(
    content: bytes, model: Model, inputs: Sequence[np.ndarray], wanted: Iterable[int], kernel: str
) -> dict[int, np.ndarray]:
    """Values of tensors for all examples, the file's batch at a time."""
    running = interpreter(content, kernel)
    places = _ordered_inputs(running, model)
    size = max(1, int(places[0]["shape"][0]))
    collected: dict[int, list] = {index: [] for index in wanted}
    for start in range(0, len(inputs[0]), size):
        taken = np.minimum(np.arange(start, start + size), len(inputs[0]) - 1)
        for place, array in zip(places, inputs, strict=True):
            running.set_tensor(place["index"], _quantized(array[taken], place))
        running.invoke()
        for index, parts in collected.items():
            parts.append(running.get_tensor(index).reshape(size, -1))
    return {index: np.concatenate(parts)[: len(inputs[0])] for index, parts in collected.items()}


def _quantized(values: np.ndarray, place: Any) -> np.ndarray:
    """Real inputs as the type that the file takes."""
    if np.issubdtype(place["dtype"], np.floating) or not place["quantization"][0]:
        return values.astype(place["dtype"])
    step, zero = place["quantization"]
    limits = np.iinfo(place["dtype"])
    return np.clip(np.floor(values / np.float32(step) + 0.5) + zero, limits.min, limits.max).astype(place["dtype"])


def _ordered_inputs(running: Any, model: Model) -> list[dict]:
    """The interpreter's inputs in the order of the model's: by their names in the signature, or the numbers in them."""
    details = {place["index"]: place for place in running.get_input_details()}
    runners = running.get_signature_list()
    if len(runners) != 1 or len(details) == 1:
        return list(details.values())
    names = running.get_signature_runner().get_input_details()
    by_name = {place["name"]: place for place in details.values()}
    own = [tensor.name.split(":")[0] for tensor in model.inputs]
    order = own if set(own) == set(names) else sorted(names, key=_number)
    return [by_name[names[name]["name"]] for name in order]


def _ordered_outputs(file: LiteRTFile, ends: list[int]) -> list[int]:
    signatures = file.model.signatureDefs or []
    if len(signatures) != 1 or len(ends) == 1:
        return ends
    outputs = sorted(signatures[0].outputs, key=lambda entry: _number(entry.name.decode()))
    return [int(entry.tensorIndex) for entry in outputs]


def _number(name: str) -> tuple:
    """Sorts names by the number that they end in."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def _layer_report(
    file: LiteRTFile, operator: Any, layer: Layer, values: dict[int, np.ndarray], kernel: str
) -> LayerReport:
    affine = operator_affine(file, operator, layer)
    weight, bias = file.values(operator.inputs[1], "int8"), file.values(operator.inputs[2], "int32")
    table = affine.outputs()
    wrong = (affine.run(weight, bias, file.scale(operator.inputs[1]), kernel) != table).sum(axis=0)
    channels = np.arange(len(weight))
    source, output = (
        values[int(i)].reshape(-1, len(weight)).astype(int) for i in (operator.inputs[0], operator.outputs[0])
    )
    apart = np.abs(output - table[source + 128, channels])
    return LayerReport(
        layer.name,
        len(weight),
        int((wrong == 0).sum()),
        int(wrong.sum()),
        int(apart.size),
        int((apart > 0).sum()),
        int(apart.max()),
        int((apart[:, wrong == 0] > 0).sum()),
    )


def _output_reports(
    file: LiteRTFile, model: Model, inputs: Sequence[np.ndarray], ends: Any, values: dict[int, np.ndarray]
) -> Iterator[OutputReport]:
    predicted = model.predict(_keras.packed_inputs(model, inputs), verbose=0)
    if isinstance(predicted, dict):
        predicted = [predicted[key] for key in sorted(predicted, key=_number)]
    for index, real in zip(ends, predicted if isinstance(predicted, list) else [predicted], strict=True):
        found, real = values[index].astype("float64"), np.asarray(real, "float64").reshape(len(inputs[0]), -1)
        integer = _behind(file, index)
        step, zero = (1.0, 0) if integer is None else (float(file.scale(integer)[0]), file.zero_point(integer))
        if integer != index:
            found = np.rint(found / step) + zero
        nearest = np.rint(real / step) + zero
        if integer is not None and file.tensor_type(integer) == "INT8":
            nearest = np.clip(nearest, -128, 127)
        apart = np.abs(nearest - found)
        yield OutputReport(file.tensor_name(index), int(apart.size), int((apart > 0).sum()), int(apart.max()))


def _behind(file: LiteRTFile, index: int) -> int | None:
    """The quantized tensor that an output of the file is, or is the real value of; None if there is none."""
    if file.tensor_type(index) not in _FLOATS:
        return index
    for operator in file.operators:
        if index in list(operator.outputs) and file.operator_name(operator) == "DEQUANTIZE":
            return int(operator.inputs[0])
    return None
