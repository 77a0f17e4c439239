"""A batch normalization as the integers of one int8 depthwise convolution that LiteRT's kernels compute exactly.

LiteRT has no operator for (A x + B) >> n. The nearest is a 1x1 depthwise convolution, which computes

    output = clip(zero_point + rounded(M (w x + B)), low, high),    M = input_scale * kernel_scale / output_scale

with w in [-127, 127] and an int32 B for each channel, and the rounding of the kernel that runs it (`requantize`). The
converter takes w = +-127 and rounds B, so that every third channel has a wrong output. But M is free, and for given w
and B the M that serve all inputs are one interval: level k must be reached at T_k, the least x at which the exact
output is k, and not yet at T_k - 1, which are two conditions that are linear in M. What integers have to meet is only
where the line crosses zero, -B / w. The derivation and what it reaches are in docs/quantization.md; our own.
"""

from typing import Any, NamedTuple

import numpy as np

from keras_lsb._checks import choice
from keras_lsb.fixedpoint.int8_affine import Int8Affine, Staircases, channel_blocks, depthwise_roundings

DEPTHWISE_KERNELS = ("xnnpack", "builtin", "reference")
_WEIGHTS = np.arange(1, 128)
_ROUNDS = (slice(0, 6), slice(6, 32), slice(32, 127))  # of the weights, the most promising first
_BIAS_STEPS = np.arange(-2, 3)
_CONDITIONS = 2**18  # that are looked at together
_LARGEST_MULTIPLIER = 128.0  # XNNPACK takes what is below 256
_RUNNERS_UP = 8


class Depthwise(NamedTuple):
    """Integers of a 1x1 int8 depthwise convolution, arrays of shape (channels,).

    Attributes:
        weight: int8, within [-127, 127].
        bias: int32, in units of input_scale * kernel_scale.
        kernel_scale: float32, real value of one step of the weight.
        wrong: int64, of the 256 inputs, those whose output differs from the exact one.
    """

    weight: np.ndarray
    bias: np.ndarray
    kernel_scale: np.ndarray
    wrong: np.ndarray

    @property
    def exact(self) -> np.ndarray:
        """Whether all 256 outputs are right, shape (channels,)."""
        return self.wrong == 0


def solve_depthwise(affine: Int8Affine, *, kernel: str = "xnnpack") -> Depthwise:
    """Integers of a depthwise convolution with the exact outputs of an affine, for every int8 input where possible.

    A channel that cannot be made exact gets the integers with the fewest wrong outputs that were found. The kernels
    round differently: what is exact on one is not on another.

    Args:
        affine: what to compute.
        kernel: which of LiteRT's kernels is to be right: "xnnpack", "builtin" or "reference".

    Raises:
        ValueError: a kernel that is none of these, scales that are not positive, numbers that are not finite.

    >>> found = solve_depthwise(Int8Affine([0.75], [0.2], 0.1, 0.1))
    >>> int(found.weight[0]), int(found.bias[0]), bool(found.exact[0])
    (6, 15, True)
    """
    choice("kernel", kernel, DEPTHWISE_KERNELS)
    affine = affine.checked()
    count = len(affine.scale)
    found = Depthwise(*(np.zeros(count, kind) for kind in ("int8", "int32", "float32", "int64")))
    for part, rounding in depthwise_roundings(count, kernel):
        for block in channel_blocks(part.stop, part.start):
            for array, values in zip(found, _Search(affine, block, rounding).run(), strict=True):
                array[block] = values
    return found


