"""The registry of public optimizers and schedules: one line makes a class join every contract test."""

import inspect
import math

import numpy as np

from keras_lsb.optimizers import LAMB, LARS, AdamP, DecentLaM, DmSGD
from keras_lsb.schedules import LEGW, AutoWU, LinearWarmup
from tests.reference.adamp import adamp_step
from tests.reference.lamb import lamb_step
from tests.reference.lars import lars_step
from tests.support import apply, keras, make_variable

_schedules = keras.optimizers.schedules

# Learning rates are powers of two, exact in float32, so that float64 variables can be compared to all digits.
OPTIMIZERS = {
    "lars": (LARS, {"learning_rate": 0.5, "weight_decay": 0.01, "trust_coefficient": 0.02}),
    "lars_nesterov": (LARS, {"learning_rate": 0.5, "weight_decay": 0.01, "trust_coefficient": 0.02, "nesterov": True}),
    "lars_joint": (LARS, {"learning_rate": 0.5, "weight_decay": 0.1, "denominator": "joint", "epsilon": 0.01}),
    "lars_outside": (LARS, {"learning_rate": 0.5, "trust_coefficient": 0.02, "rate": "outside"}),
    "lamb": (LAMB, {"learning_rate": 2**-6, "weight_decay": 0.1}),
    "lamb_outside": (LAMB, {"learning_rate": 2**-6, "weight_decay": 0.1, "decay": "outside", "epsilon": 1e-7}),
    "lamb_uncorrected": (LAMB, {"learning_rate": 2**-6, "correct_bias": False}),
    "lamb_bounded": (LAMB, {"learning_rate": 2**-6, "weight_norm_bounds": (0.5, 2.0), "max_trust_ratio": 0.75}),
    "adamp": (AdamP, {"learning_rate": 2**-6, "weight_decay": 0.1}),
    "adamp_nesterov": (AdamP, {"learning_rate": 2**-6, "weight_decay": 0.1, "nesterov": True, "delta": 1.0}),
    "adamp_by_layout": (
        AdamP,
        {
            "learning_rate": 2**-6,
            "weight_decay": 0.1,
            "delta": 100.0,
            "channel_axes": {"depthwise": (-2, -1), "embeddings$": (0,)},
        },
    ),
    "decentlam": (DecentLaM, {"learning_rate": 0.125, "weight_decay": 0.1}),
    "dmsgd": (DmSGD, {"learning_rate": 0.125, "momentum": 0.5}),
}
CLASSES = ("lars", "lamb", "adamp")  # one entry per class, for tests that train a model

SCHEDULES = {
    "legw": (LEGW, {"base_batch_size": 64, "batch_size": 512, "steps_per_epoch": 8, "warmup_epochs": 0.5}),
    "legw_no_warmup": (LEGW, {"base_batch_size": 64, "batch_size": 96, "steps_per_epoch": 5.5, "warmup_epochs": 0}),
    "linear_warmup": (LinearWarmup, {"steps_per_epoch": 8, "warmup_epochs": 4, "multiplier": 3.0, "epochs": 90}),
    "autowu": (AutoWU, {"total_steps": 400, "steps_per_check": 10, "decay": "half-cosine", "patience": 2}),
}
# Those that are given a learning rate, and do not find it themselves.
RATED = [name for name, (cls, _) in SCHEDULES.items() if "learning_rate" in inspect.signature(cls).parameters]

# Path of each variable -> shape. The default exclusions catch the biases and `norm/gamma`.
SHAPES = {
    "dense/kernel": (3, 4),
    "dense/bias": (4,),
    "gate/vector": (5,),
    "gate/temperature": (),
    "fresh/kernel": (2, 3),
    "idle/kernel": (2, 2),
    "invariant/kernel": (4, 3),
    "norm/gamma": (3,),
    "convolution/kernel": (3, 3, 2, 4),
    "depthwise/depthwise_kernel": (2, 2, 3, 2),
    "embedding/embeddings": (5, 3),
}
EXCLUDED = {"dense/bias", "norm/gamma"}
_SIZES = (1.0, 0.125, 4.0, 0.25, 2.0, 0.5)


def make(name: str, /, **changes):
    """A new optimizer of the registry, with some arguments changed."""
    cls, arguments = OPTIMIZERS[name]
    return cls(**{**arguments, **changes})


