"""Exchange of messages between neighbouring nodes: in one process, between workers, and on a TPU.

Every node calls `disagreement` with its message z, a flat vector, and gets the sum over its partners j in this step of
w_ij (z_i - z_j). Both ends of an edge use the same two messages, so that what they give each other cancels exactly.
`keras_lsb.topology.disagreement` is the same for the messages of all nodes at once, in NumPy.
"""

import abc
import functools
import importlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._types import Strategy, Tensor
from keras_lsb.distribute.reduction import is_tpu, worker_count, worker_index
from keras_lsb.topology import Topology

tf = _keras.tensorflow
eager_context: Any = None if tf is None else importlib.import_module("tensorflow.python.eager.context")

TIMED_OUT = "keras_lsb: an exchange has timed out"
NOT_FINITE = "a message is not finite, of node and step"
OPERATION = "exchange_in_matching_"  # begins the names of collectives, which errors report

# Keys of the pairs and of their buckets, far from those that tf.distribute counts up from 1.
_GROUPS, _INSTANCES, _BUCKETS = 1_000_000_000, 1_500_000_000, 10_000
# (entries, type, entries in a bucket) -> number, in the order in which all workers meet them
_layouts: dict[tuple, int] = {}


class Exchange(abc.ABC):
    """How the nodes of a strategy pass messages along the edges of a topology.

    Args:
        topology: who exchanges with whom.
        message_dtype: type of messages on the way, "float32" or "bfloat16".
    """

    def __init__(self, topology: Topology, message_dtype: str):
        self.topology, self.message_dtype = topology, message_dtype

    def disagreement(self, message: Tensor, step: Tensor) -> Tensor:
        """Sum over the partners j of w_ij (z_i - z_j), on every node.

        Args:
            message: z_i, shape (parameters,), float32 or float64.
            step: number of the update from 0, the same on all nodes: an integer scalar.

        Raises:
            InvalidArgumentError: the message is not finite; it names node and step, before anything is sent.
        """
        node = tf.distribute.get_replica_context().replica_id_in_sync_group
        finite = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(message)), [NOT_FINITE, node, step])
        with tf.control_dependencies([] if finite is None else [finite]):
            message = tf.identity(message)
        sent = message if self.message_dtype == "float32" else tf.cast(message, self.message_dtype)
        phase = tf.cast(step, tf.int64) % self.topology.period
        return tf.cast(self._mix(sent, tf.cast(sent, message.dtype), phase), message.dtype)

    def bytes_per_step(self, parameters: int) -> float:
        """Bytes that a node sends in a step, the mean over nodes and steps."""
        steps = range(self.topology.period)
        models = np.mean([self.topology.messages(step) for step in steps])
        return float(models * parameters * tf.as_dtype(self.message_dtype).size)

    def _in_phase(self, function: Callable[[Any], Tensor], phase: Tensor) -> Tensor:
        """`function` of the number that a tensor holds."""
        if self.topology.period == 1:
            return function(0)
        branches = [functools.partial(function, number) for number in range(self.topology.period)]
        return tf.switch_case(tf.cast(phase, tf.int32), branches)

    @abc.abstractmethod
    def _mix(self, sent: Tensor, rounded: Tensor, phase: Tensor) -> Tensor:
        """The disagreement: `sent` is what partners get, `rounded` the same in the type of the sum."""


class InProcess(Exchange):
    """Nodes are the devices of one process, which see each other's messages where they come together."""

    def _mix(self, sent: Tensor, rounded: Tensor, phase: Tensor) -> Tensor:
        context = tf.distribute.get_replica_context()
        node = int(tf.get_static_value(context.replica_id_in_sync_group))
        return context.merge_call(self._mix_all, args=(rounded, phase))[node]

    def _mix_all(self, strategy: Strategy, messages: Sequence[Tensor], phase: Tensor) -> list[Tensor]:
        messages, phases = strategy.experimental_local_results(messages), strategy.experimental_local_results(phase)
        return [self._of_node(node, messages, phases[node]) for node in range(len(messages))]

    def _of_node(self, node: int | Tensor, messages: Sequence[Tensor], phase: Tensor) -> Tensor:
        """Disagreement of one node, on its device; in the order of the matchings, as all exchanges sum."""
        partners, weights = (table[:, :, node] for table in (self.topology.partners(), self.topology.partner_weights()))
        message = messages[node]
        with tf.device(message.device):

            def mixed(phase: Any) -> Tensor:
                pairs = [pair for pair in zip(partners[phase], weights[phase], strict=True) if pair[0] != node]
                parts = [tf.cast(weight, message.dtype) * (message - messages[partner]) for partner, weight in pairs]
                return tf.add_n(parts) if parts else tf.zeros_like(message)

            return self._in_phase(mixed, phase)