class _Search:
    """The search for integers of some channels. Weights are positive, and negated at the end where mirrored."""

    def __init__(self, affine: Int8Affine, block: slice, rounding: str):
        self.affine, self.rounding = affine, rounding
        self.stairs = Staircases(affine, block)
        self.sign = np.where(self.stairs.negative, -1, 1)
        self.wanted = self.stairs.outputs().T
        self._set_conditions()
        self._set_biases()

    def _set_conditions(self) -> None:
        """Levels less the zero point, T_k, and which conditions count, for the levels from the first output on."""
        stairs = self.stairs
        start = np.maximum(stairs.first, stairs.low + 1)
        stop = np.minimum(stairs.last + 1, stairs.high)
        count = int(np.maximum(stop - start + 1, 1).max(initial=1))
        levels = start[:, None] + np.arange(count)
        used = levels <= stop[:, None]
        index = np.clip(levels - stairs.low - 1, 0, max(len(stairs.levels) - 1, 0))
        empty = np.full((len(start), 1), stairs.lows[0] if len(start) else 0)
        places = np.take_along_axis(stairs.places if len(stairs.levels) else empty, index, axis=1)
        self.levels, self.places = (levels - self.affine.output_zero_point).astype(float), places.astype(float)
        self.has_lower = used & (places <= stairs.highs[:, None])
        self.has_upper = used & (places > stairs.lows[:, None])

    def _set_biases(self) -> None:
        """For each weight the real B of the line, the exponent of its M, and the order in which weights are tried."""
        slope, offset = self.stairs.line()
        crossing = (offset - self.affine.output_zero_point) / slope
        self.nominal = slope[:, None] / _WEIGHTS
        mantissa, exponent = np.frexp(self.nominal)
        self.right = np.maximum(-exponent, 0)
        shift = np.zeros_like(mantissa)
        if self.rounding != "xnnpack":
            # What the first rounding adds, for levels below zero what it takes if the second rounds away from zero.
            falling = (self.stairs.last < self.affine.output_zero_point + 1)[:, None]
            mixed = ~falling & (self.stairs.first < self.affine.output_zero_point)[:, None]
            half = np.where(self.right > 0, 0.5 / mantissa, 0.0)
            away = np.where(mixed, 0.0, np.where(falling, -half, half))
            shift = half if self.rounding == "builtin" else away
        self.biases = crossing[:, None] * _WEIGHTS - shift
        error = np.abs(self.biases - np.rint(self.biases)) / _WEIGHTS
        self.order = np.argsort(np.where(self.nominal < _LARGEST_MULTIPLIER, error, np.inf), axis=1, kind="stable")

    def run(self) -> tuple:
        """(weight, bias, kernel scale, number of wrong outputs), arrays."""
        count = len(self.sign)
        self.best = [np.ones(count, "int64"), np.zeros(count, "int64"), np.ones(count, "float32")]
        self.wrong = np.full(count, 257)
        for chosen, steps in ((_ROUNDS[0], _BIAS_STEPS[2:3]), *((part, _BIAS_STEPS) for part in _ROUNDS)):
            rows = np.flatnonzero(self.wrong > 0)
            size = max(1, _CONDITIONS // (self.levels.shape[1] * len(steps) * len(_WEIGHTS[chosen])))
            for start in range(0, len(rows), size):
                self._try(rows[start : start + size], chosen, steps)
        weight, bias, scale = self.best
        return (self.sign * weight).astype("int8"), bias.astype("int32"), scale, self.wrong

    def _try(self, rows: np.ndarray, chosen: slice, steps: np.ndarray) -> None:
        """Tries some weights with biases near the real one, and keeps what has the fewest wrong outputs."""
        places = self.order[rows, chosen]
        weights = np.repeat(_WEIGHTS[places], len(steps), axis=1)
        columns = np.repeat(places, len(steps), axis=1)
        near = np.rint(self.biases[rows[:, None], places])
        biases = (near[:, :, None] + steps).reshape(len(rows), -1)
        least, largest = self._multipliers(rows, columns, weights, biases)
        slack = (largest - least) / self.nominal[rows[:, None], columns]
        middle = np.where(np.isfinite(slack), (least + largest) / 2, self.nominal[rows[:, None], columns])
        slack = np.nan_to_num(slack, nan=-np.inf)
        for place in np.argsort(-slack, axis=1, kind="stable")[:, :_RUNNERS_UP].T:
            left = np.flatnonzero(self.wrong[rows] > 0)
            if not left.size:
                return
            one = left, place[left]
            self._keep(rows[left], weights[one], biases[one], middle[one])

    def _multipliers(
        self, rows: np.ndarray, columns: Any, weights: np.ndarray, biases: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the interval of M within which all conditions hold; the first is larger where there is none."""
        levels, lower, upper = self.levels[rows, None], self.has_lower[rows, None], self.has_upper[rows, None]
        right = self.right[rows[:, None], columns]
        needed = levels - 0.5
        if self.rounding != "xnnpack":
            early = np.where(right > 0, np.ldexp(0.5, -right), 0.0)[:, :, None]
            late = -early if self.rounding == "reference" else early
            needed = needed - np.where(levels >= 1, early, late)
        reached = weights[:, :, None] * self.places[rows, None] + biases[:, :, None]
        not_yet = reached - weights[:, :, None]
        with np.errstate(divide="ignore"):
            at_least, below = needed / reached, needed / not_yet
        least = np.maximum(
            np.where(lower & (reached >= 0), at_least, 0.0).max(axis=2),
            np.where(upper & (not_yet < 0), below, 0.0).max(axis=2),
        )
        largest = np.minimum(
            np.where(lower & (reached < 0), at_least, np.inf).min(axis=2),
            np.where(upper & (not_yet >= 0), below, np.inf).min(axis=2),
        )
        nominal = self.nominal[rows[:, None], columns]
        if self.rounding == "xnnpack":
            return np.maximum(least, nominal / 2), np.minimum(largest, nominal * 2)
        _, exponent = np.frexp(nominal)  # the right shift above holds for these M only
        return np.maximum(least, np.ldexp(0.5, exponent)), np.minimum(largest, np.ldexp(1.0, exponent))

    def _keep(self, rows: np.ndarray, weight: np.ndarray, bias: np.ndarray, multiplier: np.ndarray) -> None:
        scale = (multiplier * self.affine.output_scale / self.affine.input_scale).astype("float32")
        found = self.affine.requantized(self.sign[rows] * weight, bias, scale, self.rounding)
        wrong = (found != self.wanted[:, rows]).sum(axis=0)
        better = wrong < self.wrong[rows]
        for array, values in zip((*self.best, self.wrong), (weight, bias, scale, wrong), strict=True):
            array[rows[better]] = values[better]
