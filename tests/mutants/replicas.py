"""Breaks of what the package does on several replicas and against interruptions."""

from tests.mutants.mutant import Mutant

_OPTIMIZERS = "test_keras3_faults.py::test_optimizers_of_the_package[{}]"
_KERAS3 = "distribute/keras3.py"
_BACKUP = "callbacks/backup.py"

REPLICAS = (
    Mutant(
        "clip_before_the_sum",
        _KERAS3,
        "pairs = self._all_reduce_sum_gradients(list(zip(grads, variables, strict=True)))",
        "pairs = self._all_reduce_sum_gradients(list(zip(self._clip_gradients(grads), variables, strict=True)))",
        ("test_replicas.py::test_custom_loop[lars-global_clipnorm-2]",),
    ),
    Mutant(
        "accumulated_gradients_are_kept",
        _KERAS3,
        "accumulator.assign(tf.zeros_like(total))",
        "accumulator.assign(total)",
        (_OPTIMIZERS.format("lamb-2-accumulation"),),
    ),
    Mutant(
        "sum_of_accumulated_gradients_instead_of_the_mean",
        _KERAS3,
        "[total / self.gradient_accumulation_steps for total in totals]",
        "totals",
        (_OPTIMIZERS.format("lars-2-accumulation"),),
    ),
    Mutant(
        "clipped_gradients_are_accumulated",
        _KERAS3,
        "self._update_or_accumulate, variables, mean, totals, accumulators, last, self.learning_rate",
        "self._update_or_accumulate, variables, mean, mean, accumulators, last, self.learning_rate",
        (_OPTIMIZERS.format("lars-2-accumulation"),),
    ),
    Mutant(
        "average_is_never_taken_over",
        _KERAS3,
        "_keras.tensorflow.cond(due, overwrite, lambda: None)",
        "_keras.tensorflow.cond(due, lambda: None, lambda: None)",
        (_OPTIMIZERS.format("lamb-2-moving_average"),),
    ),
    Mutant(
        "statistics_of_the_first_replica",
        "distribute/batch_statistics.py",
        "variable.assign(mean)",
        "variable.assign(variable)",
        ("test_batch_statistics.py::test_weights_are_those_of_the_average",),
    ),
    Mutant(
        "evaluates_without_averaging",
        "distribute/batch_statistics.py",
        '("evaluate", "predict",',
        '("predict",',
        ("test_batch_statistics.py::test_what_reads_gives_each_replica_the_average[evaluate]",),
    ),
    Mutant(
        "backup_before_the_other_callbacks",
        _BACKUP,
        "        self._finished = epoch + 1\n",
        "        self._finished = epoch + 1\n        self._save()\n",
        ("test_backup.py::test_rate_that_a_later_callback_has_changed",),
    ),
    Mutant(
        "damaged_backup_is_loaded",
        _BACKUP,
        "if _checksum(path) != checksum:",
        "if False:",
        ("test_backup.py::test_damaged_weights_are_refused_and_left_alone[flipped]",),
    ),
    Mutant(
        "backup_of_another_optimizer_is_loaded",
        _BACKUP,
        '        _require_same_variables(self.folder, record["variables"], _variables(self.model))\n',
        "",
        ("test_backup.py::test_backup_of_another_optimizer",),
    ),
    Mutant(
        "full_disk_is_not_looked_for",
        _BACKUP,
        "            _require_room(partial, _keras.state_bytes(self.model))\n",
        "",
        ("test_backup.py::test_full_disk_loses_nothing",),
    ),
    Mutant(
        "older_backup_goes_first",
        _BACKUP,
        "        older, optimizer = self._files_of_epochs(), self.model.optimizer\n",
        "        older, optimizer = self._files_of_epochs(), self.model.optimizer\n"
        "        [path.unlink() for path in older]\n        older = []\n",
        ("test_backup.py::test_full_disk_loses_nothing",),
    ),
    Mutant(
        "workers_that_differ_are_not_told",
        "distribute/agreement.py",
        "if any(value != found[0] for value in found)",
        "if all(value != found[0] for value in found)",
        ("test_faults.py::test_every_worker_is_told_what_differs",),
    ),
    Mutant(
        "each_worker_restores_what_it_sees",
        _BACKUP,
        "            if checksum != seen[0]:\n",
        "            if False:\n",
        ("test_faults.py::test_every_worker_is_told_what_differs",),
    ),
)
