"""Weights and gradients of the golden files, and how these files are written. NumPy only, 1.x or 2.x."""

import json
from pathlib import Path

import numpy as np

STEPS = 5
SHAPES = {"matrix": (3, 4), "vector": (5,), "scalar": (), "zero": (2, 3), "bias": (3,), "idle": (4,)}
GRADIENT_SIZES = (1.0, 0.125, 4.0, 0.25, 2.0)


def make_inputs(seed=20190401):
    """Returns (weights, gradients): dictionaries by variable name, the gradients with `STEPS` arrays each.

    Every entry of a gradient takes both signs and changes size by an order of magnitude. The weights of `zero` are 0,
    the first gradient of `idle` is 0. All values are multiples of 1/1024, exact in float32.
    """
    generator = np.random.default_rng(seed)
    weights, gradients = {}, {}
    for name, shape in SHAPES.items():
        weights[name] = _round(generator.normal(size=shape))
        sign = np.resize([1.0, -1.0], STEPS).reshape([STEPS] + [1] * len(shape))
        sign = generator.permuted(np.broadcast_to(sign, (STEPS, *shape)), axis=0)
        size = generator.uniform(0.25, 1.0, size=(STEPS, *shape))
        size = size * np.reshape(GRADIENT_SIZES, [STEPS] + [1] * len(shape))
        gradients[name] = [_round(gradient) for gradient in sign * size]
    weights["zero"] = np.zeros(SHAPES["zero"])
    gradients["idle"][0] = np.zeros(SHAPES["idle"])
    return weights, gradients


def write_golden(file_name, versions, runs):
    """Writes versions, inputs and runs beside this file as JSON, one line each.

    runs: dictionaries with name, optimizer, dtype, settings, and weights: by variable name, an array after every step.
    """
    weights, gradients = make_inputs()
    lines = [
        f'"versions": {_dump(versions)}',
        f'"inputs": {_dump({"weights": weights, "gradients": gradients})}',
        '"runs": [\n' + ",\n".join(_dump(run) for run in runs) + "\n]",
    ]
    path = Path(__file__).with_name(file_name)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _round(array):
    return np.round(np.asarray(array) * 1024) / 1024


def _dump(value):
    return json.dumps(value, default=lambda array: array.tolist())
