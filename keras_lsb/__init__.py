"""keras_lsb: large-batch training for TensorFlow and Keras."""

from keras_lsb import optimizers, scaling, schedules

__version__ = "0.1.0"
__all__ = ["optimizers", "scaling", "schedules"]
