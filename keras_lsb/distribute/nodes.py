"""The average of nodes that have weights of their own, which is what a decentralized training is judged and kept by."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Model, Tensor, Variable
from keras_lsb.distribute.node_scope import exchange_of
from keras_lsb.distribute.reduction import in_replica_of_several, local_copy, strategy_of, worker_index

_nodes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> its `_Nodes`
_at_consensus: weakref.WeakSet = weakref.WeakSet()  # models inside of `consensus`


@contextlib.contextmanager
def consensus(model: Model) -> Iterator[None]:
    """Within it, every node of a model has the average of all nodes; afterwards each has its own values again.

        with distribute.consensus(model):
            checkpoint.save(path)

    Averaged are trained weights, the optimizer's displacement and moving statistics of batch normalization, all by
    their arithmetic mean: the variance of all nodes' examples together would be larger by that of the nodes' means.
    `evaluate`, `predict`, `save`, `save_weights`, `export` and `get_weights` do it by themselves. With several workers
    all of them have to enter, as for saving. A model that is not trained under `decentralized` is left as it is.

    Args:
        model: of either Keras; it is what `with` gives as well.
    """
    if not has_nodes(model) or model in _at_consensus:
        yield model
        return
    nodes = _nodes_of(model)
    own = nodes.put_average()
    _at_consensus.add(model)
    try:
        yield model
    finally:
        _at_consensus.discard(model)
        nodes.put_back(own)


def has_nodes(model: Model) -> bool:
    """Whether the caller, who is none of them, has a model whose replicas are nodes with weights of their own."""
    if _keras.tensorflow is None or not hasattr(model, "distribute_strategy"):
        return False
    exchange = exchange_of(strategy_of(model))
    if exchange is None or exchange.topology.nodes == 1:
        return False
    return _keras.tensorflow.executing_eagerly() and not in_replica_of_several()


def consensus_distance(model: Model) -> float:
    """How far the nodes are from their average: sum_i ||x_i - xbar||^2 / (n ||xbar||^2) over the trainable weights.

    With several workers all of them have to ask. `keras_lsb.topology.consensus_distance` is the same for arrays.
    """
    spread, size = _nodes_of(model).distance()
    return spread / size if size else (float("inf") if spread else 0.0)


def bytes_per_step(model: Model) -> float:
    """Bytes that a node of the model sends in a step, the mean over nodes and steps."""
    parameters = sum(int(variable.shape.num_elements()) for variable in map(_keras.native, model.trainable_variables))
    exchange: Any = exchange_of(strategy_of(model))
    return exchange.bytes_per_step(parameters)


def node_count(model: Model) -> int:
    """Number of nodes with weights of their own, 0 where replicas are none."""
    exchange: Any = exchange_of(strategy_of(model))
    return exchange.topology.nodes if has_nodes(model) else 0


def local_nodes(model: Model) -> list[int]:
    """Indices of the nodes that live in this process; none where replicas are no nodes."""
    if not has_nodes(model):
        return []
    strategy = strategy_of(model)
    local = len(strategy.extended.worker_devices)
    return [worker_index(strategy) * local + place for place in range(local)]


def read_nodes(model: Model) -> dict[int, list]:
    """Values of the nodes that live in this process, by index of the node: arrays, float32 or float64."""
    columns = [variable.values for variable in node_variables(model)]
    return {
        node: [column[place].numpy().astype(_storage(column[place])) for column in columns]
        for place, node in enumerate(local_nodes(model))
    }


def write_nodes(model: Model, values: dict[int, list]) -> None:
    """Gives the nodes that live in this process the values that `read_nodes` has returned."""
    columns = [variable.values for variable in node_variables(model)] if values else []
    for place, node in enumerate(local_nodes(model)):
        for column, value in zip(columns, values[node], strict=True):
            column[place].assign(_keras.tensorflow.cast(value, column[place].dtype))


def node_variables(model: Model) -> list:
    """TensorFlow variables of which each node of a model has values of its own."""
    own: list = getattr(_keras.innermost(model.optimizer), "node_variables", list)() if model.optimizer else []
    return [_keras.native(variable) for variable in [*own, *_keras.batch_statistics(model)]]


class _Nodes:
    """Compiled functions over the nodes of a model."""

    def __init__(self, model: Model):
        self.variables = node_variables(model)
        self._weights = [_keras.native(variable) for variable in model.trainable_variables]
        self._strategy = strategy_of(model)
        self.put_average = self._compiled(self._average_on_node)
        self.put_back = self._compiled(self._put_on_node)
        self._parts = self._compiled(self._distance_on_node)

    def distance(self) -> tuple[float, float]:
        """Mean over the nodes of the squared distance from their average, and the average's squared norm."""
        spread, size = (float(self._strategy.reduce("MEAN", part, axis=None)) for part in self._parts())
        return spread, size

    def _compiled(self, function: Callable) -> Callable:
        tf, strategy = _keras.tensorflow, self._strategy
        return tf.function(lambda *arguments: strategy.run(function, args=arguments), autograph=False)

    def _average_on_node(self) -> list[Tensor]:
        own = _values(self.variables)
        if own:
            self._put_on_node(_means(own))
        return own

    def _put_on_node(self, values: Sequence[Tensor]) -> None:
        for variable, value in zip(self.variables, values, strict=True):
            local_copy(variable).assign(value)

    def _distance_on_node(self) -> tuple[Tensor, Tensor]:
        tf = _keras.tensorflow
        own = _values(self._weights)
        pairs = [(tf.cast(x, tf.float32), tf.cast(mean, tf.float32)) for x, mean in zip(own, _means(own), strict=True)]
        spread = tf.add_n([tf.reduce_sum(tf.square(x - mean)) for x, mean in pairs])
        return spread, tf.add_n([tf.reduce_sum(tf.square(mean)) for _, mean in pairs])


def _nodes_of(model: Model) -> _Nodes:
    known = _nodes.get(model)
    if known is None or [*map(id, known.variables)] != [*map(id, node_variables(model))]:
        known = _nodes[model] = _Nodes(model)
    return known


def _values(variables: Sequence[Variable]) -> list:
    """Values of the node's own copies, on its device, without which TensorFlow does not reduce."""
    return [_keras.tensorflow.identity(local_copy(variable)) for variable in variables]


def _means(values: list) -> list:
    distribute = _keras.tensorflow.distribute
    return distribute.get_replica_context().all_reduce(distribute.ReduceOp.MEAN, values)


def _storage(variable: Variable) -> str:
    """A type for files, which know no bfloat16."""
    return "float64" if variable.dtype.name == "float64" else "float32"
