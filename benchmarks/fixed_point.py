"""What exact fixed-point batch norm costs and needs: time, shifts and widths over the channels of a ResNet-50.

    python benchmarks/fixed_point.py

26,560 channels in layers of the sizes of ResNet-50's 53 batch normalizations, with random parameters, for int8 inputs
and for int32 accumulators of 21 bits; outputs of 8 bits. One shared shift for each layer, and beside it what rounding
the two floats at that shift gets wrong: a channel counts if any of up to 4,096 inputs has another output. Times are
seconds of the processor, on one thread. Writes `benchmarks/results/fixed_point.json`.
"""

import os
import platform
import time

import numpy as np
import records

import keras_lsb
from keras_lsb import fixedpoint

STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))  # filters within, filters out, blocks
GOALS = {"int8": 2.0, "int32 accumulator": 5.0}
INT8 = (-128, 127)


def layer_sizes() -> list[int]:
    """Channels of each batch normalization of ResNet-50."""
    sizes = [64]
    for within, out, blocks in STAGES:
        sizes += [out] + blocks * [within, within, out]
    return sizes


def layers(random, input_range):
    """(scale, offset) of every layer: outputs spread over the 8 bits, one in ten with a negative gamma."""
    spread = {INT8: 60.0}.get(input_range, 2.0**17)
    for channels in layer_sizes():
        gamma = random.normal(1.0, 0.4, channels) * random.choice([1, 1, 1, 1, 1, 1, 1, 1, 1, -1], channels)
        deviation = random.uniform(0.3, 3.0, channels)
        yield gamma / deviation * 40.0 / spread, random.normal(0.0, 20.0, channels)


def wrong_if_rounded(found, scale, offset) -> int:
    """Channels with other outputs from round(scale 2^n) and round((offset + 1/2) 2^n)."""
    multiplier, added = np.rint(np.ldexp(scale, found.shift)), np.rint(np.ldexp(offset + 0.5, found.shift))
    naive = found._replace(multiplier=multiplier.astype("int64"), offset=added.astype("int64"))
    x = np.unique(np.linspace(*found.input_range, 4096).astype("int64"))[:, None] + np.zeros(len(scale), int)
    return int((naive(x) != found(x)).any(axis=0).sum())


def measure(name: str, input_range: tuple[int, int]) -> dict:
    """One row of the results."""
    problems = list(layers(np.random.default_rng(20), input_range))
    started = time.process_time()
    solved = [fixedpoint.solve(*problem, input_range, INT8) for problem in problems]
    seconds = time.process_time() - started
    bits = {key: max(int(found.bits()[key].max()) for found in solved) for key in ("multiplier", "offset")}
    wrong = sum(wrong_if_rounded(found, *problem) for found, problem in zip(solved, problems, strict=True))
    shifts, channels = [found.shift for found in solved], sum(layer_sizes())
    return {
        "input": name,
        "channels": channels,
        "seconds": seconds,
        "goal": GOALS[name],
        "least_shift": min(shifts),
        "largest_shift": max(shifts),
        "multiplier_bits": bits["multiplier"],
        "offset_bits": bits["offset"],
        "wrong_if_rounded": wrong / channels,
    }


def main() -> None:
    arguments = records.parser(__doc__, "all of it, which takes seconds").parse_args()
    rows = [measure("int8", INT8), measure("int32 accumulator", (-(2**20), 2**20))]
    for row in rows:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    versions = {"keras_lsb": keras_lsb.__version__, "numpy": np.__version__, "python": platform.python_version()}
    records.keep(arguments, "fixed_point", rows, versions={**versions, "cores": os.cpu_count()})


if __name__ == "__main__":
    main()
