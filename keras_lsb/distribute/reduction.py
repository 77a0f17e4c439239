"""Replicas: how many there are, sums over them, and what `fit` reports of them."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from keras_lsb import _keras
from keras_lsb._keras import ops
from keras_lsb._types import Model, Optimizer, Strategy, Structure, Tensor, Variable


def densify(gradients: Iterable[Tensor]) -> list[Tensor]:
    """Turns sparse gradients into dense ones, duplicates summed; None stays None."""
    return [
        ops.segment_sum(gradient.values, gradient.indices, num_segments=gradient.dense_shape[0])
        if hasattr(gradient, "indices")
        else gradient
        for gradient in gradients
    ]


def is_replicated(variable: Variable) -> bool:
    """Whether the variable is one replica's copy of a distributed variable."""
    return hasattr(variable, "_distributed_container")


def replica_count() -> int:
    """Number of replicas that train in step, 1 without a strategy."""
    return 1 if _keras.tensorflow is None else _keras.tensorflow.distribute.get_strategy().num_replicas_in_sync


def in_replica_of_several() -> bool:
    """Whether the caller runs as one of several replicas."""
    return replica_count() > 1 and not _keras.tensorflow.distribute.in_cross_replica_context()


def replica_index() -> int | Tensor:
    """Number of the calling replica among those that train in step, a tensor; 0 outside of them."""
    context = _keras.tensorflow.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def replicas_of(model: Model) -> int:
    """Number of replicas that a model was created for."""
    return getattr(strategy_of(model), "num_replicas_in_sync", 1)


def sum_over_replicas(tensors: list) -> list:
    """The sums of tensors over all replicas; called by each of them, and a no-op for a single one."""
    if replica_count() == 1:
        return tensors
    distribute = _keras.tensorflow.distribute
    return distribute.get_replica_context().all_reduce(distribute.ReduceOp.SUM, tensors)


def local_variable(shape: Sequence[int], dtype: str) -> Variable:
    """A TensorFlow variable of zeros of which each replica has its own; no model tracks it."""
    tf = _keras.tensorflow
    zeros, kinds = tf.zeros(shape, dtype), (tf.VariableSynchronization.ON_READ, tf.VariableAggregation.SUM)
    return tf.Variable(zeros, trainable=False, synchronization=kinds[0], aggregation=kinds[1])


def local_shares(strategy: Strategy, batch: Structure) -> list:
    """The share of a batch that each replica of this process gets from a strategy, as tensors."""
    local = strategy.experimental_local_results
    return [
        _keras.map_structure(lambda part, index=index: _keras.tensorflow.convert_to_tensor(local(part)[index]), batch)
        for index in range(len(local(_keras.leaves(batch)[0])))
    ]


def strategy_of(model: Model) -> Strategy:
    """The strategy that a model was created for, None on a backend without strategies."""
    return None if _keras.tensorflow is None else model.distribute_strategy


def is_tpu(strategy: Strategy) -> bool:
    """Whether a strategy trains on the cores of TPUs."""
    return isinstance(strategy, _keras.tensorflow.distribute.TPUStrategy)


def local_copy(variable: Variable) -> Variable:
    """This replica's own copy of a variable, which it may read and change for itself."""
    variable = _keras.native(variable)
    return variable._get_on_device_or_primary() if hasattr(type(variable), "_get_on_device_or_primary") else variable


def is_multi_worker(model: Model) -> bool:
    """Whether a model is trained under a strategy for several processes, which read and save in step."""
    if _keras.tensorflow is None:
        return False
    return isinstance(model.distribute_strategy, _keras.tensorflow.distribute.MultiWorkerMirroredStrategy)


def worker_count(strategy: Strategy) -> int:
    """Processes that train in step under a strategy, 1 for None."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not isinstance(strategy, _keras.tensorflow.distribute.MultiWorkerMirroredStrategy):
        return 1
    jobs = resolver.cluster_spec().as_dict()
    return max(1, sum(len(jobs.get(job, ())) for job in ("chief", "worker")))


def worker_index(strategy: Strategy) -> int:
    """Number of this process among those that train in step, 0 for the one that keeps what is saved."""
    if worker_count(strategy) == 1:
        return 0
    resolver = strategy.cluster_resolver
    chiefs = len(resolver.cluster_spec().as_dict().get("chief", ()))
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)


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
    if not is_tpu(strategy):
        shared = {name: value / replica_count() for name, value in shared.items()}
    return {**results, **shared}


def apply_summed(optimizer: Optimizer, gradients: Sequence[Tensor], variables: Sequence[Variable]) -> None:
    """Applies gradients that are already summed over the replicas: clipping then sees the sum, with every optimizer.

    Raises:
        ValueError: the optimizer is one of nodes, whose gradients are never summed.
    """
    if replica_count() > 1 and hasattr(_keras.innermost(optimizer), "node_variables"):
        raise ValueError(
            f"`Microbatched` sums gradients over all replicas, and {type(optimizer).__name__} never does: train the "
            "model itself on several nodes"
        )
    pairs = list(zip(gradients, variables, strict=True))
    if _keras.LEGACY:
        optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
        return
    with _without_sum(optimizer):
        optimizer.apply_gradients(pairs)


_SUM = "_all_reduce_sum_gradients"  # the method of Keras 3 on TensorFlow that sums
_depths: dict = {}  # replicas trace in turns, so that several of them can be inside `_without_sum` at a time


@contextlib.contextmanager
def _without_sum(optimizer: Optimizer) -> Iterator[None]:
    """Within it, the optimizer takes gradients as they are."""
    optimizer = _keras.innermost(optimizer)
    if not hasattr(optimizer, _SUM):
        yield
        return
    key = id(optimizer)
    _depths[key] = _depths.get(key, 0) + 1
    object.__setattr__(optimizer, _SUM, list)
    try:
        yield
    finally:
        _depths[key] -= 1
        if _depths[key] == 0:
            del _depths[key]
            object.__delattr__(optimizer, _SUM)
