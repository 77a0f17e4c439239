"""Writes lars_lamb_optax.json: optax' LARS and LAMB over five steps in float64.

    python tests/golden/make_optax.py

optax.lars divides by the norm of the gradient with decay and keeps the learning rate inside the momentum. A learning
rate that is a list gives the rate of each step. AdamW is here because AdamP with delta = 0 is AdamW. The lists
`exclude_from_...` stand for optax' masks.
"""

import platform

import jax
import jax.numpy as jnp
import numpy as np
import optax
from inputs import SHAPES, STEPS, make_inputs, write_golden

SCHEDULE = [0.1, 0.1, 0.01, 0.01, 0.2]
EXCLUSIONS = {"exclude_from_weight_decay": ["bias"], "exclude_from_layer_adaptation": ["bias"]}
DEFAULTS = {
    "lars": {
        "learning_rate": 1.0,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "trust_coefficient": 0.001,
        "eps": 0.0,
        "nesterov": False,
    },
    "lamb": {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.0},
    "adamw": {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1},
}
RUNS = [
    ("lars", "plain", {}),
    ("lars", "decay", {"weight_decay": 0.1}),
    ("lars", "schedule", {"learning_rate": SCHEDULE}),
    ("lars", "schedule_decay", {"learning_rate": SCHEDULE, "weight_decay": 0.1}),
    ("lars", "nesterov", {"nesterov": True}),
    ("lars", "schedule_decay_nesterov", {"learning_rate": SCHEDULE, "weight_decay": 0.1, "nesterov": True}),
    ("lars", "epsilon_coefficient", {"eps": 0.5, "trust_coefficient": 0.02, "momentum": 0.5}),
    ("lars", "excluded_from_both", {"weight_decay": 0.1, "learning_rate": SCHEDULE, **EXCLUSIONS}),
    (
        "lars",
        "different_lists",
        {
            "weight_decay": 0.1,
            "exclude_from_weight_decay": ["vector"],
            "exclude_from_layer_adaptation": ["bias", "matrix"],
        },
    ),
    ("lamb", "plain", {}),
    ("lamb", "decay", {"weight_decay": 0.1}),
    ("lamb", "schedule_decay", {"learning_rate": SCHEDULE, "weight_decay": 0.1}),
    ("lamb", "excluded_from_weight_decay", {"weight_decay": 0.1, "exclude_from_weight_decay": ["bias"]}),
    ("lamb", "large_epsilon", {"weight_decay": 0.1, "eps": 0.01}),
    ("adamw", "plain", {"weight_decay": 0.0}),
    ("adamw", "decay", {}),
]


def build(kind, settings):
    """Returns the optax optimizer for our settings."""
    arguments = dict(settings)
    rates = arguments["learning_rate"]
    if isinstance(rates, list):
        arguments["learning_rate"] = lambda count: jnp.asarray(rates)[count]
    for key, mask in (
        ("exclude_from_weight_decay", "weight_decay_mask" if kind == "lars" else "mask"),
        ("exclude_from_layer_adaptation", "trust_ratio_mask"),
    ):
        if key in arguments:
            excluded = arguments.pop(key)
            arguments[mask] = {name: name not in excluded for name in SHAPES}
    return getattr(optax, kind)(**arguments)


def run(kind, name, changes):
    """Runs one optimizer over all steps and returns its record."""
    settings = {**DEFAULTS[kind], **changes}
    optimizer = build(kind, settings)
    weights, gradients = make_inputs()
    weights = {key: jnp.asarray(value, jnp.float64) for key, value in weights.items()}
    state = optimizer.init(weights)
    history = {key: [] for key in weights}
    for step in range(STEPS):
        gradient = {key: jnp.asarray(values[step], jnp.float64) for key, values in gradients.items()}
        updates, state = optimizer.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        for key, value in weights.items():
            history[key].append(np.asarray(value))
    dtype = str(weights["matrix"].dtype)
    return {"name": name, "optimizer": f"optax.{kind}", "dtype": dtype, "settings": settings, "weights": history}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    write_golden(
        "lars_lamb_optax.json",
        {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "jax": jax.__version__,
            "optax": optax.__version__,
        },
        [run(*arguments) for arguments in RUNS],
    )
