"""Models that change the training step of the model they wrap."""

from keras_lsb.training.curvature import CurvatureProbe
from keras_lsb.training.microbatched import Microbatched

__all__ = ["CurvatureProbe", "Microbatched"]
