"""LARS in plain float64 NumPy.

Source: You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv 1708.03888.
"""

import numpy as np


def lars_step(
    weight,
    gradient,
    velocity,
    *,
    learning_rate,
    momentum=0.9,
    weight_decay=0.0,
    trust_coefficient=0.001,
    epsilon=0.0,
    nesterov=False,
    denominator="sum",
    rate="inside",
    decay_excluded=False,
    adaptation_excluded=False,
):
    """One update of one variable; returns the new (weight, velocity).

    denominator: "sum" divides by ||g|| + wd ||w||, "joint" by ||g + wd w||; the ratio is 1 where the norm is 0.
    rate: "inside" accumulates lr * r * d, "outside" accumulates r * d and multiplies the step by lr.
    decay_excluded: no decay anywhere, in the ratio neither. adaptation_excluded: ratio 1.
    """
    weight, gradient, velocity = (np.asarray(array, np.float64) for array in (weight, gradient, velocity))
    if decay_excluded:
        weight_decay = 0.0
    direction = gradient + weight_decay * weight

    weight_norm = np.sqrt(np.sum(weight**2))
    if denominator == "sum":
        tested_norm = np.sqrt(np.sum(gradient**2))
        divisor = tested_norm + weight_decay * weight_norm + epsilon
    elif denominator == "joint":
        tested_norm = np.sqrt(np.sum(direction**2))
        divisor = tested_norm + epsilon
    else:
        raise ValueError(f'`denominator` must be "sum" or "joint". Received: denominator={denominator!r}')

    ratio = 1.0
    if weight_norm > 0 and tested_norm > 0 and not adaptation_excluded:
        ratio = trust_coefficient * weight_norm / divisor

    if rate == "inside":
        increment, outer_rate = learning_rate * ratio * direction, 1.0
    elif rate == "outside":
        increment, outer_rate = ratio * direction, learning_rate
    else:
        raise ValueError(f'`rate` must be "inside" or "outside". Received: rate={rate!r}')
    velocity = momentum * velocity + increment
    step = momentum * velocity + increment if nesterov else velocity
    return weight - outer_rate * step, velocity
