"""Learning-rate schedules whose recipes are written in epochs."""

from keras_lsb.schedules.autowu import AutoWU
from keras_lsb.schedules.legw import LEGW
from keras_lsb.schedules.warmup import LinearWarmup

__all__ = ["LEGW", "AutoWU", "LinearWarmup"]
