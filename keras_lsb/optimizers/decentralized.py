"""What DecentLaM and DmSGD share as Keras optimizers."""

from collections.abc import Callable
from typing import Any

from keras_lsb._checks import decay_rate
from keras_lsb._keras import ops
from keras_lsb._types import Schedule, Tensor, Variable
from keras_lsb.distribute.node_updates import UpdatesNodes
from keras_lsb.distribute.reduction import local_copy
from keras_lsb.optimizers.base import RuleOptimizer, compute_dtype
from keras_lsb.optimizers.exclusions import Exclusion


class DecentralizedOptimizer(UpdatesNodes, RuleOptimizer):
    """Momentum SGD of nodes that exchange with their neighbours; a subclass names the rule.

    The rule is `message_rule`, which makes what a node sends, and `finish_rule`, which makes a step of what it gets.
    Both are functions of `keras_lsb.rules`.
    """

    message_rule: Callable
    finish_rule: Callable
    slot_names = ("displacement",)
    selections = ("exclude_from_weight_decay",)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        exclude_from_weight_decay: Exclusion = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        if "exclude_from_layer_adaptation" in kwargs:
            raise ValueError(
                f"{type(self).__name__} adapts no layers and has no argument 'exclude_from_layer_adaptation'. "
                f"Received: exclude_from_layer_adaptation={kwargs['exclude_from_layer_adaptation']!r}"
            )
        arguments = {"fused": False, **kwargs}  # a compiled update rounds otherwise than Keras' SGD does
        name = name or type(self).__name__
        super().__init__(learning_rate, weight_decay, exclude_from_weight_decay, [], name, **arguments)
        self.momentum = decay_rate("momentum", momentum)

    def rule(
        self,
        weight: Tensor,
        gradient: Tensor,
        *slots: Tensor,
        learning_rate: Tensor,
        step: Tensor,
        weight_decay: float,
        adapt: bool,
        **options: Any,
    ) -> tuple:
        gradient = _decayed(gradient, weight, weight_decay)
        return self.finish_rule(gradient, *slots, 0.0, learning_rate=learning_rate, momentum=self.momentum)

    def hyperparameters(self) -> dict:
        return {"momentum": self.momentum}

    def prepared(self, gradient: Tensor, variable: Variable) -> tuple:
        index, dtype = self.index_of(variable), compute_dtype(variable)
        weight = ops.cast(local_copy(variable), dtype)
        gradient = _decayed(ops.cast(gradient, dtype), weight, self.weight_decay if self._decays[index] else 0.0)
        slots = [ops.cast(local_copy(self._slots[name][index]), dtype) for name in self.slot_names]
        return weight, gradient, slots

    def message(self, weight: Tensor, gradient: Tensor, *slots: Tensor, learning_rate: Tensor) -> Tensor:
        return self.message_rule(weight, gradient, *slots, learning_rate=learning_rate, momentum=self.momentum)

    def finish(self, gradient: Tensor, *slots: Tensor, disagreement: Tensor, learning_rate: Tensor) -> tuple:
        settings = {"learning_rate": learning_rate, "momentum": self.momentum}
        return self.finish_rule(gradient, *slots, disagreement, **settings)


def _decayed(gradient: Tensor, weight: Tensor, weight_decay: float) -> Tensor:
    return gradient + weight_decay * weight if weight_decay else gradient
