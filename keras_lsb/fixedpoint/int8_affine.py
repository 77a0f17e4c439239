"""The exact outputs of an affine between two int8 tensors, and what LiteRT's depthwise convolution makes of it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import positive, whole
from keras_lsb.fixedpoint.requantize import requantize
from keras_lsb.fixedpoint.thresholds import Rationals, thresholds

INT8 = (-128, 127)
_GENTLE, _STEEP = 2.0**-9, 512.0  # slopes beyond which a staircase of 8 bits does not depend on the slope
_TOGETHER = 128  # channels
_VECTOR = 8  # channels that the built-in kernel takes together


class Int8Affine(NamedTuple):
    """The affine of real numbers y = scale * x + offset between two int8 tensors.

    Attributes:
        scale, offset: float64, shape (channels,).
        input_scale, output_scale: real value of one step, numbers that float32 holds.
        input_zero_point, output_zero_point: quantized value of a real 0.
        output_range: (low, high) of the quantized output, after the activation.
    """

    scale: np.ndarray
    offset: np.ndarray
    input_scale: float
    output_scale: float
    input_zero_point: int = 0
    output_zero_point: int = 0
    output_range: tuple[int, int] = INT8

    def outputs(self) -> np.ndarray:
        """The exact outputs of the inputs -128 to 127: rounded half up and clipped, int64, shape (256, channels)."""
        table = np.empty((256, len(self.scale)), "int64")
        for block in channel_blocks(len(self.scale)):
            table[:, block] = Staircases(self, block).outputs().T
        return table

    def checked(self) -> "Int8Affine":
        """The same in the types that are named above; ValueError for what is no such affine."""
        arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(a, "float64")) for a in (self.scale, self.offset)))
        for name, array in zip(("scale", "offset"), arrays, strict=True):
            if array.ndim != 1 or not np.isfinite(array).all():
                raise ValueError(f"`{name}` must hold one finite number per channel. Received: {name}={array!r}")
        steps = [positive(name, float(np.float32(getattr(self, name)))) for name in ("input_scale", "output_scale")]
        points = [whole(name, getattr(self, name), INT8[0]) for name in ("input_zero_point", "output_zero_point")]
        low, high = (int(bound) for bound in self.output_range)
        if not (INT8[0] <= low <= high <= INT8[1] and max(points) <= INT8[1]):
            raise ValueError(
                "`output_range` and zero points must lie within int8. "
                f"Received: output_range={self.output_range}, zero points {points}"
            )
        scale, offset = arrays
        return Int8Affine(scale, offset, steps[0], steps[1], points[0], points[1], (low, high))

    def run(self, weight: ArrayLike, bias: ArrayLike, kernel_scale: ArrayLike, kernel: str) -> np.ndarray:
        """What a LiteRT kernel computes with these integers for the inputs -128 to 127, shape (256, channels).

        Args:
            weight, bias: int8 and int32 of the operator, shape (channels,).
            kernel_scale: real value of one step of `weight`, shape (channels,).
            kernel: "xnnpack", "builtin" or "reference".
        """
        weight, bias, kernel_scale = np.asarray(weight), np.asarray(bias), np.asarray(kernel_scale)
        parts = [
            self.requantized(weight[block], bias[block], kernel_scale[block], rounding)
            for block, rounding in depthwise_roundings(len(weight), kernel)
        ]
        return np.concatenate(parts, axis=1)

    def requantized(self, weight: np.ndarray, bias: np.ndarray, kernel_scale: ArrayLike, rounding: str) -> np.ndarray:
        """The same for channels that are all rounded as `requantize` does under one name."""
        x = np.arange(INT8[0], INT8[1] + 1)[:, None] - self.input_zero_point
        sums = x * weight.astype("int64") + bias.astype("int64")
        scales = self.input_scale, kernel_scale, self.output_scale
        return requantize(sums, *scales, self.output_zero_point, kernel=rounding, output_range=self.output_range)


def channel_blocks(stop: int, start: int = 0) -> list[slice]:
    """Channels some at a time, which fit the processor's cache."""
    return [slice(first, min(first + _TOGETHER, stop)) for first in range(start, stop, _TOGETHER)]


