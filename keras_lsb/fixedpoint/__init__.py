"""Exact integer arithmetic for quantized networks: arrays in, arrays out."""

from keras_lsb.fixedpoint.affine import FixedPoint, solve
from keras_lsb.fixedpoint.batch_norm import from_batch_norm

__all__ = ["FixedPoint", "from_batch_norm", "solve"]
