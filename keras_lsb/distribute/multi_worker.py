"""`fit` under MultiWorkerMirroredStrategy on Keras 3, which stock Keras 3.15 refuses in two places.

It builds models from batches of several replicas with a reduction that takes one array, and reduces scalar logs along a
first axis that they do not have. tf_keras has neither fault. Both replacements are of private functions of Keras: each
is made only where the fault is found in the function's source.
"""

import inspect
import sys

from keras_lsb import _keras

_BUILD = "_maybe_symbolic_build"
_REDUCE = "reduce_per_replica"


def enable_multi_worker_fit() -> bool:
    """Makes `fit` and `evaluate` of Keras 3 work under MultiWorkerMirroredStrategy; call it once, before `fit`.

    Returns:
        Whether anything was replaced. Nothing is on tf_keras, on JAX, in a Keras that works, and in a second call.
    """
    trainer = next((cls for cls in _keras.Model.__mro__ if _BUILD in vars(cls)), None)
    if _keras.LEGACY or _keras.tensorflow is None or trainer is None:
        return False
    module = sys.modules[trainer.__module__]
    replaced = False
    if "strategy.reduce" in inspect.getsource(vars(trainer)[_BUILD]):
        setattr(trainer, _BUILD, _build_from_local_batch)
        replaced = True
    reduce = getattr(module, _REDUCE, None)
    if reduce is not None and 'reduce("MEAN", v, axis=0)' in inspect.getsource(reduce):
        setattr(module, _REDUCE, _reducer(module, reduce))
        replaced = True
    return replaced


def _build_from_local_batch(model, iterator=None, data_batch=None):
    """Builds the model from the batch of the first local replica."""
    strategy = model._distribute_strategy
    if strategy is None:
        return
    if iterator is not None:
        batches = next(batches for _, _, batches in iterator)
        data_batch = _keras.map_structure(lambda part: strategy.experimental_local_results(part)[0], next(batches))
    with strategy.scope():
        model._symbolic_build(data_batch=data_batch)


def _reducer(module, stock):
    """`reduce_per_replica` with scalars reduced as such on several workers."""

    def reduce_per_replica(values, strategy, reduction):
        if reduction == "auto" and module._collective_all_reduce_multi_worker(strategy):
            return _keras.tensorflow.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)
        return stock(values, strategy, reduction)

    return reduce_per_replica
