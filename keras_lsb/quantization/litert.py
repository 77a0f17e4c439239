"""LiteRT files as objects that can be read and edited, and the interpreters of its kernels."""

import functools
import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keras_lsb._checks import choice
from keras_lsb.fixedpoint.depthwise import DEPTHWISE_KERNELS

_METADATA = "keras_lsb"
_RELUS = {1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}  # codes of fused activations: their ends


def litert(module: str) -> ModuleType:
    """A module of ai-edge-litert; ImportError that says how to get it."""
    try:
        return importlib.import_module(f"ai_edge_litert.{module}")
    except ImportError as error:
        raise ImportError('ai-edge-litert is not installed: pip install "keras_lsb[litert]"') from error


@functools.cache
def _names(enumeration: str) -> dict[int, str]:
    """Names of the values of an enumeration of the file format."""
    values = vars(getattr(litert("schema_py_generated"), enumeration))
    return {value: name for name, value in values.items() if isinstance(value, int)}


class LiteRTFile:
    """The first subgraph of a LiteRT file.

    Args:
        content: the file's bytes, or its path.
    """

    def __init__(self, content: bytes | str | Path):
        content = bytes(content) if isinstance(content, (bytes, bytearray)) else Path(content).read_bytes()
        self._schema = litert("schema_py_generated")
        self.model = self._schema.ModelT.InitFromPackedBuf(content, 0)
        self.graph = self.model.subgraphs[0]
        self.tensors, self.operators = self.graph.tensors, self.graph.operators

    def operator_name(self, operator: Any) -> str:
        """Such as "CONV_2D"."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return _names("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def tensor_name(self, index: int) -> str:
        """Name of a tensor, which holds the paths of the layers that it came from."""
        return self.tensors[index].name.decode()

    def tensor_type(self, index: int) -> str:
        """Such as "INT8"."""
        return _names("TensorType")[self.tensors[index].type]

    def scale(self, index: int) -> np.ndarray:
        """Real value of one step of a quantized tensor, float32, one or one per channel."""
        return np.asarray(self.tensors[index].quantization.scale, "float32")

    def zero_point(self, index: int) -> int:
        """Quantized value of a real 0."""
        return int(np.asarray(self.tensors[index].quantization.zeroPoint)[0])

    def values(self, index: int, dtype: str) -> np.ndarray:
        """The constant of a tensor, flat."""
        data = self.model.buffers[self.tensors[index].buffer].data
        return np.frombuffer(np.asarray(data, "uint8").tobytes(), np.dtype(dtype).newbyteorder("<"))

    def has_values(self, index: int) -> bool:
        """Whether a tensor is a constant."""
        data = self.model.buffers[self.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def depthwise_operators(self) -> list:
        """The operators that can be a normalization: int8, 1x1, with a bias and one input channel per output."""
        return [
            operator
            for operator in self.operators
            if self.operator_name(operator) == "DEPTHWISE_CONV_2D"
            and len(operator.inputs) == 3
            and self.tensor_type(operator.inputs[1]) == "INT8"
            and self.has_values(operator.inputs[1])
            and list(self.tensors[operator.inputs[1]].shape[:3]) == [1, 1, 1]
            and operator.builtinOptions.depthMultiplier == 1
        ]

    def activation_range(self, operator: Any) -> tuple[int, int]:
        """(low, high) of the quantized output of an int8 operator, after its fused activation."""
        output = operator.outputs[0]
        step, zero = float(self.scale(output)[0]), self.zero_point(output)
        low, high = _RELUS.get(operator.builtinOptions.fusedActivationFunction, (None, None))
        ends = [None if end is None else zero + round(end / step) for end in (low, high)]
        return max(-128, -128 if ends[0] is None else ends[0]), min(127, 127 if ends[1] is None else ends[1])

    def set_depthwise(self, operator: Any, weight: np.ndarray, bias: np.ndarray, kernel_scale: np.ndarray) -> None:
        """Gives an operator integers and scales of its own; other operators keep what they shared with it."""
        input_scale = self.scale(operator.inputs[0])[0]
        kernel_scale = np.asarray(kernel_scale, "float32")
        self._own(operator, 1, np.asarray(weight, "int8"), kernel_scale, 3)
        self._own(operator, 2, np.asarray(bias, "<i4"), input_scale * kernel_scale, 0)

    def _own(self, operator: Any, place: int, values: np.ndarray, scale: Any, axis: int) -> None:
        index = int(operator.inputs[place])
        users = sum(index in list(other.inputs) for other in self.operators)
        if users > 1:
            original, index = self.tensors[index], len(self.tensors)
            self.tensors.append(self._schema.TensorT())
            for name in ("shape", "shapeSignature", "hasRank", "type"):
                setattr(self.tensors[index], name, getattr(original, name))
            self.tensors[index].name = original.name + f"_{index}".encode()
            operator.inputs = np.where(np.arange(len(operator.inputs)) == place, index, operator.inputs)
        steps = self._schema.QuantizationParametersT()
        steps.scale, steps.zeroPoint = scale, np.zeros(len(scale), "int64")
        steps.quantizedDimension = axis
        self.tensors[index].quantization = steps
        self.tensors[index].buffer = self._add_buffer(values.tobytes())

    def _add_buffer(self, content: bytes) -> int:
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(content, "uint8")
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def notes(self) -> dict:
        """What `to_tflite` has noted in the file: its `kernel`, and the `layers` by output tensor; empty if nothing."""
        for entry in self.model.metadata or []:
            if entry.name.decode() == _METADATA:
                return json.loads(bytes(bytearray(self.model.buffers[entry.buffer].data)))
        return {}

    def set_notes(self, notes: dict) -> None:
        """Notes something in the file that interpreters do not look at."""
        entry = self._schema.MetadataT()
        entry.name, entry.buffer = _METADATA, self._add_buffer(json.dumps(notes).encode())
        self.model.metadata = [*(self.model.metadata or []), entry]

    def show(self, tensors: Iterable[int]) -> None:
        """Makes tensors outputs of the file, so that no delegate keeps them to itself."""
        shown = [*map(int, self.graph.outputs)]
        self.graph.outputs = shown + [index for index in dict.fromkeys(map(int, tensors)) if index not in shown]

    def content(self) -> bytes:
        """The file's bytes."""
        used = {tensor.buffer for graph in self.model.subgraphs for tensor in graph.tensors}
        used |= {entry.buffer for entry in self.model.metadata or []}
        for index, buffer in enumerate(self.model.buffers):
            if index not in used:
                buffer.data = None
        builder = importlib.import_module("flatbuffers").Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def interpreter(content: bytes, kernel: str) -> Any:
    """An interpreter that runs a file on one of LiteRT's kernels, with its tensors allocated."""
    module = litert("interpreter")
    types = module.OpResolverType
    resolvers = {
        "xnnpack": types.AUTO,
        "builtin": types.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": types.BUILTIN_REF,
    }
    resolver = resolvers[choice("target_kernel", kernel, DEPTHWISE_KERNELS)]
    found = module.Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
    found.allocate_tensors()
    return found
