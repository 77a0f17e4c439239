"""Updates of optimizers whose replicas are nodes: each changes its own weights, with an exchange in between."""

import abc
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Mixin, Tensor, Variable
from keras_lsb.distribute.exchange import Exchange
from keras_lsb.distribute.node_scope import current_exchange
from keras_lsb.distribute.reduction import densify, in_replica_of_several, local_copy, replica_count
from keras_lsb.topology import Topology

tf = _keras.tensorflow


class UpdatesNodes(abc.ABC, Mixin):
    """Mixin for optimizers: on several replicas gradients are not summed, and each replica updates its own weights.

    A subclass defines `require_topology`, `prepared`, `message` and `finish`. A single replica updates as any other
    optimizer of the package does.
    """

    @abc.abstractmethod
    def require_topology(self, topology: Topology) -> None:
        """Raises a ValueError if this optimizer cannot train on a topology."""

    @abc.abstractmethod
    def prepared(self, gradient: Tensor, variable: Variable) -> tuple:
        """(weight, gradient with weight decay, slot variables) of a node's copy of a variable, in one float type."""

    @abc.abstractmethod
    def message(self, weight: Tensor, gradient: Tensor, *slots: Tensor, learning_rate: Tensor) -> Tensor:
        """What the node sends."""

    @abc.abstractmethod
    def finish(self, gradient: Tensor, *slots: Tensor, disagreement: Tensor, learning_rate: Tensor) -> tuple:
        """(what to subtract from the weight, *new slots)."""

    def build(self, variables: Sequence[Variable]) -> None:
        super().build(variables)
        # A list would be tracked as the optimizer's own.
        self._node_weights: Callable[[], list] = functools.partial(list, variables)
        exchange = current_exchange(self)
        if exchange is not None:
            self._require_exchange(exchange)

    def node_variables(self) -> list:
        """The variables of which each node has values of its own: weights and slots; none before the first step."""
        slots = getattr(self, "_slots", {})
        return [*getattr(self, "_node_weights", list)(), *(slot for name in slots for slot in slots[name])]

    def _backend_apply_gradients(self, grads: Sequence[Tensor], trainable_variables: Sequence[Variable]) -> None:
        """Keras 3: all of an update but the count of steps."""
        exchange = self._exchange_of_step()
        if exchange is None:
            super()._backend_apply_gradients(grads, trainable_variables)
        else:
            self._update_node(exchange, self._clip_gradients(own_gradients(grads)), trainable_variables)

    def aggregate_gradients(self, grads_and_vars: Iterable[tuple[Tensor, Variable]]) -> list[tuple[Tensor, Variable]]:
        """tf_keras: what the gradients of the replicas become before they are clipped."""
        if self._exchange_of_step() is None:
            return super().aggregate_gradients(grads_and_vars)
        gradients, variables = zip(*grads_and_vars, strict=True)
        return list(zip(own_gradients(gradients), variables, strict=True))

    def _internal_apply_gradients(self, grads_and_vars: Iterable[tuple[Tensor, Variable]]) -> Any:
        """tf_keras: the update of clipped gradients and of the count of steps."""
        exchange = self._exchange_of_step()
        if exchange is None:
            return super()._internal_apply_gradients(grads_and_vars)
        self._update_node(exchange, *zip(*grads_and_vars, strict=True))
        return self.iterations.assign_add(1)

    def _exchange_of_step(self) -> Exchange | None:
        exchange = current_exchange(self)
        if exchange is not None and not in_replica_of_several():
            raise ValueError(
                f"{type(self).__name__} must be applied by each replica for itself. It cannot be inside of "
                "LossScaleOptimizer, which updates all at once: use mixed_bfloat16, which needs no loss scale"
            )
        return exchange

    def _require_exchange(self, exchange: Exchange) -> None:
        for name in ("use_ema", "gradient_accumulation_steps"):
            if getattr(self, name, None):
                raise ValueError(
                    f"{type(self).__name__} has no `{name}` on several nodes. Received: {name}={getattr(self, name)!r}"
                )
        self.require_topology(exchange.topology)

    def _update_node(self, exchange: Exchange, gradients: Sequence[Tensor], variables: Sequence[Variable]) -> None:
        """Makes the node's message, exchanges it, and updates the node's weights and slots in place."""
        self._require_exchange(exchange)
        prepared = [self.prepared(gradient, variable) for gradient, variable in zip(gradients, variables, strict=True)]
        rate = self.learning_rate
        rates = [tf.cast(rate, weight.dtype) for weight, _, _ in prepared]
        messages = [
            self.message(weight, gradient, *slots, learning_rate=rate)
            for (weight, gradient, slots), rate in zip(prepared, rates, strict=True)
        ]
        disagreements = self._disagreements(exchange, messages)
        for variable, (_, gradient, slots), disagreement, rate in zip(
            variables, prepared, disagreements, rates, strict=True
        ):
            step, *values = self.finish(gradient, *slots, disagreement=disagreement, learning_rate=rate)
            self._assign_to_node(variable, step, values)

    def _disagreements(self, exchange: Exchange, messages: Sequence[Tensor]) -> list:
        """What `Exchange.disagreement` says of each variable; all travel as one vector."""
        dtype = max((message.dtype for message in messages), key=lambda dtype: dtype.size)
        flat = tf.concat([tf.reshape(tf.cast(message, dtype), [-1]) for message in messages], 0)
        step = local_copy(self.iterations)
        mixed = exchange.disagreement(flat, step)
        parts = tf.split(mixed, [message.shape.num_elements() for message in messages])
        return [
            tf.reshape(tf.cast(part, message.dtype), message.shape)
            for part, message in zip(parts, messages, strict=True)
        ]

    def _assign_to_node(self, variable: Variable, step: Tensor, values: Any) -> None:
        index = self.index_of(variable)
        for name, value in zip(self.slot_names, values, strict=True):
            slot = local_copy(self._slots[name][index])
            slot.assign(tf.cast(value, slot.dtype))
        weight = local_copy(variable)
        if weight.dtype == step.dtype:
            weight.assign_sub(step)
        else:
            weight.assign(tf.cast(tf.cast(weight, step.dtype) - step, weight.dtype))


def own_gradients(gradients: Iterable[Tensor]) -> list:
    """Gradients of the mean loss of each node's own examples: Keras divides losses by the number of replicas."""
    return [None if gradient is None else gradient * replica_count() for gradient in densify(gradients)]
