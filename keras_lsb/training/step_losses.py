"""The loss of every training step, kept on the device until somebody reads it."""

from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._keras import ops
from keras_lsb._types import Model, Structure, Tensor
from keras_lsb.distribute.reduction import local_variable, replicas_of

_ATTRIBUTE = "keras_lsb_step_losses"


class StepLosses:
    """Records the loss of each update of a model in `fit`, averaged over its examples, microbatches and replicas.

    The loss is that of Keras' own training step, taken before the update, with regularization. It costs a few
    operations on the device per step and no transfer: `read` fetches all that are new. Steps that update nothing, such
    as those that only accumulate, or that mixed precision skips, count towards the next one that does.

    Made by `on`, once per model and compilation; the training function has to be traced after that.

    Attributes:
        capacity: losses that are kept; `read` must be called before as many more updates are done.
    """

    @classmethod
    def on(cls, model: Model, capacity: int) -> "StepLosses":
        """The recorder of a model, made if it has none of this capacity; what it has recorded so far counts as read."""
        found = getattr(model.train_step, _ATTRIBUTE, None)
        if found is None or found.capacity < capacity or found._tracker is not _keras.loss_tracker(model):
            found = cls(model, capacity)
            _keras.remake_train_function(model)
        found._seen = found._recorded()[0]
        return found

    def __init__(self, model: Model, capacity: int):
        self.capacity = capacity
        self._model, self._tracker = model, _keras.loss_tracker(model)
        self._in_training, self._seen = False, 0
        self._make_variables()
        self._watch(self._tracker)
        step = getattr(getattr(model.train_step, _ATTRIBUTE, None), "_step", model.train_step)
        train_step = self._jax_step if _keras.tensorflow is None else self._tensorflow_step
        self._step = step

        def recording(*arguments: Any) -> Any:
            return train_step(*arguments)

        setattr(recording, _ATTRIBUTE, self)
        model.train_step = recording

    def read(self) -> np.ndarray:
        """The losses since the last call, one per update, float32.

        Raises:
            RuntimeError: more updates than `capacity` since then, whose first losses are lost.
        """
        count, sums = self._recorded()
        new = count - self._seen
        if new > self.capacity:
            raise RuntimeError(f"{new} updates since losses were last read, but only {self.capacity} are kept.")
        places = np.arange(self._seen, count) % self.capacity
        self._seen = count
        with np.errstate(invalid="ignore"):
            return sums[0, places] / sums[1, places]

    def _recorded(self) -> tuple[int, np.ndarray]:
        """Number of updates, and per kept update the sum over examples and their number, shape (2, capacity)."""
        _keras.synchronize(self._model)
        count, kept = _keras.host_values([self._count, self._kept])
        return round(float(count) / replicas_of(self._model)), kept

    def _make_variables(self) -> None:
        shapes = {"sums": (2,), "kept": (2, self.capacity), "count": ()}
        if _keras.tensorflow is None:
            # As variables of a metric they are part of the state that Keras passes through a step.
            made = [self._tracker.add_variable(shape, "zeros", name=name) for name, shape in shapes.items()]
        else:
            with self._model.distribute_strategy.scope():
                made = [local_variable(shape, "float32") for shape in shapes.values()]
        self._sums, self._kept, self._count = made

    def _watch(self, tracker: Any) -> None:
        stock = tracker.update_state

        def update_state(values: Tensor, sample_weight: Tensor | None = None) -> Any:
            if self._in_training:
                weight = ops.cast(1.0 if sample_weight is None else sample_weight, "float32")
                loss = ops.stop_gradient(ops.cast(values, "float32"))
                # A replica without examples has no loss; what it has instead may be NaN.
                self._sums.assign_add(ops.stack([ops.where(weight > 0, loss * weight, 0.0), weight]))
            return stock(values, sample_weight=sample_weight)

        tracker.update_state = update_state

    def _tensorflow_step(self, data: Structure) -> dict:
        before = _keras.read(_keras.iterations(self._model.optimizer))
        self._in_training = True
        try:
            logs = self._step(data)
        finally:
            self._in_training = False
        self._finish(_keras.read(_keras.iterations(self._model.optimizer)) > before)
        return logs

    def _jax_step(self, state: tuple, data: Structure) -> tuple[dict, tuple]:
        self._in_training = True
        try:
            logs, after = self._step(state, data)
        finally:
            self._in_training = False
        variables = self._model.optimizer.variables
        count = [variable is _keras.iterations(self._model.optimizer) for variable in variables].index(True)
        updated = after[2][count] > state[2][count]
        metrics = _keras.updated_values(self._model.metrics_variables, after[3], lambda: self._finish(updated))
        return logs, (*after[:3], metrics)

    def _finish(self, updated: Any) -> None:
        """Keeps the sums of a step in which the optimizer has updated, and begins new ones."""
        sums, count = ops.convert_to_tensor(self._sums), ops.convert_to_tensor(self._count)
        here = ops.equal(ops.arange(self.capacity, dtype="float32"), count % self.capacity)
        self._kept.assign(ops.where(ops.logical_and(updated, here), sums[:, None], ops.convert_to_tensor(self._kept)))
        self._sums.assign(ops.where(updated, ops.zeros_like(sums), sums))
        self._count.assign_add(ops.cast(updated, "float32"))
