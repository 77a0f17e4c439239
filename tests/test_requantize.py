"""The arithmetic of LiteRT's kernels in NumPy, against the interpreters themselves, bit for bit."""

import functools

import numpy as np
import pytest

from keras_lsb.fixedpoint import quantized_multiplier, requantize
from tests.depthwise_file import interpreter
from tests.support import TENSORFLOW, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

CHANNELS, PLACES = 64, 256
LINEAR, RELU = (False, True)


def operator(kind, random):
    """A float operator on (1, 16, 16, channels), or (256, channels) for `dense`."""
    spread = np.exp(random.normal(size=CHANNELS))
    bias = tf.constant(random.normal(size=CHANNELS), tf.float32)
    if kind == "dense":
        kernel = tf.constant(random.normal(size=(CHANNELS, CHANNELS)) * spread, tf.float32)
        return lambda x: tf.matmul(x, kernel) + bias
    if kind == "convolution":
        kernel = tf.constant(random.normal(size=(1, 1, CHANNELS, CHANNELS)) * spread, tf.float32)
        return lambda x: tf.nn.conv2d(x, kernel, 1, "VALID") + bias
    kernel = tf.constant((random.normal(size=CHANNELS) * spread).reshape(1, 1, CHANNELS, 1), tf.float32)
    return lambda x: tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID") + bias


@functools.cache
def converted(kind, relu):
    """An int8 model file of one operator."""
    random = np.random.default_rng(4)
    compute = operator(kind, random)
    shape = [PLACES, CHANNELS] if kind == "dense" else [1, 16, 16, CHANNELS]
    function = tf.function(
        lambda x: tf.nn.relu(compute(x)) if relu else compute(x),
        input_signature=[tf.TensorSpec(shape)],
        autograph=False,
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    samples = random.normal(size=(10, *shape)).astype("float32")
    converter.representative_dataset = lambda: ([sample] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def run(model, kernel):
    """(quantized inputs, outputs, interpreter) of random inputs on one of the interpreters' kernels."""
    running = interpreter(model, kernel)
    place = running.get_input_details()[0]
    inputs = np.random.default_rng(9).integers(-128, 128, size=place["shape"]).astype("int8")
    running.set_tensor(place["index"], inputs)
    running.invoke()
    return inputs, running.get_tensor(running.get_output_details()[0]["index"]), running


def emulated(running, inputs, kind, kernel, relu):
    """The same outputs from the integers and scales in the file."""
    ends = [running.get_input_details()[0], running.get_output_details()[0]]
    known = {end["index"] for end in ends}
    tensors = [tensor for tensor in running.get_tensor_details() if tensor["index"] not in known]
    weight = next(one for one in tensors if one["dtype"] == np.int8 and len(one["shape"]) > 1)
    bias = next(one for one in tensors if one["dtype"] == np.int32 and one["shape"].tolist() == [CHANNELS])
    scales, points = zip(
        *(
            (end["quantization_parameters"]["scales"][0], end["quantization_parameters"]["zero_points"][0])
            for end in ends
        ),
        strict=True,
    )
    x = inputs.astype("int64") - int(points[0])
    integers = running.get_tensor(weight["index"]).astype("int64").reshape(-1, CHANNELS)
    sums = x * integers[0] if kind == "depthwise" else x @ integers.T
    return requantize(
        sums + running.get_tensor(bias["index"]),
        scales[0],
        weight["quantization_parameters"]["scales"],
        scales[1],
        int(points[1]),
        kernel=kernel,
        output_range=(max(-128, int(points[1])) if relu else -128, 127),
    )


@pytest.mark.filterwarnings("ignore")  # of the converter
@tensorflow_only("the converter to LiteRT")
@pytest.mark.parametrize("relu", [LINEAR, RELU])
@pytest.mark.parametrize(
    ("kind", "kernel"),
    [(kind, kernel) for kind in ("depthwise", "convolution") for kernel in ("xnnpack", "builtin", "reference")]
    + [("dense", kernel) for kernel in ("xnnpack", "builtin", "reference_dense")],
)
def test_every_output_of_the_interpreter(kind, kernel, relu):
    inputs, outputs, running = run(converted(kind, relu), kernel)
    found = emulated(running, inputs, kind, kernel, relu)
    np.testing.assert_array_equal(found, outputs)
    assert len(np.unique(outputs)) > 20
    assert (outputs == 127).any(), "nothing saturates"
    others = {"xnnpack", "builtin", "reference", "reference_dense"} - {kernel, "xnnpack"}
    differing = [other for other in others if (emulated(running, inputs, kind, other, relu) != outputs).any()]
    assert differing, "no other kernel's rounding would have been noticed"


@pytest.mark.parametrize(
    ("accumulator", "kernel", "output"),
    [  # M = 1/4: halves after one rounding
        (2, "xnnpack", 0),
        (6, "xnnpack", 2),
        (2, "builtin", 1),
        (-2, "builtin", 0),
        (2, "reference", 1),
        (-2, "reference", -1),
        (-2, "reference_dense", 0),
        (10_000, "reference", 127),
        (-10_000, "builtin", -128),
    ],
)
def test_halves(accumulator, kernel, output):
    assert requantize([accumulator], 1.0, 0.25, 1.0, kernel=kernel) == [output]


def test_multipliers():
    q31, exponent = quantized_multiplier([0.75, 1.0, 1 - 2.0**-40, 3.0, 2.0**-40, 0.0])
    assert q31.tolist() == [3 << 29, 1 << 30, 1 << 30, 3 << 29, 0, 0]
    assert exponent.tolist() == [0, 1, 1, 2, 0, 0]


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"`kernel`.*'neon'"):
        requantize([1], 1.0, 1.0, 1.0, kernel="neon")
    with pytest.raises(ValueError, match=r"`accumulator` must fit int32.*4294967296"):
        requantize([2**32], 1.0, 1.0, 1.0, kernel="xnnpack")
