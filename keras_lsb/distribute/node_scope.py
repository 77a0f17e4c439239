"""Replicas as nodes: each has weights of its own, and exchanges messages with its neighbours only."""

import contextlib
import functools
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from keras_lsb import _keras
from keras_lsb._checks import choice, positive, whole
from keras_lsb._types import Model, Optimizer, Strategy
from keras_lsb.distribute.agreement import require_agreement
from keras_lsb.distribute.exchange import NOT_FINITE, OPERATION, Exchange, Pairwise, exchange_for
from keras_lsb.distribute.reduction import replica_count, strategy_of, worker_count
from keras_lsb.topology import Topology

MESSAGE_DTYPES = ("float32", "bfloat16")
_exchanges: weakref.WeakKeyDictionary[Strategy, Exchange] = weakref.WeakKeyDictionary()  # strategy -> exchange


class NeighbourLostError(RuntimeError):
    """A node waited for a neighbour that did not come; the message names the edge."""


@contextlib.contextmanager
def decentralized(
    strategy: Strategy,
    topology: Topology,
    *,
    message_dtype: str = "float32",
    timeout: float = 120.0,
    bucket: int = 2**22,
) -> Iterator[None]:
    """The scope of a strategy whose replicas are the nodes of a topology; use it in place of `strategy.scope()`.

        with distribute.decentralized(tf.distribute.MirroredStrategy(), topology.ring(4)):
            model = build_model()
            model.compile(optimizers.DecentLaM(0.1, momentum=0.9), loss)
        model.fit(data)

    All nodes start with the same weights, each trains on its share of every batch, and `DecentLaM` or `DmSGD` exchange
    weights with neighbours in place of an all-reduce of gradients. `evaluate`, `predict` and what is saved use the
    average of the nodes; see `consensus`.

    Args:
        strategy: with one replica per node; MultiWorkerMirroredStrategy with one replica per worker.
        topology: of `keras_lsb.topology`, the same on all workers.
        message_dtype: type of messages on the way, "float32" or "bfloat16": half the bytes, and nodes that differ by
            less than its last bit, about 1/256 of a weight, no longer pull on each other.
        timeout: seconds after which a worker that waits for a neighbour ends with an error.
        bucket: bytes of a message that go into one collective operation between workers.

    Raises:
        ValueError: another number of nodes than of replicas, several replicas in each of several workers, workers whose
            topologies or options differ, a backend other than TensorFlow.
    """
    if _keras.tensorflow is None:
        raise ValueError(
            "`decentralized` needs TensorFlow's strategies. Received: the backend of Keras is not TensorFlow"
        )
    choice("message_dtype", message_dtype, MESSAGE_DTYPES)
    positive("timeout", timeout)
    whole("bucket", bucket, 1)
    replicas, workers = strategy.num_replicas_in_sync, worker_count(strategy)
    if topology.nodes != replicas:
        raise ValueError(
            f"`topology` must have one node for each of the strategy's {replicas} replicas. "
            f"Received: topology={topology!r}"
        )
    if 1 < workers < replicas:
        raise ValueError(
            "`strategy` must have one replica per worker if it has several workers: start one worker per device. "
            f"Received: {replicas} replicas on {workers} workers"
        )
    options: dict[str, Any] = {"message_dtype": message_dtype, "timeout": timeout, "bucket": bucket}
    require_agreement(strategy, {"topology": topology.get_config(), **options})
    _exchanges[strategy] = exchange_for(strategy, topology, **options)
    with strategy.scope():
        yield


def exchange_of(strategy: Strategy) -> Exchange | None:
    """The exchange between the replicas of a strategy, None if they are no nodes."""
    return None if strategy is None else _exchanges.get(strategy)


def current_exchange(optimizer: Optimizer) -> Exchange | None:
    """The exchange that the optimizer's replicas take part in, None for a single replica.

    Raises:
        ValueError: there are several replicas, and `decentralized` has not been told of them.
    """
    if replica_count() == 1:
        return None
    found = exchange_of(_keras.tensorflow.distribute.get_strategy())
    if found is None:
        raise ValueError(
            f"{type(optimizer).__name__} on {replica_count()} replicas needs a topology: make and compile the model in "
            "`with keras_lsb.distribute.decentralized(strategy, topology):` in place of `strategy.scope()`"
        )
    return found


def report_failed_exchanges() -> None:
    """Has `fit` of all models end in errors that name the edge that failed, or the node that has diverged."""
    if _keras.tensorflow is None:
        return
    for name in ("fit", "train_on_batch"):
        setattr(_keras.Model, name, _reporting(getattr(_keras.Model, name)))


def _reporting(method: Callable) -> Callable:
    @functools.wraps(method)
    def reporting(model: Model, *arguments: Any, **keywords: Any) -> Any:
        try:
            return method(model, *arguments, **keywords)
        except _keras.tensorflow.errors.OpError as error:
            report = _report(model, error)
            if report is None:
                raise
            raise report from error

    return reporting


def _report(model: Model, error: Any) -> Exception | None:
    """What an error of TensorFlow means for nodes, None if nothing."""
    strategy = strategy_of(model)
    exchange = exchange_of(strategy)
    if exchange is None:
        return None
    diverged = re.search(rf"{NOT_FINITE}\D*(\d+)\D+(\d+)", error.message)
    if diverged:
        node, step = diverged.groups()
        return ValueError(
            f"The weights of node {node} are not finite at step {step}, and would reach all nodes within a few steps: "
            "training has stopped before they were sent. The weights of this step are lost, backups are not. Use a "
            "smaller learning rate, a longer warm-up, or clipping."
        )
    if isinstance(exchange, Pairwise) and _is_of_a_collective(error):
        return NeighbourLostError(_lost(exchange, _keras.updates_done(model.optimizer), error.message))
    return None


def _is_of_a_collective(error: Any) -> bool:
    errors = _keras.tensorflow.errors
    lost = (errors.DeadlineExceededError, errors.UnavailableError, errors.AbortedError, errors.CancelledError)
    return isinstance(error, lost) or (isinstance(error, errors.InternalError) and "ollective" in error.message)


def _lost(exchange: Pairwise, step: int, text: str) -> str:
    partners = exchange.topology.partners()[step % exchange.topology.period, :, exchange.node]
    matching = re.search(rf"{OPERATION}(\d+)", text)
    if matching:
        partners = partners[[int(matching.group(1))]]
    edges = " or ".join(f"({exchange.node}, {partner})" for partner in partners if partner != exchange.node)
    return (
        f"Node {exchange.node} has lost a neighbour at step {step}: edge {edges or 'unknown'} of "
        f"{exchange.topology.name} did not exchange within {exchange.timeout:g} s. A worker has ended, hangs, or "
        "cannot be reached. The weights of this step are lost, backups are not: start all workers again, and "
        "`callbacks.BackupAndRestore` goes on from the last one."
    )