def depthwise_roundings(count: int, kernel: str) -> list[tuple[slice, str]]:
    """How a kernel rounds which channels: the built-in one computes those that fill no vector as the reference does."""
    whole_vectors = count - count % _VECTOR if kernel == "builtin" else count
    return [(slice(0, whole_vectors), kernel), (slice(whole_vectors, count), "reference")]


class Staircases:
    """The exact outputs of some channels as steps, mirrored where the scale is negative so that they rise.

    `places[c, k - low - 1]` is T_k of the channel; x is the input less its zero point, in a mirrored channel negated.
    """

    def __init__(self, affine: Int8Affine, block: slice):
        slope = affine.scale[block] * affine.input_scale / affine.output_scale
        offset = affine.offset[block] / affine.output_scale + affine.output_zero_point
        self.low, self.high = affine.output_range
        self.negative, flat = slope < 0, slope == 0
        least, largest = INT8[0] - affine.input_zero_point, INT8[1] - affine.input_zero_point
        self.lows = np.where(self.negative, -largest, least)
        self.highs = np.where(self.negative, -least, largest)
        self.levels = np.arange(self.low + 1, self.high + 1)
        # A flat channel has its steps where a constant is reached from the start, or never.
        reached = offset[:, None] >= self.levels - 0.5
        rising = Rationals(np.where(flat, 1.0, np.abs(slope)))
        wanted = np.broadcast_to(~flat[:, None], reached.shape)
        levels = np.broadcast_to(self.levels - 0.5, reached.shape)
        places = thresholds(rising, Rationals(offset), levels, self.lows, self.highs, wanted)
        constant = np.where(reached, self.lows[:, None], self.highs[:, None] + 1)
        self.places = np.where(flat[:, None], constant, places)
        self.first = self.low + (self.places <= self.lows[:, None]).sum(axis=1)
        self.last = self.low + (self.places <= self.highs[:, None]).sum(axis=1)
        self.slope, self.offset = rising.values, offset

    def outputs(self) -> np.ndarray:
        """Outputs of the inputs -128 to 127, shape (channels, 256)."""
        x = self.lows[:, None] + np.arange(256)
        reached = [np.searchsorted(row, ends, "right") for row, ends in zip(self.places, x, strict=True)]
        rising = self.low + np.reshape(reached, x.shape)
        return np.where(self.negative[:, None], rising[:, ::-1], rising)

    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """(slope, offset) of a line with these outputs, float64, whose weights and biases fit their integers.

        With one step at most, the slope is free up to half a level over the range; where a step of x takes the output
        from one end of its range to the other, it is free from there on.
        """
        rows = np.arange(len(self.slope))
        single = self.last - self.first <= 1
        steep = ~single & (self.slope > _STEEP)
        slope = np.where(single, _GENTLE, np.where(steep, _STEEP, self.slope))
        step = self.places[rows, np.clip(self.last - self.low - 1, 0, None)] if len(self.levels) else self.lows
        inside = self.last > self.first
        # Through the middle of the single step, or the level itself.
        middle = np.where(inside, self.last - 0.5 - _GENTLE * (step - 0.5), self.first - _GENTLE * self.lows)
        offset = np.where(single, middle, self.offset)
        x = np.clip(np.rint(((self.low + self.high) / 2 - self.offset) / self.slope), self.lows, self.highs)
        value = self.slope * x + self.offset
        unsaturated = np.abs(value - (self.low + self.high) / 2) <= (self.high - self.low) / 2 + 1
        x = np.where(unsaturated, x, step - 0.5)
        value = np.where(unsaturated, value, (self.low + self.high) / 2)
        return slope, np.where(steep, value - _STEEP * x, offset)
