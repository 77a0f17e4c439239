"""Tests of keras_lsb."""
