"""Interleaved timing: variants take turns, and a ratio is taken within each turn, so that drift cancels."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


def measure(
    variants: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` turns over all variants; the order reverses every other turn."""
    seconds = {name: [] for name in variants}
    for turn in range(rounds):
        for name in list(variants)[:: 1 if turn % 2 == 0 else -1]:
            started = clock()
            variants[name]()
            seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], variant: str, baseline: str) -> float:
    """Median over the turns of variant / baseline."""
    return statistics.median(a / b for a, b in zip(seconds[variant], seconds[baseline], strict=True))


class Comparison(NamedTuple):
    """Variant / baseline, the baseline against itself, and the median seconds of a baseline's call."""

    ratio: float
    null: float
    seconds: float


def compare(
    variant: Callable, baseline: Callable, again: Callable, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Comparison:
    """Ratio and null pair of three functions, of which the last two do the same; two rounds before are for tracing."""
    variants = {"variant": variant, "baseline": baseline, "again": again}
    measure(variants, 2)
    seconds = measure(variants, rounds, clock)
    return Comparison(
        round(ratio(seconds, "variant", "baseline"), 3),
        round(ratio(seconds, "again", "baseline"), 3),
        statistics.median(seconds["baseline"]),
    )
