"""Adam's moving averages and their bias correction, shared by LAMB and AdamP."""

import math

from keras_lsb._keras import ops
from keras_lsb._types import Tensor


def update_moments(
    gradient: Tensor, first_moment: Tensor, second_moment: Tensor, beta_1: float, beta_2: float
) -> tuple[Tensor, Tensor]:
    """Moving averages of the gradient and of its square: `beta * average + (1 - beta) * value`, each."""
    first_moment = beta_1 * first_moment + (1 - beta_1) * gradient
    second_moment = beta_2 * second_moment + (1 - beta_2) * ops.square(gradient)
    return first_moment, second_moment


def bias_correction(beta: float, step: Tensor) -> Tensor:
    """`1 - beta**step`: the weight that a moving average started at zero has gathered after `step` updates.

    Computed as `-expm1(step * log(beta))`: in float32 the difference from 1 would lose the digits that matter while
    `beta**step` is still close to 1.

    Args:
        beta: decay rate in [0, 1).
        step: number of this update, 1 at the first, a float tensor.
    """
    if beta == 0:
        return ops.ones_like(step)
    return -ops.expm1(step * math.log(beta))
