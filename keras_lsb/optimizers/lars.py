"""LARS as a Keras optimizer."""

from typing import Any

from keras_lsb import _keras, rules
from keras_lsb._checks import choice, decay_rate, non_negative, positive
from keras_lsb._types import Schedule, Tensor
from keras_lsb.optimizers.base import RuleOptimizer
from keras_lsb.optimizers.exclusions import Exclusion


@_keras.register
class LARS(RuleOptimizer):
    """Momentum SGD with a learning rate per layer, proportional to the layer's norm over its gradient's.

        d = gradient + weight_decay * weight
        r = trust_coefficient * ||weight|| / (||gradient|| + weight_decay * ||weight|| + epsilon)
        velocity = momentum * velocity + learning_rate * r * d
        weight = weight - velocity                 Nesterov: weight - (momentum * velocity + learning_rate * r * d)

    r is 1 where a norm is 0 (decay then still acts at the full learning rate) and for variables excluded from layer
    adaptation, which see plain momentum at the full learning rate.

    Args:
        learning_rate: a number >= 0, or a schedule of steps such as `keras_lsb.schedules.LEGW`.
        momentum: in [0, 1).
        weight_decay: L2 decay inside the rule, >= 0; ImageNet recipes use 1e-4.
        trust_coefficient: positive.
        epsilon: added to the denominator of r, >= 0.
        nesterov: whether to step along the next velocity.
        exclude_from_weight_decay: patterns searched in the variable's path, or a predicate of the path, a string that
            also has the variable's `shape` and `dtype`. None excludes biases and normalization parameters, [] nothing.
        exclude_from_layer_adaptation: likewise, for r = 1.
        denominator: "sum" of the two norms (the paper), or "joint", the norm of d (optax, TF Model Garden).
        rate: whether the learning rate and r act "inside" the velocity (the paper) or "outside"; they differ only when
            the learning rate changes.
        name: name of the optimizer.
        **kwargs: `fused=False` turns off the compiled update of large variables on TensorFlow; the rest is Keras' own:
            clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency, ...

    Raises:
        ValueError: an argument out of range; the message names it and its value.

    Source: You, Gitman, Ginsburg, 2017, arXiv 1708.03888.
    """

    slot_names = ("velocity",)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        epsilon: float = 0.0,
        nesterov: bool = False,
        exclude_from_weight_decay: Exclusion = None,
        exclude_from_layer_adaptation: Exclusion = None,
        denominator: str = "sum",
        rate: str = "inside",
        name: str = "LARS",
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate, weight_decay, exclude_from_weight_decay, exclude_from_layer_adaptation, name, **kwargs
        )
        self.momentum = decay_rate("momentum", momentum)
        self.trust_coefficient = positive("trust_coefficient", trust_coefficient)
        self.epsilon = non_negative("epsilon", epsilon)
        self.nesterov = bool(nesterov)
        self.denominator = choice("denominator", denominator, ("sum", "joint"))
        self.rate = choice("rate", rate, ("inside", "outside"))

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
        return rules.lars(
            weight,
            gradient,
            *slots,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            adapt=adapt,
            **self.hyperparameters(),
        )

    def hyperparameters(self) -> dict:
        return {
            "momentum": self.momentum,
            "trust_coefficient": self.trust_coefficient,
            "epsilon": self.epsilon,
            "nesterov": self.nesterov,
            "denominator": self.denominator,
            "rate": self.rate,
        }