def make_schedule(name: str, /, learning_rate=0.25, **changes):
    """A new schedule of the registry, with some arguments changed; `learning_rate` is for those that take one."""
    cls, arguments = SCHEDULES[name]
    rate = {"learning_rate": learning_rate} if name in RATED else {}
    return cls(**{**rate, **arguments, **changes})


def inputs(seed: int = 20190401):
    """Weights and six gradients of each by path. Entries change sign and size; weights are not all ones.

    `fresh` starts at zero, the first two gradients of `idle` are zero, and those of `invariant` are orthogonal to its
    weights in every column, except for the third and fourth. All are multiples of 1/16 where that is possible.
    """
    random = np.random.default_rng(seed)
    weights, gradients = {}, {}
    for path, shape in SHAPES.items():
        weights[path] = np.round(16 * random.normal(size=shape)) / 16
        signs = random.permuted(np.broadcast_to(np.resize([1.0, -1.0], (6, *[1] * len(shape))), (6, *shape)), axis=0)
        gradients[path] = np.round(16 * signs * random.uniform(0.25, 2, (6, *shape))) / 16
        gradients[path] *= np.reshape(_SIZES, (6, *[1] * len(shape)))
    weights["fresh/kernel"][:] = 0
    gradients["idle/kernel"][:2] = 0
    weight = weights["invariant/kernel"]
    for number in (0, 1, 4, 5):
        gradient = gradients["invariant/kernel"][number]
        gradient -= weight * np.sum(weight * gradient, axis=0) / np.sum(weight**2, axis=0)
    return weights, gradients


def variables_of(weights: dict, dtype: str = "float32"):
    """Variables with the weights' paths."""
    return [make_variable(weight, path, dtype) for path, weight in weights.items()]


def train(optimizer, weights: dict, gradients: dict, steps: int = 6, dtype: str = "float32"):
    """New variables after `steps` updates by hand."""
    variables = variables_of(weights, dtype)
    for step in range(steps):
        apply(optimizer, [gradients[path][step] for path in weights], variables)
    return variables


def decaying_rate(initial: float):
    """A schedule that changes at every step, and the same as a function of the number of updates before."""
    return _schedules.InverseTimeDecay(initial, 1, 0.5), lambda step: initial / (1 + 0.5 * step)


def transcribed_step(name: str, weight, gradient, slots, number: int, rate: float, path: str, **changes):
    """One update by the float64 transcription: `(weight, slots)`. `number` is 1 at the first update."""
    cls, arguments = OPTIMIZERS[name]
    arguments = {**arguments, **changes, "learning_rate": rate}
    plain = path in EXCLUDED
    if cls is LARS:
        weight, *slots = lars_step(
            weight, gradient, *slots, decay_excluded=plain, adaptation_excluded=plain, **arguments
        )
    elif cls is LAMB:
        arguments["bias_correction"] = arguments.pop("correct_bias", True)
        weight, *slots = lamb_step(
            weight, gradient, *slots, number, decay_excluded=plain, adaptation_excluded=plain, **arguments
        )
    elif cls in (DecentLaM, DmSGD):
        decay = 0.0 if plain else arguments.get("weight_decay", 0.0)
        displacement = arguments.get("momentum", 0.9) * slots[0] + rate * (gradient + decay * weight)
        weight, slots = weight - displacement, [displacement]
    else:
        axes = arguments.pop("channel_axes", {})
        arguments["channel_axes"] = next((value for key, value in axes.items() if key.strip("$") in path), (-1,))
        arguments["weight_decay_ratio"] = arguments.pop("wd_ratio", 0.1)
        if plain:
            arguments |= {"weight_decay": 0.0, "delta": -math.inf}
        weight, *slots = adamp_step(weight, gradient, *slots, number, **arguments)
    return weight, slots


def transcription(name: str, weights: dict, gradients: dict, rate, steps: int = 6, **changes):
    """Weights and slots by path after `steps` updates; `rate` is a function of the number of updates before."""
    final = {}
    for path, weight in weights.items():
        slots = [np.zeros_like(weight)] * len(OPTIMIZERS[name][0].slot_names)
        for step in range(steps):
            weight, slots = transcribed_step(
                name, weight, gradients[path][step], slots, step + 1, rate(step), path, **changes
            )
        final[path] = weight, slots
    return final
