"""What Keras 3 does wrong under tf.distribute, mended: the only file that replaces private methods of Keras.

- Clipping acts on each replica's gradient before the sum, so that it changes with the number of replicas.
- `gradient_accumulation_steps` and `ema_overwrite_frequency` put what needs all replicas inside a condition, and raise.
- `fit` and `evaluate` under MultiWorkerMirroredStrategy build models from batches of several replicas with a reduction
  that takes one array, and reduce scalar logs along a first axis that they do not have: they raise.

The first two are mended in the package's own optimizers, the last one where `enable_multi_worker_fit` is called. Each
fault is looked for in Keras' source first: nothing is replaced where it is gone, which includes tf_keras and JAX.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Mixin, Model, Strategy, Structure, Tensor, Variable
from keras_lsb.distribute.reduction import densify, in_replica_of_several, worker_count

_BUILD = "_maybe_symbolic_build"
_REDUCE = "reduce_per_replica"


class MultiWorkerFitError(RuntimeError):
    """Stock Keras 3 cannot `fit` on several workers, and `enable_multi_worker_fit` has not been called."""


def has_fault(function: Callable | None, text: str) -> bool:
    """Whether the source of a function of Keras still holds the text by which its fault is known."""
    return function is not None and text in inspect.getsource(function)


def replicated(stock: type) -> type:
    """The base class of the package's optimizers: `stock`, with what is wrong with it on several replicas mended."""
    apply = getattr(stock, "_backend_apply_gradients", None)
    sums_later = hasattr(stock, "_all_reduce_sum_gradients")  # only with TensorFlow
    faulty = sums_later and (has_fault(apply, "self._clip_gradients(") or has_fault(apply, "ops.cond("))
    return type("ReplicatedOptimizer", (*([_ActsOnTheSum] if faulty else []), _ClipsDense, stock), {})


class _ClipsDense(Mixin):
    """Clips the dense gradient: the norm of a sparse one would count its duplicate rows apart."""

    def _clip_gradients(self, grads: list) -> list:
        return super()._clip_gradients(densify(grads))


class _ActsOnTheSum(Mixin):
    """On several replicas sums first, then accumulates, clips and updates; conditions hold one device's part only.

    Gradients are summed in every step, also where they are only accumulated. There is no pass for weight decay: the
    package's rules decay by themselves.
    """

    def _backend_apply_gradients(self, grads: Sequence[Tensor], trainable_variables: Sequence[Variable]) -> None:
        if not in_replica_of_several():
            super()._backend_apply_gradients(grads, trainable_variables)
            return
        variables = [_keras.native(variable) for variable in trainable_variables]
        pairs = self._all_reduce_sum_gradients(list(zip(grads, variables, strict=True)))
        gradients = densify([gradient for gradient, _ in pairs])
        if self.gradient_accumulation_steps:
            self._update_at_last(gradients, trainable_variables, variables)
        else:
            pairs = list(zip(self._clip_gradients(gradients), variables, strict=True))
            self._on_all_replicas(self._distributed_tf_update_step, pairs, self.learning_rate)
        if self.use_ema:
            self._update_model_variables_moving_average(self._trainable_variables)
            if self.ema_overwrite_frequency:
                due = (self.iterations + 1) % self.ema_overwrite_frequency == 0
                self._on_all_replicas(_overwrite, *self._averaged(), due)

    def _update_at_last(
        self, gradients: Sequence[Tensor], trainable_variables: Sequence[Variable], variables: Sequence[Variable]
    ) -> None:
        """Updates with the mean of the gradients since the last update if this is the last one of them."""
        accumulators = [
            _keras.native(self._accumulated_gradients[self._get_variable_index(variable)])
            for variable in trainable_variables
        ]
        totals = [gradient + total for gradient, total in zip(gradients, accumulators, strict=True)]
        mean = self._clip_gradients([total / self.gradient_accumulation_steps for total in totals])
        last = (self._iterations + 1) % self.gradient_accumulation_steps == 0
        self._on_all_replicas(
            self._update_or_accumulate, variables, mean, totals, accumulators, last, self.learning_rate
        )

    def _update_or_accumulate(
        self,
        strategy: Strategy,
        variables: Sequence[Variable],
        gradients: Sequence[Tensor],
        totals: Sequence[Tensor],
        accumulators: Sequence[Variable],
        last: Tensor,
        learning_rate: Tensor,
    ) -> None:
        tf = _keras.tensorflow

        def on_device(
            variable: Variable,
            gradient: Tensor,
            total: Tensor,
            accumulator: Tensor,
            last: Tensor,
            learning_rate: Tensor,
        ) -> None:
            def update() -> None:
                self.update_step(gradient, variable, learning_rate)
                accumulator.assign(tf.zeros_like(total))

            def accumulate() -> None:
                accumulator.assign(total)

            tf.cond(last, update, accumulate)

        for variable, *values in zip(variables, gradients, totals, accumulators, strict=True):
            strategy.extended.update(variable, on_device, args=(*values, last, learning_rate), group=False)

    def _averaged(self) -> tuple[list, list]:
        """Variables that have a moving average, and these averages."""
        pairs = zip(self._trainable_variables, self._model_variables_moving_average, strict=True)
        pairs = [tuple(map(_keras.native, pair)) for pair in pairs if pair[1] is not None]
        return [variable for variable, _ in pairs], [average for _, average in pairs]

    @staticmethod
    def _on_all_replicas(function: Callable, *arguments: Any) -> None:
        """Calls `function(strategy, *arguments)` once, for all replicas together."""
        tf = _keras.tensorflow
        tf.__internal__.distribute.interim.maybe_merge_call(function, tf.distribute.get_strategy(), *arguments)


