"""Update rules, one per optimizer: arrays in, arrays out. Norms and moments belong in float32 or wider."""

from keras_lsb.rules.adamp import adamp
from keras_lsb.rules.decentlam import decentlam, decentlam_message, dmsgd, dmsgd_message
from keras_lsb.rules.lamb import lamb
from keras_lsb.rules.lars import lars
from keras_lsb.rules.trust_ratio import euclidean_norm, trust_ratio

__all__ = [
    "adamp",
    "decentlam",
    "decentlam_message",
    "dmsgd",
    "dmsgd_message",
    "euclidean_norm",
    "lamb",
    "lars",
    "trust_ratio",
]
