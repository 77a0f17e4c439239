"""LEGW: square-root learning-rate scaling with linear-epoch gradual warm-up.

Source: You, Hseu, Ying, Demmel, Keutzer, Hsieh, "Large-Batch Training for LSTM and Beyond", 2019, arXiv 1901.08256.
"""

import math

from keras_lsb._checks import non_negative, positive
from keras_lsb._keras import ops
from keras_lsb._types import Tensor


def legw(learning_rate: float, warmup_epochs: float, factor: float) -> tuple[float, float]:
    """Scales a recipe's peak learning rate and warm-up to a batch `factor` times as large.

        learning_rate' = learning_rate * sqrt(factor)
        warmup_epochs' = warmup_epochs * factor

    The number of warm-up *steps* stays the same, because an epoch has `factor` times fewer of them. The law does not
    know how long the training is: compare the returned warm-up with the total number of epochs. A warm-up that takes
    most of the training means that the batch is too large for the recipe.

    Args:
        learning_rate: peak learning rate of the base recipe, > 0.
        warmup_epochs: warm-up length of the base recipe in epochs, may be fractional, >= 0.
        factor: batch size in use / base batch size, any positive number; below 1 scales down.

    Returns:
        `(learning_rate, warmup_epochs)` at the batch size in use.

    Raises:
        ValueError: a negative, zero (where it must be positive) or non-finite argument.

    Examples:
        >>> legw(0.1, 0.5, 4)
        (0.2, 2.0)
        >>> legw(0.1, 0.0, 1)
        (0.1, 0.0)
    """
    factor = positive("factor", factor)
    rate = positive("learning_rate", learning_rate) * math.sqrt(factor)
    return rate, non_negative("warmup_epochs", warmup_epochs) * factor


def elapsed_epochs(step: Tensor, steps_per_epoch: float) -> Tensor:
    """Epochs done after `step` updates, as float32; exact where `step` is a whole number of epochs.

    The quotient is taken around the nearest whole epoch: XLA turns a division by a constant into a multiplication by
    its rounded reciprocal, and a piecewise schedule would otherwise see a boundary one step early or late.

    Args:
        step: updates done so far, a number or tensor, exact up to 2**24.
        steps_per_epoch: updates per epoch, may be fractional.
    """
    step = ops.cast(step, "float32")
    whole = ops.round(step / steps_per_epoch)
    return whole + (step - whole * steps_per_epoch) / steps_per_epoch


def warmup_ramp(step: Tensor, warmup_steps: float) -> Tensor:
    """`min(1, step / warmup_steps)` as float32, and 1 where there is no warm-up (`warmup_steps` = 0).

    Args:
        step: updates done so far, a number or tensor.
        warmup_steps: length of the ramp in steps, a real number that is not rounded.
    """
    step = ops.cast(step, "float32")
    if warmup_steps == 0:
        return ops.ones_like(step)
    return ops.minimum(1.0, step / warmup_steps)
