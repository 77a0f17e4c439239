"""Interleaved timing: variants take turns, and a ratio is taken within each turn, so that drift cancels."""

import statistics
import time
from collections.abc import Callable


def measure(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, `rounds` turns over all variants; the order reverses every other turn."""
    seconds = {name: [] for name in variants}
    for turn in range(rounds):
        for name in list(variants)[:: 1 if turn % 2 == 0 else -1]:
            started = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], variant: str, baseline: str) -> float:
    """Median over the turns of variant / baseline."""
    return statistics.median(a / b for a, b in zip(seconds[variant], seconds[baseline], strict=True))
