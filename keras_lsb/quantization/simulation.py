"""The graph that a batch normalization has at inference: a 1x1 depthwise convolution with a kernel of 8 bits."""

from keras_lsb._keras import tensorflow
from keras_lsb._types import Tensor

_BITS = 8
_LEAST_PER_OFFSET = 1e-4  # keeps the int32 bias from overflowing where gamma vanishes, for input steps above 1.2e-3
_LEAST = 1e-30


def affine(
    gamma: Tensor | None, beta: Tensor | None, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(scale, offset) of a batch normalization at inference, float32, shape (channels,). gamma and beta may be None."""
    scale = tensorflow.math.rsqrt(variance + epsilon)
    scale = scale if gamma is None else scale * gamma
    offset = -mean * scale
    return scale, offset if beta is None else offset + beta


def kernel_range(scale: Tensor, offset: Tensor) -> Tensor:
    """Largest size of each channel's kernel: 127 steps of it."""
    return tensorflow.maximum(
        tensorflow.maximum(tensorflow.abs(scale), _LEAST_PER_OFFSET * tensorflow.abs(offset)), _LEAST
    )


def quantized_kernel(scale: Tensor, offset: Tensor) -> Tensor:
    """The kernel as its 8 bits hold it, shape (1, 1, channels, 1).

    It is quantized as (1, 1, 1, channels) and transposed, because the converter takes the quantized axis for the last.
    """
    limit = tensorflow.stop_gradient(kernel_range(scale, offset))
    view = tensorflow.reshape(scale, (1, 1, 1, -1))
    quantized = tensorflow.quantization.fake_quant_with_min_max_vars_per_channel(
        view, -limit, limit, num_bits=_BITS, narrow_range=True
    )
    return tensorflow.transpose(quantized, (0, 1, 3, 2))


def depthwise(inputs: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """scale * inputs + offset, channels last, as a convolution of rank 4; inputs of rank 2, 3 or 4."""
    shape = inputs.shape
    wide = inputs
    if shape.rank != 4:
        inner = {2: [1, 1], 3: [1, shape[1]]}[shape.rank]
        unknown = None in inner
        wide = tensorflow.expand_dims(inputs, 1) if unknown else tensorflow.reshape(inputs, [-1, *inner, shape[-1]])
    kernel = quantized_kernel(scale, offset)
    outputs = tensorflow.nn.depthwise_conv2d(wide, kernel, strides=(1, 1, 1, 1), padding="VALID")
    outputs = tensorflow.nn.bias_add(outputs, offset)
    if shape.rank == 4:
        return outputs
    return tensorflow.squeeze(outputs, 1) if unknown else tensorflow.reshape(outputs, [-1, *shape[1:]])
