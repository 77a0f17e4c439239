"""Batch-size laws: how a recipe changes with the batch size. Arrays and numbers in, arrays and numbers out."""

from keras_lsb.scaling.legw import legw

__all__ = ["legw"]
