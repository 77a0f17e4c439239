"""Where a rounded affine of an integer steps from one output to the next, decided in exact arithmetic."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

_EPSILON = float(np.finfo("float64").eps)


@dataclass(frozen=True)
class Rationals:
    """Rational numbers, and the floats that are nearest to them.

    Attributes:
        values: float64, shape (channels,).
        exact: `fractions.Fraction`, shape (channels,); None where the floats are the numbers themselves.
    """

    values: np.ndarray
    exact: np.ndarray | None = None

    def fraction(self, index: int) -> Fraction:
        """One of them."""
        return Fraction(float(self.values[index])) if self.exact is None else self.exact[index]

    def __getitem__(self, index: Any) -> "Rationals":
        return Rationals(self.values[index], None if self.exact is None else self.exact[index])

    def __abs__(self) -> "Rationals":
        return Rationals(np.abs(self.values), None if self.exact is None else np.abs(self.exact))

    def floor_and_ceil_times_power(self, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """floor and ceil of each times 2^shift: float64, or Python integers for fractions."""
        if self.exact is None:
            products = np.ldexp(self.values, shifts)
            return np.floor(products), np.ceil(products)
        products = [value * 2 ** int(shift) for value, shift in zip(self.exact, shifts, strict=True)]
        floors = [product.numerator // product.denominator for product in products]
        ceils = [-(-product.numerator // product.denominator) for product in products]
        return np.array(floors, object), np.array(ceils, object)


def thresholds(
    scale: Rationals, offset: Rationals, levels: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """For each channel and level k, the least x in [low, high + 1] with scale * x + offset >= k; high + 1 if none has.

    No float decides: a sum in float64 is used only where its error bound leaves no doubt of its sign, rationals
    elsewhere.

    Args:
        scale: positive where anything is wanted.
        levels: shape (channels, count): float64, multiples of 1/2.
        low, high: ends of the range of x, shape (channels,).
        wanted: which of the levels are asked for; the results of others are within the range, and no more.

    Returns:
        int64, shape (channels, count).
    """
    low, high = low[:, None], high[:, None]
    with np.errstate(all="ignore"):
        estimate = np.ceil((levels - offset.values[:, None]) / scale.values[:, None])
    found = np.clip(np.nan_to_num(estimate), low, high + 1).astype("int64")
    unsettled = wanted & np.ones(found.shape, bool)
    while unsettled.any():  # an estimate is off where the sum or the quotient was rounded
        too_low = unsettled & (found <= high)
        too_low &= ~reaches(scale, offset, np.minimum(found, high), levels, too_low)
        found = found + too_low
        too_high = unsettled & ~too_low & (found > low)
        too_high &= reaches(scale, offset, np.maximum(found - 1, low), levels, too_high)
        found = found - too_high
        unsettled = too_low | too_high
    return found


def reaches(
    scale: Rationals, offset: Rationals, x: np.ndarray, levels: np.ndarray, wanted: np.ndarray | bool = True
) -> np.ndarray:
    """Whether scale * x + offset >= levels, exactly, at the places that are wanted; shape (channels, count)."""
    added = offset.values[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        product = scale.values[:, None] * x
        value = product + added - levels
        error = 4 * _EPSILON * (np.abs(product) + np.abs(added) + np.abs(levels))
        unsure = wanted & ~(np.abs(value) > error)
    reached = value >= 0
    for channel, place in np.argwhere(unsure):
        exact = scale.fraction(channel) * int(x[channel, place]) + offset.fraction(channel)
        reached[channel, place] = exact >= Fraction(float(levels[channel, place]))
    return reached
