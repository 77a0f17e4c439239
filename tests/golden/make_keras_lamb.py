"""Writes lamb_keras.json: keras.optimizers.Lamb, whose decay is outside the trust ratio, over five steps in float64.

    python tests/golden/make_keras_lamb.py

Runs on the JAX backend: on TensorFlow, Keras rounds the betas and the decay to float32 on their way.
"""

import os
import platform

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_X64"] = "1"

import jax
import keras
import numpy as np
from inputs import STEPS, make_inputs, write_golden

DEFAULTS = {
    "learning_rate": 0.01,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-7,
    "weight_decay": None,
    "exclude_from_weight_decay": [],
}
RUNS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "excluded_from_weight_decay": {"weight_decay": 0.1, "exclude_from_weight_decay": ["bias"]},
    "epsilon": {"epsilon": 1e-6},
    "large_epsilon": {"weight_decay": 0.1, "epsilon": 0.01},
    "other_betas": {"weight_decay": 0.5, "beta_1": 0.5, "beta_2": 0.75, "learning_rate": 0.1},
}


def run(name, changes):
    """Runs one optimizer over all steps and returns its record."""
    settings = {**DEFAULTS, **changes}
    arguments = dict(settings)
    excluded = arguments.pop("exclude_from_weight_decay")
    optimizer = keras.optimizers.Lamb(**arguments)
    optimizer.exclude_from_weight_decay(var_names=excluded)

    weights, gradients = make_inputs()
    variables = {key: keras.Variable(value, dtype="float64", name=key) for key, value in weights.items()}
    history = {key: [] for key in variables}
    for step in range(STEPS):
        optimizer.apply([gradients[key][step] for key in variables], list(variables.values()))
        for key, variable in variables.items():
            history[key].append(np.asarray(variable.value))
    return {
        "name": name,
        "optimizer": "keras.optimizers.Lamb",
        "dtype": variables["matrix"].dtype,
        "settings": settings,
        "weights": history,
    }


if __name__ == "__main__":
    keras.config.set_floatx("float64")
    write_golden(
        "lamb_keras.json",
        {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "jax": jax.__version__,
            "keras": keras.__version__,
            "backend": keras.config.backend(),
        },
        [run(name, changes) for name, changes in RUNS.items()],
    )
