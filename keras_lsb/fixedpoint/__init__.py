"""Exact integer arithmetic for quantized networks: arrays in, arrays out."""

from keras_lsb.fixedpoint.affine import FixedPoint, solve
from keras_lsb.fixedpoint.batch_norm import from_batch_norm
from keras_lsb.fixedpoint.export import export_header

__all__ = ["FixedPoint", "export_header", "from_batch_norm", "solve"]
