"""How many channels of standalone batch normalization LiteRT's kernels can compute exactly, and what it takes.

    python benchmarks/fixed_point_kernels.py

The 26,560 channels of a ResNet-50 in their layers, with random parameters and int8 inputs and outputs, as 1x1 depthwise
convolutions: with the integers that the converter takes (kernels of +-127, a rounded bias), and with those that
`fixedpoint.solve_depthwise` chooses for the kernel. A channel is exact if all 256 outputs are. The first 2,048 channels
then run in the interpreter of the kernel, on all inputs: `surprises` are outputs there that differ from what was
computed in advance. Seconds are those of the processor on one thread. Writes
`benchmarks/results/fixed_point_kernels.json`.
"""

import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import records

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))

import keras_lsb  # noqa: E402
from benchmarks.fixed_point import layer_sizes  # noqa: E402
from keras_lsb.fixedpoint import Int8Affine, solve_depthwise  # noqa: E402
from keras_lsb.fixedpoint.depthwise import DEPTHWISE_KERNELS  # noqa: E402
from tests.depthwise_file import converter_integers, depthwise_file, run_file  # noqa: E402


def layers(relu: bool) -> list[Int8Affine]:
    """A batch normalization for each of ResNet-50: one gamma in ten is negative."""
    random, found = np.random.default_rng(20), []
    for channels in layer_sizes():
        gamma = random.normal(1.0, 0.4, channels) * random.choice([1] * 9 + [-1], channels)
        scale = gamma / random.uniform(0.3, 3.0, channels)
        offset = random.normal(0.0, 0.5, channels) - random.normal(0.0, 1.0, channels) * scale
        points = random.integers(-60, 60, 2)
        input_scale, output_scale = random.uniform(4, 8) / 255, random.uniform(4, 10) / 255
        output = (output_scale / 2, -128) if relu else (output_scale, int(points[1]))
        found.append(Int8Affine(scale, offset, input_scale, output[0], int(points[0]), output[1]).checked())
    return found


def surprises(problems, solved, kernel: str, relu: bool, count: int = 2048) -> int:
    """Outputs of the interpreter, of channels that are called exact, that are not."""
    wrong = 0
    for affine, found in zip(problems, solved, strict=True):
        if count <= 0:
            break
        outputs = run_file(depthwise_file(affine, *found[:3], relu), kernel)
        wrong += int((outputs != affine.outputs())[:, found.exact].sum())
        count -= len(found.exact)
    return wrong


def measure(kernel: str, relu: bool) -> dict:
    """One row of the results."""
    problems = layers(relu)
    before = np.concatenate([(a.run(*converter_integers(a), kernel) != a.outputs()).sum(axis=0) for a in problems])
    started = time.process_time()
    solved = [solve_depthwise(affine, kernel=kernel) for affine in problems]
    seconds = time.process_time() - started
    wrong = np.concatenate([found.wrong for found in solved])
    return {
        "kernel": kernel,
        "activation": "ReLU" if relu else "none",
        "channels": len(wrong),
        "converter_exact_percent": 100 * float((before == 0).mean()),
        "exact_percent": 100 * float((wrong == 0).mean()),
        "inexact_channels": int((wrong > 0).sum()),
        "wrong_outputs": int(wrong.sum()),
        "seconds": seconds,
        "surprises": surprises(problems, solved, kernel, relu),
    }


def main() -> None:
    arguments = records.parser(__doc__, "all of it, which takes minutes").parse_args()
    rows = []
    for kernel in DEPTHWISE_KERNELS:
        for relu in (False, True):
            rows.append(measure(kernel, relu))
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
    versions = {
        "keras_lsb": keras_lsb.__version__,
        "ai-edge-litert": importlib.metadata.version("ai-edge-litert"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    records.keep(arguments, "fixed_point_kernels", rows, versions=versions)


if __name__ == "__main__":
    main()
