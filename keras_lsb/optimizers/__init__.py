"""Optimizers for large batches, to pass to `model.compile`."""

from keras_lsb.optimizers.adamp import AdamP
from keras_lsb.optimizers.decentlam import DecentLaM
from keras_lsb.optimizers.dmsgd import DmSGD
from keras_lsb.optimizers.lamb import LAMB
from keras_lsb.optimizers.lars import LARS

__all__ = ["LAMB", "LARS", "AdamP", "DecentLaM", "DmSGD"]
