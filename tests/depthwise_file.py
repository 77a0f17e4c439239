"""A LiteRT file of one int8 depthwise convolution with given integers, and its run on one of the kernels."""

import flatbuffers
import numpy as np
import pytest

from keras_lsb.quantization import litert as quantization_litert

SCHEMA = "ai_edge_litert.schema_py_generated"


def litert(module: str):
    """A module of ai-edge-litert, without which the test is skipped by name."""
    return pytest.importorskip(module, reason="the extra `litert` is not installed")


def interpreter(file: bytes, kernel: str):
    """An interpreter of the kernel that `requantize` has by this name."""
    litert("ai_edge_litert.interpreter")
    return quantization_litert.interpreter(file, "reference" if kernel == "reference_dense" else kernel)


def converter_integers(affine):
    """(weight, bias, kernel scale) that the converter takes: kernels of +-127, the bias rounded."""
    kernel_scale = (np.abs(affine.scale) / 127).astype("float32")
    bias = np.rint(affine.offset / (affine.input_scale * kernel_scale.astype(float)))
    return np.where(affine.scale < 0, -127, 127), np.clip(bias, -(2**31), 2**31 - 1).astype("int64"), kernel_scale


def _tensor(schema, name, kind, shape, buffer, scales, points, axis=0):
    tensor, steps = schema.TensorT(), schema.QuantizationParametersT()
    tensor.name, tensor.type, tensor.shape, tensor.buffer = name, kind, list(shape), buffer
    steps.scale = np.atleast_1d(scales).astype("float32")
    steps.zeroPoint = np.atleast_1d(points).astype("int64")
    steps.quantizedDimension = axis
    tensor.quantization = steps
    return tensor


def depthwise_file(affine, weight, bias, kernel_scale, relu: bool = False) -> bytes:
    """The file for inputs of shape (1, 16, 16, channels)."""
    schema = litert(SCHEMA)
    channels, int8, int32 = len(weight), schema.TensorType.INT8, schema.TensorType.INT32
    shape, zeros = (1, 16, 16, channels), np.zeros(channels, int)
    operator, options, code = schema.OperatorT(), schema.DepthwiseConv2DOptionsT(), schema.OperatorCodeT()
    options.padding, options.strideW, options.strideH, options.depthMultiplier = schema.Padding.VALID, 1, 1, 1
    options.dilationWFactor = options.dilationHFactor = 1
    options.fusedActivationFunction = int(relu)
    operator.inputs, operator.outputs, operator.opcodeIndex = [0, 1, 2], [3], 0
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.DepthwiseConv2DOptions, options
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEPTHWISE_CONV_2D
    code.version = 3
    graph, model, buffers = schema.SubGraphT(), schema.ModelT(), [schema.BufferT() for _ in range(3)]
    buffers[1].data = np.frombuffer(np.asarray(weight).astype("int8").tobytes(), "uint8")
    buffers[2].data = np.frombuffer(np.asarray(bias).astype("<i4").tobytes(), "uint8")
    bias_scale = np.float32(affine.input_scale) * np.asarray(kernel_scale, "float32")
    graph.tensors = [
        _tensor(schema, "input", int8, shape, 0, affine.input_scale, affine.input_zero_point),
        _tensor(schema, "weight", int8, (1, 1, 1, channels), 1, kernel_scale, zeros, 3),
        _tensor(schema, "bias", int32, (channels,), 2, bias_scale, zeros),
        _tensor(schema, "output", int8, shape, 0, affine.output_scale, affine.output_zero_point),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [operator]
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run_file(file: bytes, kernel: str) -> np.ndarray:
    """Outputs of one of LiteRT's kernels for the inputs -128 to 127, shape (256, channels)."""
    running = interpreter(file, kernel)
    place = running.get_input_details()[0]
    x = np.arange(-128, 128).astype("int8").reshape(1, 16, 16, 1)
    running.set_tensor(place["index"], np.broadcast_to(x, place["shape"]).copy())
    running.invoke()
    found = running.get_tensor(running.get_output_details()[0]["index"])
    return found.reshape(256, -1).astype("int64")
