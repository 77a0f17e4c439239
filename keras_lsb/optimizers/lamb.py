"""LAMB as a Keras optimizer, with tensorflow-addons' argument names."""

from typing import Any

from keras_lsb import _keras, rules
from keras_lsb._checks import choice, decay_rate, non_negative, positive
from keras_lsb._types import Schedule, Tensor
from keras_lsb.optimizers.base import RuleOptimizer
from keras_lsb.optimizers.exclusions import Exclusion


@_keras.register
class LAMB(RuleOptimizer):
    """Adam whose step has, in every layer, the length of the layer's norm times the learning rate.

        m = beta_1 * m + (1 - beta_1) * gradient            mh = m / (1 - beta_1**t)
        v = beta_2 * v + (1 - beta_2) * gradient**2         vh = v / (1 - beta_2**t)
        u = mh / (sqrt(vh) + epsilon) + weight_decay * weight
        weight = weight - learning_rate * (||weight|| / ||u||) * u

    with t = 1, 2, ... the number of the update. The ratio is 1 where a norm is 0 and for variables excluded from layer
    adaptation.

    Args:
        learning_rate: a number >= 0, or a schedule of steps such as `keras_lsb.schedules.LEGW`.
        beta_1, beta_2: decay rates of the two moments, in [0, 1).
        epsilon: at least 0; 0 stays 0.
        weight_decay: decay inside u, >= 0. It changes the direction of the step, not its length.
        exclude_from_weight_decay: patterns searched in the variable's path, or a predicate of the path, a string that
            also has the variable's `shape` and `dtype`. None excludes biases and normalization parameters, [] nothing.
        exclude_from_layer_adaptation: likewise, for ratio 1. Unlike tensorflow-addons, None does not fall back to
            `exclude_from_weight_decay`.
        correct_bias: False leaves out the division by 1 - beta**t (version 3 of the paper and codes after it).
        decay: "inside" u (the paper), or "outside" as in keras.optimizers.Lamb: the weight shrinks first, and the
            ratio sees the shrunk weight and a u without decay.
        weight_norm_bounds: (low, high) to which the weight's norm is clipped in the ratio; None leaves it alone.
        max_trust_ratio: upper bound of the ratio, > 0; None for none.
        name: name of the optimizer.
        **kwargs: `fused=False` turns off the compiled update of large variables on TensorFlow; the rest is Keras' own:
            clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency, ...

    Raises:
        ValueError: an argument out of range; the message names it and its value.

    Source: You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, 2019, arXiv 1904.00962.
    """

    slot_names = ("m", "v")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
        exclude_from_weight_decay: Exclusion = None,
        exclude_from_layer_adaptation: Exclusion = None,
        name: str = "LAMB",
        *,
        correct_bias: bool = True,
        decay: str = "inside",
        weight_norm_bounds: tuple[float, float] | None = None,
        max_trust_ratio: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate, weight_decay, exclude_from_weight_decay, exclude_from_layer_adaptation, name, **kwargs
        )
        self.beta_1 = decay_rate("beta_1", beta_1)
        self.beta_2 = decay_rate("beta_2", beta_2)
        self.epsilon = non_negative("epsilon", epsilon)
        self.correct_bias = bool(correct_bias)
        self.decay = choice("decay", decay, ("inside", "outside"))
        self.weight_norm_bounds = _bounds(weight_norm_bounds)
        self.max_trust_ratio = None if max_trust_ratio is None else positive("max_trust_ratio", max_trust_ratio)

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
        return rules.lamb(
            weight,
            gradient,
            *slots,
            learning_rate=learning_rate,
            step=step,
            weight_decay=weight_decay,
            adapt=adapt,
            **self.hyperparameters(),
        )

    def hyperparameters(self) -> dict:
        return {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "correct_bias": self.correct_bias,
            "decay": self.decay,
            "weight_norm_bounds": self.weight_norm_bounds,
            "max_trust_ratio": self.max_trust_ratio,
        }


def _bounds(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    if bounds is None:
        return None
    try:
        low, high = bounds
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high:
        raise ValueError(f"`weight_norm_bounds` must be (low, high), 0 <= low < high. Received: {bounds!r}")
    return float(low), float(high)
