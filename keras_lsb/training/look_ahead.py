"""The training function of `ConAdv`: it holds the batches that come next, and the examples made for them.

Examples made ahead are a cache. What they are made from is state of the model, its weights of former steps, so that
where there is no batch to look ahead to (the end of an epoch, `train_on_batch`, a resumed run) they are made when their
batch comes, from those weights, and are the same.
"""

import collections
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_lsb import _keras
from keras_lsb._types import Model, Structure, Tensor

tf = _keras.tensorflow


class Step(NamedTuple):
    """What one training step of a replica works on.

    Attributes:
        batch: (x, y, sample_weight), as `fit` hands it out.
        adversarial: the adversarial inputs made for it before, by name; None if there are none yet.
        ahead: the batch that comes `staleness` steps later, for which the step makes them; None for none.
        crafted: a list that the step puts these into.
    """

    batch: tuple
    adversarial: dict | None
    ahead: tuple | None
    crafted: list


class LookAhead:
    """Trains on the next batch of an iterator, having seen the one that comes `staleness` steps later.

    Args:
        model: a compiled `ConAdv`.
    """

    def __init__(self, model: Model):
        self._model = model
        self._iterator: Any = None
        self._held: collections.deque = collections.deque()
        self._ended = False
        self._update = self._compiled(self._update_on_replica, reduced=True)
        self._craft = self._compiled(self._craft_on_replica, reduced=False)

    def __call__(self, iterator: Iterator) -> dict:
        """Runs `steps_per_execution` steps, and returns the logs of the last one.

        Raises:
            StopIteration: there was not one batch left.
        """
        if iterator is not self._iterator:  # the rest of another epoch's batches is not trained on
            self._iterator, self._ended = iterator, False
            self._held.clear()
        logs = None
        for _ in range(_keras.steps_per_execution(self._model)):
            self._fetch(self._model.look_ahead + 1)
            if not self._held:
                break
            logs = self._train()
        if self._ended and not self._held:
            self._iterator = None  # and with it the batches that it holds
        if logs is None:
            raise StopIteration
        return logs

    def _train(self) -> dict:
        batch, adversarial = self._held.popleft()
        self._model.prepare(batch)
        distance = self._model.look_ahead
        ahead = self._held[distance - 1][0] if distance and len(self._held) >= distance else None
        if adversarial is None and self._model.look_ahead:
            adversarial = self._craft(batch)
        logs, crafted = self._update(batch, adversarial, ahead)
        if ahead is not None:
            self._held[distance - 1] = (ahead, crafted)
        _keras.count_training_step(self._model)
        return logs

    def _fetch(self, count: int) -> None:
        while len(self._held) < count and not self._ended:
            try:
                self._held.append((_next(self._iterator), None))
            except (StopIteration, tf.errors.OutOfRangeError):
                self._ended = True

    def _update_on_replica(self, batch: Structure, adversarial: Tensor, ahead: Structure) -> tuple[dict, dict]:
        crafted: list[dict] = []
        logs = self._model.train_step(Step(batch, adversarial, ahead, crafted))
        return logs, (crafted[0] if crafted else {})

    def _craft_on_replica(self, batch: Structure) -> dict:
        return self._model.craft_now(batch)

    def _compiled(self, on_replica: Callable, reduced: bool) -> Callable:
        """`on_replica` on all replicas; the first of its results is reduced to one value for all if `reduced`."""
        model, strategy = self._model, self._model.distribute_strategy
        jit = model.jit_compile is True and not model.run_eagerly
        one = tf.function(on_replica, jit_compile=True, reduce_retracing=True, autograph=False) if jit else on_replica

        def run(*arguments: Any) -> Any:
            outputs = strategy.run(one, args=arguments)
            if not reduced:
                return outputs
            logs, crafted = outputs
            return _keras.reduce_logs(model, logs), crafted

        return run if model.run_eagerly else tf.function(run, reduce_retracing=True, autograph=False)


def _next(iterator: Iterator) -> Structure:
    """The next batch of an iterator of any kind; raises where there is none."""
    if not hasattr(iterator, "get_next_as_optional"):  # those of datasets have it, on one replica or several
        return _keras.map_structure(_as_tensor, next(iterator))
    optional = iterator.get_next_as_optional()
    if not optional.has_value():
        raise StopIteration
    return optional.get_value()


def _as_tensor(value: Any) -> Any:
    """`train_on_batch` hands out arrays, which an eager step would get as they are."""
    return tf.convert_to_tensor(value) if isinstance(value, np.ndarray) else value
