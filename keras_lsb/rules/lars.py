"""LARS: layer-wise adaptive rate scaling.

Source: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv 1708.03888.
"""

from keras_lsb._types import Tensor
from keras_lsb.rules.trust_ratio import euclidean_norm, trust_ratio


def lars(
    weight: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    *,
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    epsilon: float,
    nesterov: bool,
    adapt: bool,
    denominator: str = "sum",
    rate: str = "inside",
) -> tuple[Tensor, ...]:
    """One LARS update: `(step, velocity)`, where `weight - step` is the new weight.

        d = gradient + weight_decay * weight
        r = trust_coefficient * ||weight|| / (||gradient|| + weight_decay * ||weight|| + epsilon)
        velocity = momentum * velocity + learning_rate * r * d
        step = velocity                            Nesterov: momentum * velocity + learning_rate * r * d

    Args:
        weight, gradient, velocity: arrays of one shape, float32 or wider.
        learning_rate: scalar.
        momentum, weight_decay, trust_coefficient, epsilon: as in the formula; `weight_decay` is 0 where excluded.
        nesterov: whether to step along the next velocity.
        adapt: False for a variable excluded from layer adaptation: r = 1, plain momentum at the full learning rate.
        denominator: "sum" adds the two norms as above, "joint" takes the norm of d instead.
        rate: "inside" puts `learning_rate * r` in the velocity as above; "outside" keeps r * d in the velocity and
            multiplies by the learning rate afterwards. They differ only when the learning rate changes.
    """
    direction = gradient + weight_decay * weight if weight_decay else gradient
    scale = learning_rate if rate == "inside" else 1.0
    if adapt:
        joint = denominator == "joint"
        scale = scale * trust_ratio(
            euclidean_norm(weight),
            euclidean_norm(direction if joint else gradient),
            coefficient=trust_coefficient,
            weight_decay=0.0 if joint else weight_decay,
            epsilon=epsilon,
        )
    push = scale * direction
    velocity = momentum * velocity + push
    step = momentum * velocity + push if nesterov else velocity
    return (step if rate == "inside" else learning_rate * step), velocity
