"""Breaks of the integers in LiteRT files, and of what is said of them."""

from tests.mutants.mutant import Mutant

_DEPTHWISE, _INT8 = "fixedpoint/depthwise.py", "fixedpoint/int8_affine.py"
_SHARE = "test_fixedpoint_depthwise.py::test_share_of_exact_channels"
_EXACT = "test_fixedpoint_depthwise.py::test_exact_outputs_and_extreme_channels"
_EXPORT, _LAYER = "test_quantization_export.py::", "test_quantization_layer.py::"

QUANTIZATION = (
    Mutant(
        "only_the_weight_of_the_converter",
        _DEPTHWISE,
        "_ROUNDS = (slice(0, 6), slice(6, 32), slice(32, 127))",
        "_ROUNDS = (slice(0, 1), slice(0, 1), slice(0, 1))",
        (_SHARE,),
    ),
    Mutant(
        "second_rounding_is_ignored",
        _DEPTHWISE,
        "needed = needed - np.where(levels >= 1, early, late)",
        "needed = needed - 0 * np.where(levels >= 1, early, late)",
        (_SHARE,),
    ),
    Mutant(
        "tail_is_rounded_as_full_vectors",
        _INT8,
        'count - count % _VECTOR if kernel == "builtin" else count',
        'count - 0 * _VECTOR if kernel == "builtin" else count',
        ("test_fixedpoint_depthwise.py::test_interpreter",),
    ),
    Mutant(
        "slope_of_a_single_step_is_kept",
        _INT8,
        "single = self.last - self.first <= 1",
        "single = self.last - self.first <= -1",
        (_EXACT,),
    ),
    Mutant(
        "negative_scale_keeps_a_positive_weight",
        _DEPTHWISE,
        "return (self.sign * weight).astype",
        "return weight.astype",
        (_SHARE,),
    ),
    Mutant(
        "no_floor_of_the_kernel_range",
        "quantization/simulation.py",
        "_LEAST_PER_OFFSET * tensorflow.abs(offset)",
        "0.0 * _LEAST_PER_OFFSET * tensorflow.abs(offset)",
        (_LAYER + "test_kernel_of_a_small_gamma_has_steps_of_its_own",),
    ),
    Mutant(
        "training_ignores_the_batch",
        "_keras.py",
        "return train() if known else infer()",
        "return infer() if known else infer()",
        (_LAYER + "test_training_is_that_of_batch_normalization",),
    ),
    Mutant(
        "float_operators_between_are_ignored",
        "quantization/verify.py",
        "if not at_the_ends and any(",
        "if not at_the_ends and not any(",
        (_EXPORT + "test_float_operators_are_named",),
    ),
    Mutant(
        "shared_constants_are_written_in_place",
        "quantization/litert.py",
        "if users > 1:",
        "if users > 100:",
        (_EXPORT + "test_every_layer_is_exact_on_the_kernel_it_was_made_for",),
    ),
    Mutant(
        "layers_without_an_operator_pass",
        "quantization/report.py",
        "return not self.float_operators and not self.missing and not",
        "return not self.float_operators and not",
        (_EXPORT + "test_command",),
    ),
    Mutant(
        "bias_keeps_the_scale_of_the_converter",
        "quantization/litert.py",
        'self._own(operator, 2, np.asarray(bias, "<i4"), input_scale * kernel_scale, 0)',
        'self._own(operator, 2, np.asarray(bias, "<i4"), self.scale(operator.inputs[2]), 0)',
        (_EXPORT + "test_layers_of_equal_weights_have_integers_of_their_own",),
    ),
)