class Pairwise(Exchange):
    """Nodes are workers, and both ends of an edge broadcast to each other.

    The matchings of a step are exchanged one after the other: no node waits for a partner who waits for a third.

    Args:
        node: index of this worker.
        timeout: seconds after which a node that waits for its partner gives up.
        bucket: bytes that go into one collective; buckets of a message are on their way together.
    """

    def __init__(self, topology: Topology, message_dtype: str, node: int, timeout: float, bucket: int):
        super().__init__(topology, message_dtype)
        self.node, self.timeout = node, timeout
        self._entries = max(1, bucket // tf.as_dtype(message_dtype).size)
        self._watch = Watch(timeout)

    def _mix(self, sent: Tensor, rounded: Tensor, phase: Tensor) -> Tensor:
        partners, weights = (
            table[:, :, self.node] for table in (self.topology.partners(), self.topology.partner_weights())
        )
        layout = sent.shape[0], sent.dtype, self._entries
        first_key = _INSTANCES + _BUCKETS * _layouts.setdefault(layout, len(_layouts))
        with tf.control_dependencies([self._watch.begin(sent)]):
            total = tf.zeros_like(rounded)
        for matching in range(partners.shape[1]):
            partner = _at(partners[:, matching].astype("int32"), phase)
            weight = tf.cast(_at(weights[:, matching], phase), rounded.dtype)

            def exchanged(
                partner: Tensor = partner, weight: Tensor = weight, total: Tensor = total, matching: int = matching
            ) -> Tensor:
                with tf.control_dependencies([total]):
                    found = self._differences(sent, rounded, partner, first_key, f"{OPERATION}{matching}")
                return total + weight * found

            is_idle = partners[:, matching] == self.node
            if not is_idle.any():
                total = exchanged()
            elif not is_idle.all():
                total = tf.cond(tf.equal(partner, self.node), lambda total=total: total, exchanged)
        with tf.control_dependencies([self._watch.end(total)]):
            return tf.identity(total)

    def _differences(self, sent: Tensor, rounded: Tensor, partner: Tensor, key: int, name: str) -> Tensor:
        """The node's message without its partner's, bucket by bucket: what is in small pieces stays in the cache."""
        buckets = []
        for number, start in enumerate(range(0, int(sent.shape[0]), self._entries)):
            part = slice(start, start + self._entries)
            received = self._exchange(sent[part], partner, key + 2 * number, name)
            buckets.append(rounded[part] - tf.cast(received, rounded.dtype))
        return buckets[0] if len(buckets) == 1 else tf.concat(buckets, 0)

    def _exchange(self, part: Tensor, partner: Tensor, key: int, name: str) -> Tensor:
        """The partner's bucket. Each direction of an edge has a key of its own."""
        low, high = tf.minimum(partner, self.node), tf.maximum(partner, self.node)
        is_low = tf.cast(tf.equal(low, self.node), tf.int32)
        # No timeout: TensorFlow keeps two threads asleep for as long as it is, for each collective.
        group = {"group_size": 2, "group_key": _GROUPS + low * self.topology.nodes + high, "timeout_seconds": 0.0}
        on_wire = tf.bitcast(part, tf.float16) if part.dtype == tf.bfloat16 else part  # broadcasts know no bfloat16
        sent = tf.raw_ops.CollectiveBcastSendV2(input=on_wire, instance_key=key + is_low, name=f"{name}_send", **group)
        received = tf.raw_ops.CollectiveBcastRecvV2(
            T=on_wire.dtype, shape=on_wire.shape, instance_key=key + 1 - is_low, name=name, **group
        )
        with tf.control_dependencies([sent]):
            return tf.bitcast(tf.ensure_shape(received, part.shape), part.dtype)


class Watch:
    """Ends collectives that take too long, from a thread of its own.

    Args:
        timeout: seconds between `begin` and `end` in a graph.
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._thread: threading.Thread | None = None
        with tf.device("CPU:0"):
            self._begun = tf.Variable(0.0, trainable=False, dtype=tf.float64)  # when, 0 while nothing is on its way

    def begin(self, after: Tensor) -> Any:
        """An operation that starts the time once the tensor `after` is there."""
        if self._thread is None:
            self._thread = threading.Thread(target=_end_late, args=(weakref.ref(self),), daemon=True)
            self._thread.start()
        with tf.control_dependencies([after]):
            return self._begun.assign(tf.timestamp(), read_value=False)

    def end(self, after: Tensor) -> Any:
        """An operation that stops the time once the tensor `after` is there."""
        with tf.control_dependencies([after]):
            return self._begun.assign(0.0, read_value=False)

    def is_late(self) -> bool:
        """Whether an exchange has begun so long ago and not ended."""
        begun = float(self._begun.numpy())
        return begun > 0 and time.time() - begun > self._timeout

    def pause(self) -> float:
        """Seconds until the next look."""
        return min(1.0, self._timeout / 10)


def _end_late(reference: Callable) -> None:
    while (watch := reference()) is not None:
        if watch.is_late():
            text = f"{TIMED_OUT}: no answer from a neighbour for {watch._timeout:g} s"
            eager_context.context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, text)
            return
        pause = watch.pause()
        del watch  # or it would live as long as this thread
        time.sleep(pause)


class GroupedSums(Exchange):
    """Nodes are the cores of a TPU, whose network sums over all pairs of a matching at once.

    Raises:
        ValueError: an odd number of nodes, which has no groups of two; messages that are rounded, since their sum would
            be rounded once more.
    """

    def __init__(self, topology: Topology, message_dtype: str):
        super().__init__(topology, message_dtype)
        if topology.nodes % 2:
            raise ValueError(f"On TPUs `topology` needs an even number of nodes. Received: topology={topology!r}")
        if message_dtype != "float32":
            raise ValueError(f"On TPUs `message_dtype` must be 'float32'. Received: message_dtype={message_dtype!r}")

    def _mix(self, sent: Tensor, rounded: Tensor, phase: Tensor) -> Tensor:
        node = tf.distribute.get_replica_context().replica_id_in_sync_group
        return self.of_node(node, sent, phase)

    def of_node(self, node: int | Tensor, message: Tensor, phase: Tensor) -> Tensor:
        """Disagreement of the node that runs this, whose index may be a tensor."""

        def mixed(phase: Any) -> Tensor:
            total = tf.zeros_like(message)
            table = self.topology.partner_weights()[phase]
            for matching, weights in zip(self.topology.rounds(phase), table, strict=True):
                groups = [*matching, *_in_twos(set(range(self.topology.nodes)) - {*itertools.chain(*matching)})]
                pair = _sum_in_groups(message, groups)
                # Of the partner, z_i - z_j; of nodes that are idle, what has a weight of 0.
                total += tf.gather(tf.constant(weights, message.dtype), node) * (2 * message - pair)
            return total

        return self._in_phase(mixed, phase)


def exchange_for(strategy: Strategy, topology: Topology, message_dtype: str, timeout: float, bucket: int) -> Exchange:
    """The exchange between the replicas of a strategy."""
    if is_tpu(strategy):
        return GroupedSums(topology, message_dtype)
    if worker_count(strategy) > 1:
        return Pairwise(topology, message_dtype, worker_index(strategy), timeout, bucket)
    return InProcess(topology, message_dtype)


def _at(values: np.ndarray, phase: Tensor) -> Tensor:
    """Entry of a constant table."""
    return tf.constant(values[0]) if len(values) == 1 else tf.gather(tf.constant(values), phase)


def _in_twos(nodes: Iterable[int]) -> list[tuple[int, int]]:
    ordered = sorted(nodes)
    return list(zip(ordered[::2], ordered[1::2], strict=True))


def _sum_in_groups(value: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Sum over the cores of each group, as XLA's own operation: it lowers without a TPU, unlike `cross_replica_sum`."""
    operations = importlib.import_module("tensorflow.compiler.tf2xla.ops.gen_xla_ops")
    return operations.xla_all_reduce(input=value, group_assignment=groups, reduce_op="Add", mode="CrossReplica")
