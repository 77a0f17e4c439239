"""Exact integer arithmetic for quantized networks: arrays in, arrays out."""

from keras_lsb.fixedpoint.affine import FixedPoint, solve
from keras_lsb.fixedpoint.batch_norm import float_affine, from_batch_norm
from keras_lsb.fixedpoint.depthwise import Depthwise, solve_depthwise
from keras_lsb.fixedpoint.export import export_header
from keras_lsb.fixedpoint.int8_affine import Int8Affine
from keras_lsb.fixedpoint.requantize import QuantizedMultiplier, quantized_multiplier, requantize

__all__ = [
    "Depthwise",
    "FixedPoint",
    "Int8Affine",
    "QuantizedMultiplier",
    "export_header",
    "float_affine",
    "from_batch_norm",
    "quantized_multiplier",
    "requantize",
    "solve",
    "solve_depthwise",
]
