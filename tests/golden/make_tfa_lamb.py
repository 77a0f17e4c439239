"""Writes lamb_tensorflow_addons.json: tensorflow-addons' LAMB over five steps.

tensorflow-addons does not import on TensorFlow 2.16 or newer, so run this in an environment of its own, with
Python 3.11 or older:

    pip install "tensorflow==2.15.*" tensorflow-addons==0.23.0 "numpy<2"
    python tests/golden/make_tfa_lamb.py

tensorflow-addons stores plain hyper-parameters as float32 variables; float64 tensors, which it keeps as they are, make
the runs exact. The last run is what a user gets: plain numbers, float32 variables.
"""

import platform

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa
from inputs import STEPS, make_inputs, write_golden

DEFAULTS = {
    "learning_rate": 0.01,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "epsilon": 1e-6,
    "weight_decay": 0.0,
    "exclude_from_weight_decay": None,
    "exclude_from_layer_adaptation": None,
}
RUNS = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "excluded_from_both": {
        "weight_decay": 0.1,
        "exclude_from_weight_decay": ["bias"],
        "exclude_from_layer_adaptation": ["bias"],
    },
    "adaptation_list_empty": {
        "weight_decay": 0.1,
        "exclude_from_weight_decay": ["bias"],
        "exclude_from_layer_adaptation": [],
    },
    "adaptation_list_only": {"weight_decay": 0.1, "exclude_from_layer_adaptation": ["bias"]},
    "different_lists": {
        "weight_decay": 0.1,
        "exclude_from_weight_decay": ["vector"],
        "exclude_from_layer_adaptation": ["bias", "matrix"],
    },
    "large_epsilon": {"weight_decay": 0.1, "epsilon": 0.01},
    "small_epsilon": {"epsilon": 1e-8},
    "other_betas": {"weight_decay": 0.5, "beta_1": 0.5, "beta_2": 0.75, "learning_rate": 0.1},
    "float32": {"weight_decay": 0.1},
}


def run(name, changes):
    """Runs one optimizer over all steps and returns its record."""
    settings = {**DEFAULTS, **changes}
    dtype = "float32" if name == "float32" else "float64"
    arguments = dict(settings)
    if dtype == "float64":
        for argument in ("learning_rate", "beta_1", "beta_2", "weight_decay"):
            arguments[argument] = tf.constant(settings[argument], tf.float64)
    optimizer = tfa.optimizers.LAMB(**arguments)

    weights, gradients = make_inputs()
    variables = {key: tf.Variable(value, dtype=dtype, name=key) for key, value in weights.items()}
    history = {key: [] for key in variables}
    for step in range(STEPS):
        pairs = [(tf.constant(gradients[key][step], dtype), variable) for key, variable in variables.items()]
        optimizer.apply_gradients(pairs)
        for key, variable in variables.items():
            history[key].append(variable.numpy())
    return {
        "name": name,
        "optimizer": "tfa.optimizers.LAMB",
        "dtype": dtype,
        "settings": settings,
        "weights": history,
    }


if __name__ == "__main__":
    write_golden(
        "lamb_tensorflow_addons.json",
        {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "tensorflow": tf.__version__,
            "tensorflow_addons": tfa.__version__,
        },
        [run(name, changes) for name, changes in RUNS.items()],
    )
