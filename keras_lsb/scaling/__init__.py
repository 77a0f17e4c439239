"""Batch-size laws: how a recipe changes with the batch size. Arrays and numbers in, arrays and numbers out."""

from keras_lsb.scaling.adaptive import AdaptiveGain, adaptive_batch_size, adaptive_gain, learning_rate_factor
from keras_lsb.scaling.autowu import AutoWUController, AutoWUSetback, AutoWUTest, Decision
from keras_lsb.scaling.autowu_rates import AutoWURates
from keras_lsb.scaling.critical_batch import CriticalBatch
from keras_lsb.scaling.curvature import Curvature, curvature
from keras_lsb.scaling.legw import legw
from keras_lsb.scaling.noise_scale import NoiseScale, NoiseScaleEstimate, estimate, noise_scale, update_averages
from keras_lsb.scaling.plan import Plan, PlanRow, plan

__all__ = [
    "AdaptiveGain",
    "AutoWUController",
    "AutoWURates",
    "AutoWUSetback",
    "AutoWUTest",
    "CriticalBatch",
    "Curvature",
    "Decision",
    "NoiseScale",
    "NoiseScaleEstimate",
    "Plan",
    "PlanRow",
    "adaptive_batch_size",
    "adaptive_gain",
    "curvature",
    "estimate",
    "learning_rate_factor",
    "legw",
    "noise_scale",
    "plan",
    "update_averages",
]
