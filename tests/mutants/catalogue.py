"""The breaks: mistakes found in public implementations, and what blind tests elsewhere let pass."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """Replaces `text`, which occurs exactly once in `file`, and expects the test nodes `tests` to fail.

    `file` is relative to the package, `tests` to the folder of the tests.
    """

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]


_ORACLE = "test_rules.py::test_oracle[{}-float64]"
_LAMB = (_ORACLE.format("lamb"),)
_LARS = (_ORACLE.format("lars"),)

MUTANTS = (
    Mutant("lamb_sign", "rules/lamb.py", "change = rate * update", "change = rate * ops.sign(update)", _LAMB),
    Mutant(
        "lamb_no_trust_ratio",
        "rules/lamb.py",
        "rate = rate * (ratio if max_trust_ratio is None else ops.minimum(ratio, max_trust_ratio))",
        "rate = rate * ops.ones_like(ratio)",
        _LAMB,
    ),
    Mutant(
        "trust_ratio_halved",
        "rules/trust_ratio.py",
        "ratio = coefficient * weight_norm",
        "ratio = 0.5 * coefficient * weight_norm",
        _LARS,
    ),
    Mutant(
        "lamb_decay_outside",
        "rules/lamb.py",
        'if weight_decay and decay == "outside" else None',
        "if weight_decay else None",
        _LAMB,
    ),
    Mutant(
        "lamb_no_bias_correction",
        "rules/lamb.py",
        "scale = root / bias_correction(beta_1, step) if correct_bias else 1.0",
        "scale = 1.0",
        (_ORACLE.format("lamb_bias_excluded_from_both"),),
    ),
    Mutant(
        "warmup_scaled_twice",
        "schedules/legw.py",
        "warmup_epochs=warmup,",
        "warmup_epochs=warmup * self.factor,",
        ("test_legw.py::test_fact_1_warmup_steps_do_not_depend_on_the_batch_size",),
    ),
    Mutant(
        "linear_instead_of_square_root",
        "scaling/legw.py",
        "* math.sqrt(factor)",
        "* factor",
        ("test_legw.py::test_fact_2_constant_rate",),
    ),
    Mutant(
        "ramp_per_epoch",
        "schedules/warmup.py",
        "warmup_ramp(step, self.warmup_steps)",
        "warmup_ramp(ops.floor(step / self.steps_per_epoch) * self.steps_per_epoch, self.warmup_steps)",
        ("test_legw.py::test_ramp_is_per_step",),
    ),
    Mutant("lars_joint_norm", "rules/lars.py", 'joint = denominator == "joint"', "joint = True", _LARS),
    Mutant(
        "lars_rate_outside_the_momentum",
        "rules/lars.py",
        "    direction = gradient + weight_decay * weight if weight_decay else gradient",
        '    rate = "outside"\n    direction = gradient + weight_decay * weight if weight_decay else gradient',
        ("test_rules.py::test_lars_rate_inside_or_outside_the_momentum[inside-0.4999212]",),
    ),
    Mutant(
        "decay_twice",
        "optimizers/base.py",
        "def _apply_weight_decay(self, variables):",
        "def _decay_of_its_own(self, variables):",
        ("test_contract_optimizers.py::test_agrees_with_the_transcription[lamb]",),
    ),
    Mutant(
        "adamp_wrong_axis",
        "rules/projection.py",
        "channels = [axis % rank for axis in channel_axes]",
        "channels = [0 for axis in channel_axes]",
        (_ORACLE.format("adamp_keras_layout"),),
    ),
    Mutant(
        "adamp_cosine_of_the_momentum",
        "rules/adamp.py",
        "project(weight, gradient, direction,",
        "project(weight, momentum, direction,",
        ("test_contract_optimizers.py::test_agrees_with_the_transcription[adamp]",),
    ),
    Mutant(
        "clip_before_the_sum",
        "distribute/reduction.py",
        "        return grads\n",
        "        return super()._clip_gradients(densify(grads))\n",
        ("test_replicas.py::test_custom_loop[lars-global_clipnorm-2]",),
    ),
    Mutant(
        "empty_list_means_default",
        "optimizers/exclusions.py",
        "DEFAULT_EXCLUSION if exclusion is None else exclusion",
        "exclusion or DEFAULT_EXCLUSION",
        ("test_exclusions.py::test_empty_list_excludes_nothing_and_none_is_the_default",),
    ),
)
