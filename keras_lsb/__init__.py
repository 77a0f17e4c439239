"""keras_lsb: large-batch training for TensorFlow and Keras."""

from keras_lsb import (
    callbacks,
    distribute,
    fixedpoint,
    optimizers,
    quantization,
    scaling,
    schedules,
    topology,
    training,
)

__version__ = "0.1.0"
__all__ = [
    "callbacks",
    "distribute",
    "fixedpoint",
    "optimizers",
    "quantization",
    "scaling",
    "schedules",
    "topology",
    "training",
]
