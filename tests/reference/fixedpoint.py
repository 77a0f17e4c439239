"""The rounded affine and its least shift in rational arithmetic, by the definitions and by search."""

import itertools
import math
from fractions import Fraction


def target(scale, offset, x, low, high, half=Fraction(1, 2)):
    """clip(floor(scale x + offset + half), low, high) of one integer x, exactly."""
    return min(max(math.floor(Fraction(scale) * x + Fraction(offset) + half), low), high)


def slopes(outputs, first):
    """The open interval of real slopes with which floor(slope x + intercept) can be `outputs` from `first` on."""
    lower, upper = -math.inf, math.inf
    for i, at_i in enumerate(outputs):
        for j, at_j in enumerate(outputs[:i]):
            lower = max(lower, Fraction(at_i - at_j - 1, i - j))
            upper = min(upper, Fraction(at_i - at_j + 1, i - j))
    return lower, upper


def serves(outputs, first, low, high, multiplier, shift):
    """Whether some B makes clip((multiplier x + B) >> shift, low, high) the outputs at first, first + 1, ..."""
    power, least, largest = 2**shift, -math.inf, math.inf
    for x, output in enumerate(outputs, first):
        if output > low:
            least = max(least, output * power - multiplier * x)
        if output < high:
            largest = min(largest, output * power + power - 1 - multiplier * x)
    return least <= largest


def least_shift(outputs, first, low, high, most=40):
    """The least shift at which any multiplier serves; tries all that a slope between consecutive outputs can need."""
    steepest = max((abs(b - a) for a, b in itertools.pairwise(outputs)), default=0) + 2
    for shift in range(most):
        bound = steepest * 2**shift
        if any(serves(outputs, first, low, high, multiplier, shift) for multiplier in range(-bound, bound + 1)):
            return shift
    raise ValueError("no shift serves")
