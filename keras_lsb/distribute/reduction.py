"""Sums over replicas, and on Keras 3 gradients that are clipped after the sum.

Stock Keras 3 clips each replica's gradient before the sum, so that clipnorm and global_clipnorm change with the number
of replicas. Here clipping waits for the sum. tf_keras already clips the sum, and JAX has no replicas to sum over.
"""

import contextlib

from keras_lsb import _keras
from keras_lsb._keras import ops

_REDUCTION = "_all_reduce_sum_gradients"


def densify(gradients):
    """Turns sparse gradients into dense ones, duplicates summed; None stays None."""
    return [
        ops.segment_sum(gradient.values, gradient.indices, num_segments=gradient.dense_shape[0])
        if hasattr(gradient, "indices")
        else gradient
        for gradient in gradients
    ]


def is_replicated(variable) -> bool:
    """Whether the variable is one replica's copy of a distributed variable."""
    return hasattr(variable, "_distributed_container")


def replica_count() -> int:
    """Number of replicas that train in step, 1 without a strategy."""
    return 1 if _keras.tensorflow is None else _keras.tensorflow.distribute.get_strategy().num_replicas_in_sync


def replicas_of(model) -> int:
    """Number of replicas that a model was created for."""
    return 1 if _keras.tensorflow is None else model.distribute_strategy.num_replicas_in_sync


def sum_over_replicas(tensors: list) -> list:
    """The sums of tensors over all replicas; called by each of them, and a no-op for a single one."""
    if replica_count() == 1:
        return tensors
    distribute = _keras.tensorflow.distribute
    return distribute.get_replica_context().all_reduce(distribute.ReduceOp.SUM, tensors)


def local_variable(shape, dtype):
    """A TensorFlow variable of zeros of which each replica has its own; no model tracks it."""
    tf = _keras.tensorflow
    zeros, kinds = tf.zeros(shape, dtype), (tf.VariableSynchronization.ON_READ, tf.VariableAggregation.SUM)
    return tf.Variable(zeros, trainable=False, synchronization=kinds[0], aggregation=kinds[1])


def is_multi_worker(model) -> bool:
    """Whether a model is trained by several processes, which read and save in step."""
    if _keras.tensorflow is None:
        return False
    return isinstance(model.distribute_strategy, _keras.tensorflow.distribute.MultiWorkerMirroredStrategy)


def logs_for_fit(results: dict, shared: dict) -> dict:
    """A step's logs in the form that `fit` reduces to what they are.

    tf_keras adds up what replicas return, but takes the results of metrics as they are in one process. On several
    workers it adds those up too, and hides it as long as nothing else is logged.

    Args:
        results: results of metrics.
        shared: tensors that are the same on every replica.
    """
    if not _keras.LEGACY:
        return {**results, **shared}
    strategy = _keras.tensorflow.distribute.get_strategy()
    if isinstance(strategy, _keras.tensorflow.distribute.MultiWorkerMirroredStrategy):
        results, shared = {}, {**results, **shared}
    if not isinstance(strategy, _keras.tensorflow.distribute.TPUStrategy):
        shared = {name: value / replica_count() for name, value in shared.items()}
    return {**results, **shared}


def apply_summed(optimizer, gradients: list, variables: list) -> None:
    """Applies gradients that are already summed over the replicas: clipping then sees the sum, with every optimizer."""
    pairs = list(zip(gradients, variables, strict=True))
    if _keras.LEGACY:
        optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
        return
    with _without_sum(optimizer):
        optimizer.apply_gradients(pairs)


# Names of the method that sums: the package's own optimizers clip in Keras' method and sum in the first of the two.
_SUMS = ("_sum_over_replicas", _REDUCTION)
_depths = {}  # replicas trace in turns, so that several of them can be inside `_without_sum` at a time


@contextlib.contextmanager
def _without_sum(optimizer):
    """Within it, the optimizer takes gradients as they are."""
    optimizer = _keras.innermost(optimizer)
    name = next((name for name in _SUMS if hasattr(optimizer, name)), None)
    key = id(optimizer)
    if name is not None:
        _depths[key] = _depths.get(key, 0) + 1
        object.__setattr__(optimizer, name, list)
    try:
        yield
    finally:
        if name is not None:
            _depths[key] -= 1
            if _depths[key] == 0:
                del _depths[key]
                object.__delattr__(optimizer, name)


class _ClipsDense(_keras.Optimizer):
    """Clips the dense gradient: the norm of a sparse one would count its duplicate rows apart."""

    def _clip_gradients(self, grads):
        return super()._clip_gradients(densify(grads))


class _ClipsTheSum(_keras.Optimizer):
    """Delays clipping until the gradients of all replicas are summed."""

    def _clip_gradients(self, grads):
        return grads

    def _sum_over_replicas(self, grads_and_vars):
        return super()._all_reduce_sum_gradients(grads_and_vars)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        reduced = self._sum_over_replicas(grads_and_vars)
        gradients = super()._clip_gradients(densify([gradient for gradient, _ in reduced]))
        return [(gradient, variable) for gradient, (_, variable) in zip(gradients, reduced, strict=True)]


# Only Keras 3's TensorFlow optimizer has the method. Where a later Keras has none, its own order of things is kept.
ReplicatedOptimizer = _ClipsTheSum if hasattr(_keras.Optimizer, _REDUCTION) else _ClipsDense
