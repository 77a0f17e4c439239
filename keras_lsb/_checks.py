"""Argument checks: each returns the value as a float, or raises a ValueError that names the argument and the value."""

import math
from collections.abc import Callable
from typing import TypeVar

Choice = TypeVar("Choice")


def _checked(name: str, value: float, rule: str, accepts: Callable[[float], bool]) -> float:
    try:
        number = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and accepts(number)):
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    return number


def positive(name: str, value: float) -> float:
    """`value` as a finite float above zero."""
    return _checked(name, value, "a finite number > 0", lambda number: number > 0)


def non_negative(name: str, value: float) -> float:
    """`value` as a finite float, zero or above."""
    return at_least(name, value, 0)


def at_least(name: str, value: float, minimum: float) -> float:
    """`value` as a finite float of at least `minimum`."""
    return _checked(name, value, f"a finite number >= {minimum}", lambda number: number >= minimum)


def decay_rate(name: str, value: float) -> float:
    """`value` as a float in [0, 1): the weight of the past in a moving average."""
    return _checked(name, value, "a number in [0, 1)", lambda number: 0 <= number < 1)


def choice(name: str, value: Choice, allowed: tuple[Choice, ...]) -> Choice:
    """`value`, which must be one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {allowed}. Received: {name}={value!r}")
    return value


def fraction(name: str, value: float) -> float:
    """`value` as a float in (0, 1)."""
    return _checked(name, value, "a number in (0, 1)", lambda number: 0 < number < 1)


def proportion(name: str, value: float) -> float:
    """`value` as a float in [0, 1]."""
    return _checked(name, value, "a number in [0, 1]", lambda number: 0 <= number <= 1)


def whole(name: str, value: int, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`; a float is accepted where it is a whole number."""
    rule = f"a whole number >= {minimum}"
    return int(_checked(name, value, rule, lambda number: number >= minimum and number == int(number)))
