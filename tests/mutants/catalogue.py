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
    Mutant(
        "noise_scale_batches_swapped",
        "scaling/noise_scale.py",
        "(big_batch * big - small_batch * small)",
        "(small_batch * big - big_batch * small)",
        ("test_noise_scale.py::test_fact_1_three_small_gradients",),
    ),
    Mutant(
        "noise_scale_trace_by_the_difference_of_the_batches",
        "scaling/noise_scale.py",
        "(small - big) / (1 / small_batch - 1 / big_batch)",
        "(small - big) / (big_batch - small_batch)",
        ("test_noise_scale.py::test_both_parts_are_unbiased",),
    ),
    Mutant(
        "noise_scale_unresolved_is_finite",
        "scaling/noise_scale.py",
        "return where((signal <= 0) & measured, math.inf, ratio)",
        "return where(measured, noise / where(signal > 1e-12, signal, 1e-12), ratio)",
        ("test_noise_scale.py::test_fact_2_opposite_gradients_are_not_an_error",),
    ),
    Mutant(
        "averages_biased_towards_their_start",
        "scaling/noise_scale.py",
        "(grad_sq_norm - mean_signal) * weight / new_total",
        "(grad_sq_norm - mean_signal) * (1 - decay)",
        ("test_noise_scale.py::test_averages_agree_with_explicit_weights[0.99]",),
    ),
    Mutant(
        "measurements_weigh_alike",
        "training/tensorflow_step.py",
        "model.decay, weight=total)",
        "model.decay)",
        ("test_microbatched_noise.py::test_averages_are_those_of_gradients_at_the_same_weights",),
    ),
    Mutant(
        "measurement_clamped_at_zero",
        "scaling/noise_scale.py",
        "(grad_sq_norm - mean_signal) * weight / new_total",
        "(ops.maximum(grad_sq_norm, 0.0) - mean_signal) * weight / new_total",
        ("test_noise_scale.py::test_a_negative_measurement_keeps_its_sign",),
    ),
    Mutant(
        "measurement_not_finite_is_averaged",
        "scaling/noise_scale.py",
        "ops.where(finite, new, old)",
        "ops.where(True, new, old)",
        ("test_noise_scale.py::test_measurements_that_are_not_finite_are_counted_and_left_out",),
    ),
    Mutant(
        "skipped_not_counted",
        "scaling/noise_scale.py",
        "+ [skipped + 1]",
        "+ [skipped]",
        ("test_noise_scale.py::test_measurements_that_are_not_finite_are_counted_and_left_out",),
    ),
    Mutant(
        "interval_without_the_cross_term",
        "scaling/noise_scale.py",
        'b = signal * noise - factor * row["cross_scatter"]',
        "b = signal * noise",
        ("test_noise_scale.py::test_interval_agrees_with_the_test_it_inverts",),
    ),
    Mutant(
        "interval_of_one_side",
        "scaling/noise_scale.py",
        "stats.t.ppf((1 + confidence) / 2,",
        "stats.t.ppf(confidence,",
        ("test_noise_scale.py::test_the_interval_covers_the_noise_scale",),
    ),
    Mutant(
        "interval_counts_old_measurements_in_full",
        "scaling/noise_scale.py",
        "effective = weight**2 / squared",
        'effective = row["measurements"]',
        ("test_noise_scale.py::test_the_interval_covers_the_noise_scale[0.9]",),
    ),
    Mutant(
        "critical_batch_fitted_in_linear_space",
        "scaling/critical_batch.py",
        "    offsets = np.log(steps) - np.log1p(math.exp(log_critical) / sizes)\n"
        "    return offsets - offsets.mean(), float(offsets.mean())\n",
        "    shape = 1 + math.exp(log_critical) / sizes\n"
        "    least = float(steps @ shape / (shape @ shape))\n"
        "    return steps - least * shape, math.log(least)\n",
        ("test_critical_batch.py::test_fact_7_noisy_steps",),
    ),
    Mutant(
        "critical_batch_wrong_degrees_of_freedom",
        "scaling/critical_batch.py",
        "/ (len(sizes) - 2) /",
        "/ len(sizes) /",
        ("test_critical_batch.py::test_fact_7_noisy_steps",),
    ),
    Mutant(
        "critical_batch_stderr_as_if_the_steps_were_known",
        "scaling/critical_batch.py",
        "(share - share.mean()) ** 2",
        "share**2",
        ("test_critical_batch.py::test_fit_agrees_with_one_of_both_unknowns",),
    ),
    Mutant(
        "critical_batch_silent_at_its_bound",
        "scaling/critical_batch.py",
        "error = math.inf if at_bound else critical",
        "error = critical",
        ("test_critical_batch.py::test_steps_without_a_trade_warn_and_leave_it_open",),
    ),
    Mutant(
        "plan_cost_without_the_devices",
        "scaling/plan.py",
        "count * seconds / now,",
        "seconds / now,",
        ("test_critical_batch.py::test_plan_by_hand",),
    ),
    Mutant(
        "plan_columns_run_together",
        "scaling/plan.py",
        "_WIDTH = 10",
        "_WIDTH = 9",
        ("test_critical_batch.py::test_columns_of_large_numbers_stay_apart",),
    ),
    Mutant(
        "adaptive_batch_without_the_root",
        "scaling/adaptive.py",
        'math.sqrt(positive("exchange_rate", exchange_rate) * non_negative("noise_scale", noise_scale))',
        'positive("exchange_rate", exchange_rate) * non_negative("noise_scale", noise_scale)',
        ("test_adaptive.py::test_adaptive_batch_size_is_where_steps_and_examples_trade_at_the_exchange_rate",),
    ),
    Mutant(
        "learning_rate_against_the_noise",
        "scaling/adaptive.py",
        "(1 + noise / base_batch_size) / (1 + noise / batch_size)",
        "(1 + noise / batch_size) / (1 + noise / base_batch_size)",
        ("test_adaptive.py::test_factor_of_the_noise_is_linear_below_it_and_flat_above_it",),
    ),
    Mutant(
        "gain_by_steps_instead_of_progress",
        "scaling/adaptive.py",
        "progress = 1 / (1 + noise / sizes)",
        "progress = 0.5 * np.ones_like(noise)",
        ("test_adaptive.py::test_gain_weighs_steps_by_their_progress",),
    ),
    Mutant(
        "gain_without_the_excess_of_the_fixed_batch",
        "scaling/adaptive.py",
        "return (1 + self.gamma / excess) / (1 + 1 / excess)",
        "return 1 + self.gamma / excess",
        ("test_adaptive.py::test_steps_ratio",),
    ),
    Mutant(
        "small_norm_of_the_last_microbatch_only",
        "training/tensorflow_step.py",
        "return _structured(like, [a + b for a, b in zip(flat, _flat(more), strict=True)])",
        "sums = _structured(like, [a + b for a, b in zip(flat, _flat(more), strict=True)])\n"
        "    return sums._replace(sq_norms=more.sq_norms * sums.small_gradients)",
        ("test_microbatched_noise.py::test_averages_are_those_of_gradients_at_the_same_weights",),
    ),
    Mutant(
        "arithmetic_mean_of_the_sizes",
        "training/tensorflow_step.py",
        "signal_and_noise(norms / count, big, count / inverse_sizes, total)",
        "signal_and_noise(norms / count, big, total / count, total)",
        ("test_microbatched_noise.py::test_remainder_is_a_small_gradient_of_its_own",),
    ),
    Mutant(
        "loss_scale_left_in_the_big_gradient",
        "training/tensorflow_step.py",
        "big = sq_norms(model, gradients) / tf.square(scale)",
        "big = sq_norms(model, gradients)",
        ("test_microbatched.py::test_noise_scale_does_not_depend_on_the_loss_scale",),
    ),
    Mutant(
        "measured_before_the_sum_over_replicas",
        "training/tensorflow_step.py",
        "    gradients = _sum_present(gradients)\n"
        "    if measures_noise(model):\n"
        "        (statistics,) = sum_over_replicas([statistics])\n"
        "        _update_averages(model, gradients, statistics, total, scale)\n",
        "    local, gradients = gradients, _sum_present(gradients)\n"
        "    if measures_noise(model):\n"
        "        (statistics,) = sum_over_replicas([statistics])\n"
        "        _update_averages(model, local, statistics, total, scale)\n",
        ("test_noise_scale_replicas.py::test_shares_are_split_further",),
    ),
    Mutant(
        "statistics_of_one_replica",
        "training/tensorflow_step.py",
        "        (statistics,) = sum_over_replicas([statistics])\n",
        "",
        ("test_noise_scale_replicas.py::test_shares_are_split_further",),
    ),
    Mutant(
        "shares_of_replicas_weighted_evenly",
        "training/tensorflow_step.py",
        "sums = sum_gradients(model, batch, scale / total,",
        "sums = sum_gradients(model, batch, scale / replica_count() / examples_in(batch),",
        ("test_noise_scale_replicas.py::test_shares_of_different_size[45]",),
    ),
    Mutant(
        "empty_share_is_a_small_gradient",
        "training/tensorflow_step.py",
        "present = tf.cast(examples > 0, tf.float32)",
        "present = tf.constant(1.0)",
        ("test_noise_scale_replicas.py::test_shares_of_different_size[34]",),
    ),
    Mutant(
        "metrics_of_uneven_shares_averaged_evenly",
        "training/microbatched.py",
        "return {**logs, **self.get_metrics_result()}",
        "return logs",
        ("test_noise_scale_replicas.py::test_shares_of_different_size[45]",),
    ),
    Mutant(
        "remainder_dropped",
        "training/tensorflow_step.py",
        "tf.cond(rest > 0, add, lambda: _flat(sums))",
        "tf.cond(rest > 99, add, lambda: _flat(sums))",
        ("test_microbatched.py::test_trains_as_the_unsplit_batch[seven, with a remainder]",),
    ),
    Mutant(
        "microbatches_weighted_evenly",
        "training/tensorflow_step.py",
        "factor = weight * tf.cast(examples, tf.float32)",
        "factor = weight * 3.0",
        ("test_microbatched.py::test_trains_as_the_unsplit_batch[seven, with a remainder]",),
    ),
    Mutant(
        "accumulators_not_cleared",
        "training/tensorflow_step.py",
        "variable.assign(tf.zeros_like(variable))",
        "pass",
        ("test_accumulate.py::test_as_batches_three_times_as_large[False]",),
    ),
    Mutant(
        "accumulated_batches_weighted_evenly",
        "training/tensorflow_step.py",
        "now, then = total / total_of_all, 1 / total_of_all",
        "now, then = 1 / 3, 2 / 3 / kept.examples",
        ("test_accumulate.py::test_batches_of_different_size_count_by_their_examples",),
    ),
    Mutant(
        "averages_updated_at_every_step",
        "training/tensorflow_step.py",
        "updated() if measures_now is True else tf.cond(measures_now, updated, lambda: averages)",
        "updated()",
        ("test_microbatched_noise.py::test_interval",),
    ),
    Mutant(
        "group_measures_all_weights",
        "training/microbatched.py",
        "members.append(found)",
        "members.append(list(range(len(paths))))",
        ("test_microbatched_noise.py::test_averages_are_those_of_gradients_at_the_same_weights",),
    ),
    Mutant(
        "batch_of_the_verdict_is_the_last_one",
        "training/tensorflow_step.py",
        "model.measured_batch.assign(tf.maximum(tf.convert_to_tensor(model.measured_batch), total))",
        "model.measured_batch.assign(total)",
        ("test_callbacks.py::test_verdict_is_printed_only_when_asked_and_names_the_full_batch",),
    ),
    Mutant(
        "averages_lost_in_the_config",
        "training/microbatched.py",
        '            "decay": self.decay,\n',
        "",
        ("test_microbatched_state.py::test_config_round_trip",),
    ),
    Mutant(
        "curvature_without_its_sign",
        "scaling/curvature.py",
        "forms[0] if forms[0] > 0 else math.inf",
        "abs(forms[0])",
        ("test_curvature.py::test_negative_curvature_and_no_gradient",),
    ),
    Mutant(
        "hessian_of_the_microbatch",
        "training/curvature.py",
        "product = self._product(*self.batch, gradient)",
        "product = self._product(*next(self._parts()), gradient)",
        ("test_curvature.py::test_agrees_with_a_dense_hessian",),
    ),
    Mutant(
        "batch_shrinks_with_the_noise",
        "callbacks/adaptive_batch.py",
        "batches = max(self.model.accumulation, math.floor(target / self.batch_size))",
        "batches = max(1, math.floor(target / self.batch_size))",
        ("test_callbacks.py::test_batch_never_shrinks",),
    ),
)
