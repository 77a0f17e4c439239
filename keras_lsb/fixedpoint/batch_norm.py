"""Batch normalization at inference as an integer multiply, add and shift."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import choice, non_negative, positive
from keras_lsb.fixedpoint.affine import FixedPoint, solve

ACTIVATIONS = (None, "relu", "relu6")


def from_batch_norm(
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    mean: ArrayLike,
    variance: ArrayLike,
    epsilon: float = 1e-3,
    *,
    input_scale: float,
    output_scale: float,
    input_zero_point: int = 0,
    output_zero_point: int = 0,
    kernel_scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    input_range: tuple[int, int] | None = None,
    quantized_range: tuple[int, int] = (-128, 127),
    **options: Any,
) -> FixedPoint:
    """Integers with the outputs of a quantized batch normalization, for every input.

        a = gamma / sqrt(variance + epsilon) * input_scale * kernel_scale / output_scale
        b = (beta - mean * gamma / sqrt(variance + epsilon)) / output_scale + output_zero_point
        output = clip(floor(a x + b + 1/2), low, high),    x = quantized input - input_zero_point

    a and b are computed once in float64, and are exact from then on. With `bias`, that of a convolution in front,
    gamma / sqrt(variance + epsilon) * bias / output_scale is added to b.

    Args:
        gamma, beta, mean, variance: of the layer, shape (channels,); None for a gamma of 1 or a beta of 0.
        epsilon: of the layer.
        input_scale, output_scale: real value of one step of the quantized input and output.
        input_zero_point, output_zero_point: quantized value of a real 0.
        kernel_scale: of a convolution in front, whose int32 accumulator is x: a number or one per channel. It takes an
            `input_range`.
        bias: of that convolution, real values, shape (channels,).
        activation: "relu" or "relu6" of the output, which narrow its range.
        input_range: (low, high) of x; None for the quantized range less the zero point.
        quantized_range: (low, high) of the output, and of the input if no `input_range` is given.
        **options: those of `solve`: shift, rounding, per_channel, multiplier_bits, offset_bits.

    Raises:
        ValueError: a variance below 0, or 0 with no epsilon; a scale that is not positive; a kernel scale without an
            input range; what `solve` raises.

    >>> from_batch_norm([2.0], [0.5], [0.0], [1.0], 0.0, input_scale=0.1, output_scale=0.1)[:3]
    (array([2]), array([5]), 0)
    """
    epsilon, activation = non_negative("epsilon", epsilon), choice("activation", activation, ACTIVATIONS)
    input_scale, output_scale = positive("input_scale", input_scale), positive("output_scale", output_scale)
    slope, intercept = float_affine(gamma, beta, mean, variance, epsilon)
    scale = slope * input_scale
    if kernel_scale is not None:
        kernel_scale = np.asarray(kernel_scale, "float64")
        if input_range is None:
            raise ValueError("`input_range` must be that of the accumulator with a `kernel_scale`. Received: None")
        if not (kernel_scale > 0).all():
            raise ValueError(f"`kernel_scale` must be positive. Received: {float(np.min(kernel_scale))}")
        scale = scale * kernel_scale
    if bias is not None:
        intercept = intercept + slope * np.asarray(bias, "float64")
    offset = intercept / output_scale + output_zero_point
    low, high = quantized_range
    if input_range is None:
        input_range = (low - input_zero_point, high - input_zero_point)
    output_range = _activated(activation, low, high, output_scale, output_zero_point)
    return solve(scale / output_scale, offset, input_range, output_range, **options)


def float_affine(
    gamma: ArrayLike | None, beta: ArrayLike | None, mean: ArrayLike, variance: ArrayLike, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset) of the affine that a batch normalization is at inference, float64, shape (channels,).

    Args:
        gamma, beta, mean, variance: of the layer, shape (channels,); None for a gamma of 1 or a beta of 0.
        epsilon: of the layer.

    Raises:
        ValueError: numbers that are not finite; a variance below 0, or 0 with no epsilon.
    """
    mean, variance = np.asarray(mean, "float64"), np.asarray(variance, "float64")
    gamma = np.ones_like(mean) if gamma is None else np.asarray(gamma, "float64")
    beta = np.zeros_like(mean) if beta is None else np.asarray(beta, "float64")
    for name, array in (("gamma", gamma), ("beta", beta), ("mean", mean), ("variance", variance)):
        if wrong := np.flatnonzero(~np.isfinite(np.atleast_1d(array))).tolist():
            raise ValueError(
                f"`{name}` must be finite. Received: {np.atleast_1d(array)[wrong[0]]} in channel {wrong[0]}"
            )
    if wrong := np.flatnonzero(np.atleast_1d((variance < 0) | (variance + epsilon <= 0))).tolist():
        raise ValueError(
            "`variance` must be >= 0, and above 0 with `epsilon`. "
            f"Received: {np.atleast_1d(variance)[wrong[0]]} in channel {wrong[0]}, epsilon={epsilon}"
        )
    slope = gamma / np.sqrt(variance + epsilon)
    return slope, beta - mean * slope


def _activated(activation: str | None, low: int, high: int, scale: float, zero_point: int) -> tuple[int, int]:
    if activation is not None:
        low = max(low, zero_point)
    if activation == "relu6":
        high = min(high, round(6 / scale) + zero_point)
    return low, high
