"""Update rules, one per optimizer: arrays in, arrays out. Norms and moments belong in float32 or wider."""

from keras_lsb.rules.adamp import adamp
from keras_lsb.rules.attack import InputUnits, attack_step, ball, input_units, random_start, shifted_targets
from keras_lsb.rules.decentlam import decentlam, decentlam_message, dmsgd, dmsgd_message
from keras_lsb.rules.lamb import lamb
from keras_lsb.rules.lars import lars
from keras_lsb.rules.trust_ratio import euclidean_norm, trust_ratio

__all__ = [
    "InputUnits",
    "adamp",
    "attack_step",
    "ball",
    "decentlam",
    "decentlam_message",
    "dmsgd",
    "dmsgd_message",
    "euclidean_norm",
    "input_units",
    "lamb",
    "lars",
    "random_start",
    "shifted_targets",
    "trust_ratio",
]
