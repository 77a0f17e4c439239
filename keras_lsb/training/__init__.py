"""Models that change the training step of the model they wrap."""

from keras_lsb.rules import InputUnits, input_units
from keras_lsb.training.conadv import ConAdv
from keras_lsb.training.curvature import CurvatureProbe
from keras_lsb.training.microbatched import Microbatched

__all__ = ["ConAdv", "CurvatureProbe", "InputUnits", "Microbatched", "input_units"]