def _overwrite(strategy: Strategy, variables: Sequence[Variable], averages: Sequence[Variable], due: Tensor) -> None:
    def on_device(variable: Variable, average: Tensor, due: Tensor) -> None:
        def overwrite() -> None:
            variable.assign(average)

        _keras.tensorflow.cond(due, overwrite, lambda: None)

    for variable, average in zip(variables, averages, strict=True):
        strategy.extended.update(variable, on_device, args=(average, due), group=False)


ReplicatedOptimizer: Any = replicated(_keras.Optimizer)


def enable_multi_worker_fit() -> bool:
    """Makes `fit` and `evaluate` of Keras 3 work under MultiWorkerMirroredStrategy; call it once, before `fit`.

    Returns:
        Whether anything was replaced. Nothing is on tf_keras, on JAX, in a Keras that works, and in a second call.
    """
    trainer = _trainer()
    if trainer is None:
        return False
    replaced = False
    if has_fault(_stock(trainer), "strategy.reduce"):
        setattr(trainer, _BUILD, _build_from_local_batch)
        replaced = True
    module = sys.modules[trainer.__module__]
    reduce: Any = getattr(module, _REDUCE, None)
    if has_fault(reduce, 'reduce("MEAN", v, axis=0)'):
        setattr(module, _REDUCE, _reducer(module, reduce))
        replaced = True
    return replaced


def name_the_remedy() -> bool:
    """Has `fit` on several workers end in an error that names `enable_multi_worker_fit`, until that is called.

    Returns:
        Whether Keras has the fault.
    """
    trainer = _trainer()
    if trainer is None or not has_fault(_stock(trainer), "strategy.reduce"):
        return False
    stock = _stock(trainer)

    @functools.wraps(stock)
    def build(model: Model, *arguments: Any, **keywords: Any) -> Any:
        if worker_count(model._distribute_strategy) > 1:
            raise MultiWorkerFitError(
                "Keras 3 cannot fit or evaluate a model on several workers. Call "
                "`keras_lsb.distribute.enable_multi_worker_fit()` once, before `fit`, on every worker."
            )
        return stock(model, *arguments, **keywords)

    setattr(trainer, _BUILD, build)
    return True


def _trainer() -> type | None:
    """The class of Keras 3 that holds `fit` with TensorFlow, None elsewhere."""
    if _keras.LEGACY or _keras.tensorflow is None:
        return None
    return next((cls for cls in _keras.Model.__mro__ if _BUILD in vars(cls)), None)


def _stock(trainer: type) -> Callable:
    """Keras' own way to build a model, also where `name_the_remedy` stands before it."""
    return inspect.unwrap(vars(trainer)[_BUILD])


def _build_from_local_batch(model: Model, iterator: Iterator | None = None, data_batch: Structure = None) -> None:
    """Builds the model from the batch of the first local replica."""
    strategy = model._distribute_strategy
    if strategy is None:
        return
    if iterator is not None:
        batches = next(batches for _, _, batches in iterator)
        data_batch = _keras.map_structure(lambda part: strategy.experimental_local_results(part)[0], next(batches))
    with strategy.scope():
        model._symbolic_build(data_batch=data_batch)


def _reducer(module: Any, stock: Callable) -> Callable:
    """`reduce_per_replica` with scalars reduced as such on several workers."""

    def reduce_per_replica(values: Any, strategy: Strategy, reduction: str) -> Structure:
        if reduction == "auto" and module._collective_all_reduce_multi_worker(strategy):
            return _keras.tensorflow.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        return stock(values, strategy, reduction)

    return reduce_per_replica
