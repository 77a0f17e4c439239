"""AdamP: Adam that does not grow the norm of scale-invariant weights.

Source: Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
Scale-invariant Weights", ICLR 2021, arXiv 2006.08217.
"""

from keras_lsb._keras import ops
from keras_lsb._types import Tensor
from keras_lsb.rules.moments import bias_correction, update_moments
from keras_lsb.rules.projection import from_channels, project, to_channels


def adamp(
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
    delta: float,
    weight_decay_ratio: float,
    nesterov: bool,
    adapt: bool,
    channel_axes: tuple[int, ...] = (-1,),
) -> tuple[Tensor, ...]:
    """One AdamP update: `(step, first_moment, second_moment)`, where `weight - step` is the new weight.

        m, v = Adam's moments               p = m / (sqrt(v) / sqrt(1 - beta_2**step) + epsilon)
        p, ratio = projected p, weight_decay_ratio      where the projection fires, else p, 1
        step = learning_rate * weight_decay * ratio * weight + learning_rate / (1 - beta_1**step) * p

    The projection looks at the raw gradient and at the weight before decay. Vectors and scalars are never projected.

    Args:
        weight, gradient, first_moment, second_moment: arrays of one shape, float32 or wider.
        learning_rate: scalar.
        step: number of this update, 1 at the first, a float scalar.
        beta_1, beta_2, epsilon, weight_decay: as in the formula; `weight_decay` is 0 where excluded.
        delta: threshold of the projection's cosine; 0 never projects, which leaves AdamW.
        weight_decay_ratio: factor of the decay where the projection fires.
        nesterov: replaces m in p by beta_1 * m + (1 - beta_1) * gradient.
        adapt: False for a variable that must not be projected.
        channel_axes: axes that number the output channels.
    """
    shape = tuple(weight.shape)
    projects = adapt and len(shape) > 1
    if projects:
        # All of the rule in the layout of the projection: one matrix, one column per channel.
        weight, gradient, first_moment, second_moment = (
            to_channels(array, channel_axes) for array in (weight, gradient, first_moment, second_moment)
        )
    first_moment, second_moment = update_moments(gradient, first_moment, second_moment, beta_1, beta_2)
    momentum = beta_1 * first_moment + (1 - beta_1) * gradient if nesterov else first_moment
    direction = momentum / (ops.sqrt(second_moment) / ops.sqrt(bias_correction(beta_2, step)) + epsilon)
    ratio = 1.0
    if projects:
        direction, fired = project(weight, gradient, direction, delta=delta, epsilon=epsilon)
        ratio = ops.where(fired, ops.full_like(step, weight_decay_ratio), ops.ones_like(step))
    change = learning_rate / bias_correction(beta_1, step) * direction
    if weight_decay:
        change = change + learning_rate * weight_decay * ratio * weight
    results = change, first_moment, second_moment
    return tuple(from_channels(array, shape, channel_axes) for array in results) if projects else results
