"""Exact integer arithmetic for quantized networks: arrays in, arrays out."""

from keras_lsb.fixedpoint.affine import FixedPoint, solve
from keras_lsb.fixedpoint.batch_norm import from_batch_norm
from keras_lsb.fixedpoint.export import export_header
from keras_lsb.fixedpoint.requantize import QuantizedMultiplier, quantized_multiplier, requantize

__all__ = [
    "FixedPoint",
    "QuantizedMultiplier",
    "export_header",
    "from_batch_norm",
    "quantized_multiplier",
    "requantize",
    "solve",
]
