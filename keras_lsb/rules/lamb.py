"""LAMB: layer-wise adaptive moments for batch training.

Source: You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, "Large Batch Optimization for Deep
Learning: Training BERT in 76 minutes", 2019, arXiv 1904.00962.
"""

from keras_lsb._keras import ops
from keras_lsb._types import Tensor
from keras_lsb.rules.moments import bias_correction, update_moments
from keras_lsb.rules.trust_ratio import euclidean_norm, trust_ratio


def lamb(
    weight: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    *,
    learning_rate: Tensor,
    step: Tensor,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    weight_decay: float,
    adapt: bool,
    correct_bias: bool = True,
    decay: str = "inside",
    weight_norm_bounds: tuple[float, float] | None = None,
    max_trust_ratio: float | None = None,
) -> tuple[Tensor, ...]:
    """One LAMB update: `(step, first_moment, second_moment)`, where `weight - step` is the new weight.

        m = beta_1 * m + (1 - beta_1) * gradient            mh = m / (1 - beta_1**step)
        v = beta_2 * v + (1 - beta_2) * gradient**2         vh = v / (1 - beta_2**step)
        u = mh / (sqrt(vh) + epsilon) + weight_decay * weight
        step = learning_rate * trust_ratio(||weight||, ||u||) * u

    Args:
        weight, gradient, first_moment, second_moment: arrays of one shape, float32 or wider.
        learning_rate: scalar.
        step: number of this update, 1 at the first, a float scalar.
        beta_1, beta_2, epsilon, weight_decay: as in the formula; `weight_decay` is 0 where excluded.
        adapt: False for a variable excluded from layer adaptation: ratio 1.
        correct_bias: False leaves out the division by 1 - beta**step.
        decay: "inside" adds the decay to u as above; "outside" shrinks the weight by `learning_rate * weight_decay`
            first, and the ratio then sees the shrunk weight and a u without decay.
        weight_norm_bounds: (low, high) to which the weight's norm is clipped in the ratio; None leaves it alone.
        max_trust_ratio: upper bound of the ratio; None for none.
    """
    first_moment, second_moment = update_moments(gradient, first_moment, second_moment, beta_1, beta_2)
    # Both corrections as scalars, not as two more passes over the variable:
    # (m / c1) / (sqrt(v / c2) + epsilon) = (sqrt(c2) / c1) * m / (sqrt(v) + epsilon * sqrt(c2)).
    root = ops.sqrt(bias_correction(beta_2, step)) if correct_bias else 1.0
    scale = root / bias_correction(beta_1, step) if correct_bias else 1.0
    update = scale * first_moment / (ops.sqrt(second_moment) + epsilon * root)

    shrink = learning_rate * weight_decay * weight if weight_decay and decay == "outside" else None
    if shrink is not None:
        weight = weight - shrink
    elif weight_decay:
        update = update + weight_decay * weight

    rate = learning_rate
    if adapt:
        weight_norm = euclidean_norm(weight)
        if weight_norm_bounds is not None:
            weight_norm = ops.clip(weight_norm, *weight_norm_bounds)
        ratio = trust_ratio(weight_norm, euclidean_norm(update))
        rate = rate * (ratio if max_trust_ratio is None else ops.minimum(ratio, max_trust_ratio))
    change = rate * update
    return (change if shrink is None else change + shrink), first_moment, second_moment
