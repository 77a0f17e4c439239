"""Breaks of the exact integer affine."""

from tests.mutants.mutant import Mutant

_AFFINE = "fixedpoint/affine.py"
_THRESHOLDS = "fixedpoint/thresholds.py"
_RANDOM = "test_fixedpoint.py::test_every_output_of_random_channels[False-half_up]"
_KNOWN = "test_fixedpoint.py::test_known_solutions"

FIXEDPOINT = (
    Mutant(
        "doubt_is_left_to_floats",
        _THRESHOLDS,
        "for channel, place in np.argwhere(unsure):",
        "for channel, place in np.argwhere(unsure & False):",
        (_KNOWN + "[0.1-0-inputs10-outputs10-solution10]",),
    ),
    Mutant(
        "negative_scale_is_not_mirrored",
        _AFFINE,
        "np.where(self.negative, -high, low), np.where(self.negative, -low, high)",
        "np.full(len(least), low), np.full(len(least), high)",
        (_RANDOM,),
    ),
    Mutant(
        "thresholds_outside_the_range_are_dropped",
        _AFFINE,
        "self.has_upper = used & (self.places > self.lows[:, None])",
        "self.has_upper = used & (self.places > self.lows[:, None]) & (self.places <= self.highs[:, None])",
        (_RANDOM,),
    ),
    Mutant(
        "only_the_slope_below_is_tried",
        _THRESHOLDS,
        "return np.floor(products), np.ceil(products)",
        "return np.floor(products), np.floor(products)",
        ("test_fixedpoint.py::test_shift_is_the_least",),
    ),
    Mutant(
        "rounds_down",
        _AFFINE,
        'half = 0.5 if choice("rounding", rounding, ROUNDINGS) == "half_up" else 0.0',
        'half = 0.0 * len(choice("rounding", rounding, ROUNDINGS))',
        (_RANDOM,),
    ),
    Mutant(
        "offset_is_not_kept_within_its_bounds",
        _AFFINE,
        "min(max(int(wanted[row]), int(least[row])), int(largest[row]))",
        "int(wanted[row])",
        (_RANDOM,),
    ),
    Mutant(
        "smallest_of_the_least_shifts",
        _AFFINE,
        "needed.max() if shift is None else shift)",
        "needed.min() if shift is None else shift)",
        ("test_fixedpoint.py::test_shared_shift",),
    ),
    Mutant(
        "zero_point_of_the_output_is_left_out",
        "fixedpoint/batch_norm.py",
        "offset = intercept / output_scale + output_zero_point",
        "offset = intercept / output_scale",
        ("test_fixedpoint.py::test_batch_norm[zero_points1-None]",),
    ),
)
