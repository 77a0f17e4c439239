"""How LiteRT's kernels turn an int32 accumulator into an int8 output, bit for bit.

    output = clip(zero_point + rounded(accumulator * M), low, high),    M = input_scale * kernel_scale / output_scale

The kernels differ in how they hold M and in how often they round, so that about 0.2 % of their outputs differ by one.

| kernel | operators | M | rounding |
|---|---|---|---|
| "xnnpack" | all, on the delegate that is the interpreter's default on CPU | float32 | once, half to even |
| "builtin" | all, without that delegate | q31 * 2^e | twice: half up, half up |
| "reference" | convolutions with the reference operators, depthwise ones too | q31 * 2^e | twice: half away from 0 |
| "reference_dense" | fully connected with the reference operators | q31 * 2^e | once, half up |

Of a depthwise convolution, the built-in kernel computes channels that fill no vector as the reference does. Measured
against the interpreters of ai-edge-litert 2.3 on x86-64, in tests/test_requantize.py.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import choice

KERNELS = ("xnnpack", "builtin", "reference", "reference_dense")
_LIMIT = 2**31


class QuantizedMultiplier(NamedTuple):
    """A positive factor as q31 * 2^(exponent - 31), as LiteRT's built-in kernels hold it.

    Attributes:
        q31: int64, in [2^30, 2^31); 0 for factors that vanish.
        exponent: int64.
    """

    q31: np.ndarray
    exponent: np.ndarray


def quantized_multiplier(factor: ArrayLike) -> QuantizedMultiplier:
    """q31 = round(mantissa 2^31) and the exponent of factors >= 0, as LiteRT's kernels hold them.

    Args:
        factor: number or array of any shape, taken as float64; below 2^-32 it becomes 0.

    >>> quantized_multiplier(0.75)
    QuantizedMultiplier(q31=array(1610612736), exponent=array(0))
    """
    mantissa, exponent = np.frexp(np.asarray(factor, "float64"))
    scaled = mantissa * _LIMIT
    q31 = np.floor(scaled + 0.5).astype("int64")
    exponent = exponent.astype("int64") + (q31 == _LIMIT)
    q31 = np.where(q31 == _LIMIT, _LIMIT // 2, q31)
    vanishes = exponent < -31
    return QuantizedMultiplier(np.where(vanishes, 0, q31), np.where(vanishes, 0, exponent))


def requantize(
    accumulator: ArrayLike,
    input_scale: ArrayLike,
    kernel_scale: ArrayLike,
    output_scale: ArrayLike,
    output_zero_point: int = 0,
    *,
    kernel: str,
    output_range: tuple[int, int] = (-128, 127),
) -> np.ndarray:
    """Outputs of a LiteRT kernel for int32 accumulators.

    Args:
        accumulator: whole numbers, the last axis are the channels; with the bias added.
        input_scale, output_scale: real value of one step, as the file holds them: float32.
        kernel_scale: likewise, a number or one per channel.
        output_zero_point: quantized value of a real 0.
        kernel: which of the table above.
        output_range: (low, high) after the activation.

    Returns:
        int64, of the accumulator's shape.

    Raises:
        ValueError: a kernel that is not in the table, or accumulators beyond 32 bits.
    """
    choice("kernel", kernel, KERNELS)
    accumulator = np.asarray(accumulator).astype("int64")
    if accumulator.size and (accumulator.min() < -_LIMIT or accumulator.max() >= _LIMIT):
        raise ValueError(f"`accumulator` must fit int32. Received: {accumulator.min()} to {accumulator.max()}")
    scales = [np.asarray(scale, "float32") for scale in (input_scale, kernel_scale, output_scale)]
    if kernel == "xnnpack":
        rounded = np.rint(accumulator.astype("float32") * (scales[0] * scales[1] / scales[2])).astype("int64")
    else:
        wide = [scale.astype("float64") for scale in scales]
        multiplier = quantized_multiplier(wide[0] * wide[1] / wide[2])
        rounded = _ROUNDINGS[kernel](accumulator, *multiplier)
    return np.clip(rounded + output_zero_point, *output_range)


def _shifts(accumulator: np.ndarray, exponent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The accumulator shifted to the left as far as the exponent is positive, in int32, and the shift to the right."""
    shifted = accumulator << np.maximum(exponent, 0)
    wrapped = (shifted + _LIMIT) % (2 * _LIMIT) - _LIMIT
    return wrapped, np.maximum(-exponent, 0)


def _twice_half_up(accumulator: np.ndarray, q31: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    high, right = _shifts(accumulator, exponent)
    doubled = (high * q31 + 2**30) >> 31
    return np.where(right > 0, (doubled + ((1 << right) >> 1)) >> right, doubled)


def _once_half_up(accumulator: np.ndarray, q31: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    total = 31 - exponent
    return (accumulator * q31 + (1 << (total - 1))) >> total


def _twice_half_away(accumulator: np.ndarray, q31: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    high, right = _shifts(accumulator, exponent)
    product = high * q31
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    doubled = np.sign(nudged) * (np.abs(nudged) >> 31)  # division by 2^31, truncated
    mask = (1 << right) - 1
    remainder, threshold = doubled & mask, (mask >> 1) + (doubled < 0)
    return (doubled >> right) + (remainder > threshold)


_ROUNDINGS = {"builtin": _twice_half_up, "reference": _twice_half_away, "reference_dense": _once_half_up}
