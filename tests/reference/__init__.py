"""Float64 NumPy transcriptions of the papers, sharing nothing with keras_lsb: the oracles of its tests."""
