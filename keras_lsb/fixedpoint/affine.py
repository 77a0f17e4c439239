"""The affine of two floats as an integer multiply, add and shift with the same outputs.

The target is t(x) = clip(round(scale * x + offset), low, high) for every integer x of a range. It is a staircase: with
T_k the least x at which it reaches k, clip((A x + B) >> n, low, high) = t(x) for all x of the range if and only if

    A T_k + B >= k 2^n          for every level k whose T_k lies in the range
    A (T_k - 1) + B < k 2^n     for every level k whose T_k - 1 lies in the range

For given A and n that is one interval for B. Slopes A / 2^n that leave it nonempty form an open interval, which holds
`scale` itself: if any integer A serves, floor(scale 2^n) or ceil(scale 2^n) does. What serves at n serves doubled at
n + 1, so that the least n is found by bisection, and the largest of the channels' least shifts serves all of them. The
proofs are in docs/fixed_point.md. Problem: Lin et al., 2020, arXiv 2008.13128; the solution is our own.
"""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import choice, whole
from keras_lsb.fixedpoint.thresholds import Rationals, reaches, thresholds

ROUNDINGS = ("half_up", "floor")
_SAFE = 2.0**61  # sums and products below it are exact in int64
_LARGEST_SHIFT = 512
_CONDITIONS = 2**16  # that are looked at together


class FixedPoint(NamedTuple):
    """Integers of clip((multiplier * x + offset) >> shift, *output_range), exact for every x of `input_range`.

    Attributes:
        multiplier: int64, shape (channels,).
        offset: int64, shape (channels,); Python integers where they are wider.
        shift: shared by all channels; an array of shape (channels,) if solved per channel.
        input_range: (low, high) of x.
        output_range: (low, high) of the result, shape (channels,) each or numbers.
    """

    multiplier: np.ndarray
    offset: np.ndarray
    shift: int | np.ndarray
    input_range: tuple[int, int]
    output_range: tuple

    def __call__(self, x: ArrayLike) -> np.ndarray:
        """The outputs for integers x, whose last axis are the channels; exact where x is in the input range."""
        x = np.asarray(x)
        wide = self.largest_sum() >= 2**63
        kind = object if wide else "int64"
        total = np.asarray(self.multiplier).astype(kind) * x.astype(kind) + np.asarray(self.offset).astype(kind)
        shifted = total // (2 ** np.asarray(self.shift).astype(object)) if wide else total >> np.asarray(self.shift)
        low, high = self.output_range
        return np.clip(shifted, low, high).astype("int64")

    def bits(self) -> dict[str, np.ndarray]:
        """Width of each channel's integers as signed numbers, by name: `multiplier`, `offset`."""
        return {name: _widths(getattr(self, name)) for name in ("multiplier", "offset")}

    def largest_sum(self) -> int:
        """A bound on the size of multiplier * x + offset over the input range."""
        reach = max(abs(int(bound)) for bound in self.input_range)
        return max(
            (abs(int(a)) * reach + abs(int(b)) for a, b in zip(self.multiplier, self.offset, strict=True)), default=0
        )


def solve(
    scale: ArrayLike,
    offset: ArrayLike,
    input_range: tuple[int, int],
    output_range: tuple,
    *,
    shift: int | None = None,
    rounding: str = "half_up",
    per_channel: bool = False,
    multiplier_bits: int | None = None,
    offset_bits: int | None = None,
) -> FixedPoint:
    """Integers with the outputs of clip(round(scale * x + offset), low, high) for every integer x of a range.

    Floats are taken as the rational numbers that they are, and nothing is decided in floating point: 0.1 is a little
    more than `fractions.Fraction(1, 10)`, and has another solution.

    Args:
        scale: shape (channels,) or a number, floats or fractions; negative and zero are allowed.
        offset: likewise, without the half that rounding adds.
        input_range: (low, high) of x, both included.
        output_range: (low, high) of the result, each a whole number or one per channel.
        shift: the n to use; None for the least that serves all channels.
        rounding: "half_up", floor(. + 1/2), or "floor".
        per_channel: whether every channel gets its own least shift.
        multiplier_bits: width of a signed number that every multiplier must fit; None for any.
        offset_bits: likewise for every offset.

    Raises:
        ValueError: arguments that are not finite or ranges that are empty; a `shift` below the least; integers wider
            than asked for. The channel and what would do are named.

    >>> solve(1 / 3, 0.0, (-8, 8), (-128, 127))[:3]
    (array([11]), array([16]), 5)
    """
    low, high = _input_range(input_range)
    scale, offset, least, largest = _per_channel(scale, offset, output_range)
    half = 0.5 if choice("rounding", rounding, ROUNDINGS) == "half_up" else 0.0
    if shift is not None and whole("shift", shift, minimum=0) > _LARGEST_SHIFT:
        raise ValueError(f"`shift` must be at most {_LARGEST_SHIFT}. Received: shift={shift}")
    own = per_channel and shift is None
    needed, shifts, multiplier, added = _solve_blocks(scale, offset, half, low, high, least, largest, shift, own)
    found = FixedPoint(multiplier, added, shifts if own else int(shifts[0]), (low, high), (least, largest))
    _require_width("multiplier", multiplier_bits, found, needed)
    _require_width("offset", offset_bits, found, needed)
    return found


