"""The breaks of ConAdv: weights of the wrong step, sets of normalization that leak, attacks in the wrong units."""

from tests.mutants.mutant import Mutant

_CONADV, _ATTACK, _LOOK_AHEAD = "training/conadv.py", "training/attack.py", "training/look_ahead.py"
_BRANCHES, _KEPT, _RULE = "training/branches.py", "training/kept_weights.py", "rules/attack.py"
_AGREES = "test_conadv.py::test_arguments_agree_with_the_reference[{}]"
_EXAMPLES, _STATE, _GRAPH = "test_conadv_attack.py::{}", "test_conadv_state.py::{}", "test_conadv_graph.py::{}"
_BATCHES = "test_conadv.py::test_train_on_batch_agrees_with_the_reference[1]"
_SUMMED = "test_conadv.py::test_sample_weights_smoothing_and_regularizer"

_TRAINS = "        logs = tensorflow_step.train_step(self, ((x, adversarial), y, sample_weight))\n"

CONADV = (
    Mutant(
        "adversarial_statistics_in_the_main_set",
        _CONADV,
        "            with self.adversarial_set.in_place():\n                adversarial_pred",
        "            if True:\n                adversarial_pred",
        (_STATE.format("test_fact_7_statistics_stay_apart"),),
    ),
    Mutant(
        "kept_weights_not_used",
        _KEPT,
        "for step in self.steps[:1]",
        "for step in self.steps[:0]",
        (_BATCHES,),
    ),
    Mutant(
        "weights_of_before_the_start_are_zero",
        _KEPT,
        "copy.assign(_keras.read(variable))",
        "copy.assign(0 * _keras.read(variable))",
        (_BATCHES,),
    ),
    Mutant(
        "kept_weights_of_after_the_update",
        _CONADV,
        "        self._memory.kept.keep()\n" + _TRAINS,
        _TRAINS + "        self._memory.kept.keep()\n",
        (_BATCHES,),
    ),
    Mutant(
        "examples_made_ahead_with_a_later_index",
        _CONADV,
        "tf.convert_to_tensor(self.steps) + self.look_ahead))",
        "tf.convert_to_tensor(self.steps)))",
        (_EXAMPLES.format("test_fit_and_train_on_batch_draw_alike[2]"),),
    ),
    Mutant(
        "attack_after_the_update",
        _CONADV,
        "        self.steps.assign_add(1.0)\n        return logs",
        "        if step.ahead is not None:\n"
        "            step.crafted[:] = [self.craft(step.ahead, tf.convert_to_tensor(self.steps) + self.look_ahead)]\n"
        "        self.steps.assign_add(1.0)\n        return logs",
        (
            _GRAPH.format("test_update_and_attack_wait_for_nothing_of_each_other[SGD]"),
            _AGREES.format("loss_weights-fit"),
        ),
    ),
    Mutant(
        "kept_weights_begin_anew_in_every_run",
        _CONADV,
        "if float(_keras.read(self.steps)) == 0:",
        "if True:",
        (_STATE.format("test_fact_14_saved_weights_go_on_as_if_never_stopped"),),
    ),
    Mutant(
        "attack_at_inference_with_the_present_statistics",
        "training/attacked.py",
        "if not self.attack_training:",
        "if False:",
        (_AGREES.format("at_inference-train_on_batches"),),
    ),
    Mutant(
        "weights_of_the_branches_swapped",
        _CONADV,
        "    return values[0], values[1]\n",
        "    return values[1], values[0]\n",
        (_AGREES.format("loss_weights-fit"),),
    ),
    Mutant(
        "regularizer_in_both_branches",
        _CONADV,
        "+ additional_loss(self, losses[0].dtype)",
        "+ 2 * additional_loss(self, losses[0].dtype)",
        (_SUMMED,),
    ),
    Mutant(
        "sample_weights_of_one_branch",
        _CONADV,
        "branch_loss(self, inputs, y, adversarial_pred, sample_weight)",
        "branch_loss(self, inputs, y, adversarial_pred)",
        (_SUMMED,),
    ),
    Mutant(
        "leftover_batches_dropped",
        _LOOK_AHEAD,
        "            if not self._held:\n                break\n",
        "            if len(self._held) <= self._model.look_ahead:\n                break\n",
        ("test_conadv.py::test_dataset_of_unknown_size[1]",),
    ),
    Mutant(
        "examples_beside_another_batch",
        _LOOK_AHEAD,
        "self._held[distance - 1] = (ahead, crafted)",
        "self._held[0] = (self._held[0][0], crafted)",
        ("test_conadv.py::test_fit_and_train_on_batch_in_turns",),
    ),
    Mutant(
        "losses_of_an_empty_share_not_summed",
        "training/branch_losses.py",
        "if loss.shape.rank:",
        "if False:",
        ("test_conadv_replicas.py::test_fact_13_two_halves_are_one_batch[1-None]",),
    ),
    Mutant(
        "attack_moves_the_statistics",
        _BRANCHES,
        "with _keras.keras3.StatelessScope(state_mapping=values):",
        "with contextlib.nullcontext():",
        (_STATE.format("test_fact_10_an_attack_changes_no_variable[0]"),),
    ),
    Mutant(
        "second_set_not_a_copy",
        _BRANCHES,
        "                variable.assign(_keras.read(source))",
        "                variable.assign(variable)",
        (_STATE.format("test_second_set_begins_as_a_copy"),),
    ),
    Mutant(
        "step_size_not_divided_by_the_steps",
        _ATTACK,
        "np.asarray(_of_input(self.epsilon, name)) / self.attack_steps if step is None",
        "np.asarray(_of_input(self.epsilon, name)) if step is None",
        (_AGREES.format("steps_of_their_own_size-fit"),),
    ),
    Mutant(
        "away_from_the_targets",
        _ATTACK,
        "return -step if descend else step",
        "return step",
        (_EXAMPLES.format("test_random_targets_of_all_kinds_of_labels[one-hot]"),),
    ),
    Mutant(
        "random_start_not_keyed_by_the_step",
        _ATTACK,
        "tf.cast(index, tf.int32)])",
        "0 * tf.cast(index, tf.int32)])",
        (_EXAMPLES.format("test_random_start_is_one_coin_per_batch_and_keyed_by_the_step"),),
    ),
    Mutant(
        "targets_may_be_the_label",
        _ATTACK,
        "tf.random.stateless_uniform(shape, seed, 1, classes, tf.int32)",
        "tf.random.stateless_uniform(shape, seed, 0, classes, tf.int32)",
        (_EXAMPLES.format("test_fact_12_random_targets_are_uniform_over_the_other_classes"),),
    ),
    Mutant(
        "one_radius_for_all_channels",
        _RULE,
        "    epsilon = ops.cast(epsilon, inputs.dtype)\n    low, high",
        "    epsilon = ops.max(ops.cast(epsilon, inputs.dtype))\n    low, high",
        (_EXAMPLES.format("test_ball_and_step_agree_with_numpy"),),
    ),
    Mutant(
        "radius_in_pixels",
        _RULE,
        "tuple((epsilon / std).tolist())",
        "tuple((epsilon + 0 * std).tolist())",
        (_EXAMPLES.format("test_input_units"),),
    ),
    Mutant(
        "random_start_not_projected",
        _RULE,
        "moved = ops.clip(inputs + ops.cast(epsilon, inputs.dtype) * noise, low, high)",
        "moved = inputs + ops.cast(epsilon, inputs.dtype) * noise",
        (_EXAMPLES.format("test_random_start_is_projected"),),
    ),
)
