"""Quantization-aware training with tfmot, export to LiteRT, and proof of what the file computes."""

from keras_lsb.quantization.aware import quantize_model, quantize_scheme
from keras_lsb.quantization.calibrate import calibrate
from keras_lsb.quantization.convert import to_tflite
from keras_lsb.quantization.flatten import flatten_model
from keras_lsb.quantization.loading import quantize_scope
from keras_lsb.quantization.normalization import FixedPointNormalization
from keras_lsb.quantization.replace import fixed_point_model
from keras_lsb.quantization.report import LayerReport, OutputReport, Report
from keras_lsb.quantization.verify import verify

__all__ = [
    "FixedPointNormalization",
    "LayerReport",
    "OutputReport",
    "Report",
    "calibrate",
    "fixed_point_model",
    "flatten_model",
    "quantize_model",
    "quantize_scheme",
    "quantize_scope",
    "to_tflite",
    "verify",
]