class _Staircase:
    """The conditions on A, B and n of some channels, mirrored where the scale is negative so that they rise."""

    def __init__(
        self,
        scale: Rationals,
        offset: Rationals,
        half: float,
        low: int,
        high: int,
        least: np.ndarray,
        largest: np.ndarray,
    ):
        self.negative = scale.values < 0
        self.scale, self.offset, self.half = abs(scale), offset, half
        # A mirrored channel is a function of -x.
        self.lows, self.highs = np.where(self.negative, -high, low), np.where(self.negative, -low, high)
        self.first, last = (self._outputs(ends, least, largest) for ends in (self.lows, self.highs))
        self.constant = self.first == last
        self._set_conditions(np.maximum(least + 1, self.first), np.minimum(largest, last + 1))

    def _outputs(self, x: np.ndarray, least: np.ndarray, largest: np.ndarray) -> np.ndarray:
        """The target at one x per channel: the number of levels that are reached there."""

        def reached(levels: np.ndarray) -> np.ndarray:
            return reaches(self.scale, self.offset, x[:, None], (levels - self.half)[:, None])[:, 0]

        with np.errstate(over="ignore"):
            found = np.clip(np.floor(self.scale.values * x + self.offset.values + self.half), least, largest)
        moved = True
        while np.any(moved):  # the sum is rounded
            moved = ((found < largest) & reached(found + 1)).astype(float) - ((found > least) & ~reached(found))
            found = found + moved
        return found.astype("int64")

    def _set_conditions(self, start: np.ndarray, stop: np.ndarray) -> None:
        """Levels, the x at which each must be reached and the x at which it must not be, and where there are any."""
        count = int(np.maximum(stop - start + 1, 1).max(initial=1))
        self.levels = start[:, None] + np.arange(count)
        used = (self.levels <= stop[:, None]) & ~self.constant[:, None]
        wanted = self.levels - self.half
        self.places = thresholds(self.scale, self.offset, wanted, self.lows, self.highs, used)
        self.has_lower = used & (self.places <= self.highs[:, None])
        self.has_upper = used & (self.places > self.lows[:, None])
        self.reach = np.maximum(np.abs(self.lows), np.abs(self.highs)) + 2.0
        self.highest = np.abs(self.levels).max(axis=1, initial=0) + 2.0

    def least_shifts(self) -> np.ndarray:
        """The least shift of every channel, by bisection."""
        spread = np.maximum(self.highs - self.lows, 2).astype("float64")
        low = np.zeros(len(self.negative), "int64")
        high = np.where(self.constant, 0, np.floor(np.log2(spread * (spread - 1))).astype("int64") + 1)
        while (rows := np.flatnonzero(low < high)).size:
            middle = (low[rows] + high[rows]) // 2
            serves = np.zeros(len(rows), bool)
            for multiplier in self.scale[rows].floor_and_ceil_times_power(middle):
                open_rows = np.flatnonzero(~serves)
                least, largest = self._offsets(rows[open_rows], multiplier[open_rows], middle[open_rows])
                serves[open_rows] = least <= largest
            high[rows[serves]] = middle[serves]
            low[rows[~serves]] = middle[~serves] + 1
        return low

    def integers(self, shifts: np.ndarray) -> tuple[list[int], list[int]]:
        """A and B at given shifts, each as near to the rational as the conditions allow."""
        rows = np.arange(len(self.negative))
        exact = np.ldexp(self.scale.values, shifts)
        wanted = np.rint(np.ldexp(self.offset.values + self.half, shifts))
        multipliers = np.zeros(len(rows), object)
        offsets = np.array([int(first) << int(shift) for first, shift in zip(self.first, shifts, strict=True)], object)
        nearest = np.where(self.constant, -1.0, np.inf)
        for multiplier in self.scale.floor_and_ceil_times_power(shifts):
            least, largest = self._offsets(rows, multiplier, shifts)
            distance = np.abs(multiplier.astype(float) - exact)
            for row in np.flatnonzero((least <= largest) & (distance < nearest)).tolist():
                multipliers[row], nearest[row] = int(multiplier[row]), distance[row]
                offsets[row] = min(max(int(wanted[row]), int(least[row])), int(largest[row]))
        return np.where(self.negative, -multipliers, multipliers).tolist(), offsets.tolist()

    def _offsets(self, rows: np.ndarray, multiplier: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(least, largest) B for given A and n."""
        kind = self._kind(rows, multiplier, shifts)
        levels, places = self.levels[rows].astype(kind), self.places[rows].astype(kind)
        if kind == "int64":
            multiplier, power = multiplier.astype(kind)[:, None], np.left_shift(1, shifts.astype(kind))[:, None]
        else:
            multiplier = np.array([int(one) for one in multiplier], object)[:, None]
            power = np.array([1 << int(shift) for shift in shifts], object)[:, None]
        least = levels * power - multiplier * places  # T_k is reached from here on
        largest = least + (multiplier - 1)  # and T_k - 1 is not, up to here
        far = 2**62 if kind == "int64" else 1 << 2200
        least = np.where(self.has_lower[rows], least, -far).max(axis=1, initial=-far)
        return least, np.where(self.has_upper[rows], largest, far).min(axis=1, initial=far)

    def _kind(self, rows: np.ndarray, multiplier: np.ndarray, shifts: np.ndarray) -> Any:
        largest = np.ldexp(self.highest[rows], shifts) + multiplier.astype(float) * self.reach[rows]
        return "int64" if (largest < _SAFE).all() else object


def _solve_blocks(
    scale: Rationals,
    offset: Rationals,
    half: float,
    low: int,
    high: int,
    least: np.ndarray,
    largest: np.ndarray,
    shift: int | None,
    per_channel: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Least shifts, and A and B at the shifts to use; some channels at a time, which fit the processor's cache."""
    size = max(1, _CONDITIONS // int((largest - least).max() + 1))
    blocks = [slice(start, start + size) for start in range(0, len(least), size)]
    problems = [_Staircase(scale[b], offset[b], half, low, high, least[b], largest[b]) for b in blocks]
    needed = np.concatenate([problem.least_shifts() for problem in problems])
    _require_shift(shift, needed)
    shifts = needed if per_channel else np.full(len(needed), needed.max() if shift is None else shift)
    multipliers, offsets = [], []
    for block, problem in zip(blocks, problems, strict=True):
        more = problem.integers(shifts[block])
        multipliers += more[0]
        offsets += more[1]
    return needed, shifts, _array(multipliers), _array(offsets)


def _require_shift(shift: int | None, needed: np.ndarray) -> None:
    if shift is None or shift >= needed.max():
        return
    raise ValueError(
        f"`shift` must be at least {int(needed.max())}, which channel {int(needed.argmax())} needs. "
        f"Received: shift={shift}"
    )


def _require_width(name: str, limit: int | None, found: FixedPoint, needed: np.ndarray) -> None:
    if limit is None:
        return
    limit, widths = whole(f"{name}_bits", limit), found.bits()[name]
    if widths.max() <= limit:
        return
    channel = int(widths.argmax())
    shift = int(np.broadcast_to(found.shift, widths.shape)[channel])
    hint = "" if shift == needed[channel] else f" Its own least shift is {int(needed[channel])}: `per_channel=True`."
    raise ValueError(
        f"The {name} of channel {channel} takes {int(widths[channel])} bits at shift {shift}.{hint} "
        f"Received: {name}_bits={limit}"
    )


def _input_range(input_range: tuple[int, int]) -> tuple[int, int]:
    low, high = (_integer("input_range", bound) for bound in input_range)
    if low > high or max(abs(low), abs(high)) > 2**40:
        raise ValueError(
            f"`input_range` must be (low, high) with low <= high, within 2^40. Received: input_range={input_range!r}"
        )
    return low, high


def _per_channel(
    scale: ArrayLike, offset: ArrayLike, output_range: tuple
) -> tuple[Rationals, Rationals, np.ndarray, np.ndarray]:
    """Scale, offset and ends of the output range, one per channel, checked."""
    ends = [np.asarray(bound) for bound in output_range]
    if any(end.dtype.kind not in "iu" and not (end == np.floor(end)).all() for end in ends):
        raise ValueError(f"`output_range` must hold whole numbers. Received: output_range={output_range!r}")
    given = [_numbers("scale", scale), _numbers("offset", offset)]
    scale, offset, least, largest = np.broadcast_arrays(*map(np.atleast_1d, (*given, *ends)))
    if (least > largest).any() or max(np.abs(least).max(), np.abs(largest).max()) > 2**31:
        raise ValueError(
            f"`output_range` must be (low, high) with low <= high, within 2^31. Received: output_range={output_range!r}"
        )
    return _rationals(scale), _rationals(offset), least.astype("int64"), largest.astype("int64")


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    floats = array.astype("float64")
    if array.ndim > 1:
        raise ValueError(f"`{name}` must be a number, or one per channel. Received: shape {array.shape}")
    wrong = np.flatnonzero(~np.isfinite(np.atleast_1d(floats)))
    if wrong.size:
        raise ValueError(f"`{name}` must be finite. Received: {np.atleast_1d(floats)[wrong[0]]} in channel {wrong[0]}")
    return array if array.dtype == object else floats


def _rationals(array: np.ndarray) -> Rationals:
    if array.dtype != object:
        return Rationals(array)
    exact = np.empty(array.shape, object)
    exact[:] = [Fraction(value) for value in array]
    return Rationals(exact.astype("float64"), exact)


def _integer(name: str, value: Any) -> int:
    if int(value) != value:
        raise ValueError(f"`{name}` must hold whole numbers. Received: {value!r}")
    return int(value)


def _array(values: list[int]) -> np.ndarray:
    wide = any(abs(value) >= 2**63 for value in values)
    return np.array(values, object if wide else "int64")


def _widths(values: np.ndarray) -> np.ndarray:
    """Bits of each value as a signed number."""
    return np.array([(value if value >= 0 else ~value).bit_length() + 1 for value in map(int, values)])
