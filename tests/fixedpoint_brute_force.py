"""Random channels against whole numbers of any size: `python -m tests.fixedpoint_brute_force [--channels N]`.

Int8 inputs are all tried. Of inputs of 22 bits, those at each side of the thresholds are: between two thresholds the
outputs do not change. Outputs have 1 to 16 bits, rounded both ways, clipped or not. For some channels, no multiplier
near the slope serves at a shift of one less; none further away can, since those that serve are an interval around the
slope. Prints a line for each kind of input, and ends with an error at the first wrong output.
"""

import argparse
import itertools
import time

import numpy as np
from tqdm import tqdm

from keras_lsb import fixedpoint

RANGES = {"int8": (-128, 127), "int32": (-(2**21), 2**21 - 1)}
ROUNDINGS = ("half_up", "floor")
SETTINGS = tuple(itertools.product(RANGES, range(1, 17), ROUNDINGS, (True, False)))  # the last: whether clipped
THRESHOLDS = 400  # of a channel, unless its least shift is checked


class Channel:
    """The target of one channel in whole numbers: (slope x + offset) / denominator, rounded down and clipped."""

    def __init__(self, scale: float, offset: float, rounding: str):
        (a, below_a), (b, below_b) = float(scale).as_integer_ratio(), float(offset).as_integer_ratio()
        self.denominator = 2 * max(below_a, below_b)
        self.slope = a * (self.denominator // below_a)
        self.offset = b * (self.denominator // below_b) + (self.denominator // 2 if rounding == "half_up" else 0)

    def unclipped(self, x: int) -> int:
        return (self.slope * x + self.offset) // self.denominator

    def around(self, level: int, low: int, high: int) -> set[int]:
        """Inputs next to where the target reaches a level, within a range."""
        if self.slope == 0:
            return {low, high}
        near = (level * self.denominator - self.offset) // self.slope
        return {min(max(near + step, low), high) for step in (-1, 0, 1)}

    def inputs(self, low: int, high: int, levels, most: int) -> list[int]:
        """All inputs of a short range, else those around the levels, or around so many of them."""
        if high - low < 2**10:
            return list(range(low, high + 1))
        chosen = levels if len(levels) <= most else levels[:: len(levels) // most + 1]
        return sorted({low, high}.union(*(self.around(level, low, high) for level in chosen)))


def problem(setting, count: int, random):
    """(scale, offset, output range) of some channels, whose outputs use most of their range or leave it."""
    kind, bits, rounding, clipped = setting
    low, high = RANGES[kind]
    scale = random.normal(size=count) * 2.0**bits / (high - low) * 10 ** random.uniform(-1, 0.3, count)
    offset = random.normal(size=count) * 2.0**bits / 4
    if clipped:
        return scale, offset, (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    ends = [Channel(a, b, rounding).unclipped(x) for a, b in zip(scale, offset, strict=True) for x in (low, high)]
    return scale, offset, (min(ends) - 1, max(ends) + 1)


def serves(inputs, targets, output_range, multiplier: int, shift: int) -> bool:
    """Whether some offset gives the targets with this multiplier."""
    (low, high), power = output_range, 1 << shift
    least = max((t * power - multiplier * x for x, t in zip(inputs, targets, strict=True) if t > low), default=0)
    most = min(
        ((t + 1) * power - 1 - multiplier * x for x, t in zip(inputs, targets, strict=True) if t < high), default=least
    )
    return least <= most


def check(setting, count: int, random, minimal: int) -> int:
    """Checks channels of one setting, of `minimal` also the shift; the number of outputs that were compared."""
    kind, _, rounding, _ = setting
    scale, offset, (low, high) = problem(setting, count, random)
    found = fixedpoint.solve(scale, offset, RANGES[kind], (low, high), rounding=rounding, per_channel=True)
    compared = 0
    for index in range(count):
        channel = Channel(scale[index], offset[index], rounding)
        ends = sorted(min(max(channel.unclipped(x), low), high) for x in RANGES[kind])
        levels = range(ends[0], ends[1] + 2)
        inputs = channel.inputs(*RANGES[kind], levels, len(levels) if index < minimal else THRESHOLDS)
        targets = [min(max(channel.unclipped(x), low), high) for x in inputs]
        multiplier, added, shift = (int(array[index]) for array in (found.multiplier, found.offset, found.shift))
        outputs = [min(max((multiplier * x + added) >> shift, low), high) for x in inputs]
        assert outputs == targets, f"{setting}: scale={scale[index]!r}, offset={offset[index]!r}"
        compared += len(inputs)
        if index < minimal and shift > 0:
            middle = channel.slope * 2 ** (shift - 1) // channel.denominator
            shorter = [serves(inputs, targets, (low, high), middle + step, shift - 1) for step in range(-3, 5)]
            assert not any(shorter), f"{setting}: shift {shift} is not the least of {scale[index]!r}, {offset[index]!r}"
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=10_000, help="in all settings together")
    parser.add_argument("--minimal", type=int, default=500, help="of these, to check the least shift of")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random, started = np.random.default_rng(arguments.seed), time.perf_counter()
    count, minimal = (-(-number // len(SETTINGS)) for number in (arguments.channels, arguments.minimal))
    compared = dict.fromkeys(RANGES, 0)
    for setting in tqdm(SETTINGS, unit="setting", dynamic_ncols=True):
        compared[setting[0]] += check(setting, count, random, minimal)
    channels = count * len(SETTINGS) // len(RANGES)
    for kind, outputs in compared.items():
        least = minimal * len(SETTINGS) // len(RANGES)
        print(f"{kind}: {channels} channels, {outputs} outputs, 0 wrong; {least} least shifts confirmed")
    print(f"seed {arguments.seed}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
