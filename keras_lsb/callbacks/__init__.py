"""Keras callbacks that measure a training and steer it."""

from keras_lsb.callbacks.adaptive_batch import AdaptiveBatch
from keras_lsb.callbacks.autowu import AutoWU
from keras_lsb.callbacks.backup import BackupAndRestore
from keras_lsb.callbacks.consensus import Consensus
from keras_lsb.callbacks.curvature import Curvature
from keras_lsb.callbacks.noise_scale import NoiseScale, NoiseScaleRecord
from keras_lsb.callbacks.same_settings import SameSettings

__all__ = [
    "AdaptiveBatch",
    "AutoWU",
    "BackupAndRestore",
    "Consensus",
    "Curvature",
    "NoiseScale",
    "NoiseScaleRecord",
    "SameSettings",
]
