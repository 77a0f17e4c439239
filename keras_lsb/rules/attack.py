"""Adversarial examples within a ball of the maximum norm: steps along the sign of a gradient.

Source: Liu et al., "Concurrent Adversarial Learning for Large-Batch Training", ICLR 2022, arXiv 2106.00221; the steps
are those of projected gradient descent, and a single one of full size is the fast gradient sign method.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._keras import ops
from keras_lsb._types import Tensor


class InputUnits(NamedTuple):
    """A radius and a range of values, both in the units of a model's inputs: numbers, or one per channel.

    Attributes:
        epsilon: radius of the attack.
        value_range: (low, high) of an input value.
    """

    epsilon: tuple[float, ...]
    value_range: tuple[tuple[float, ...], tuple[float, ...]]


def input_units(
    epsilon: ArrayLike, *, mean: ArrayLike, std: ArrayLike, value_range: tuple = (0.0, 255.0)
) -> InputUnits:
    """Radius and range of pixels, for a model whose inputs are (pixel - mean) / std.

        epsilon / std,    (low - mean) / std,    (high - mean) / std

    Args:
        epsilon: radius in pixels, in the units of `value_range`: 4 for 4 of 255.
        mean: what is subtracted from a pixel, a number or one per channel, in the same units.
        std: what that is divided by, positive, likewise.
        value_range: lowest and highest value of a pixel.

    Raises:
        ValueError: a `std` that is not positive, or `mean` and `std` of different length.

    >>> input_units(4.0, mean=127.5, std=127.5).value_range
    ((-1.0,), (1.0,))
    """
    mean, std = np.atleast_1d(np.asarray(mean, "float64")), np.atleast_1d(np.asarray(std, "float64"))
    if not (std > 0).all():
        raise ValueError(f"`std` must be positive. Received: std={std.tolist()}")
    if len(mean) != len(std) and 1 not in (len(mean), len(std)):
        raise ValueError(
            f"`mean` and `std` must have one value per channel. Received: mean={mean.tolist()}, std={std.tolist()}"
        )
    low, high = ((bound - mean) / std for bound in value_range)
    return InputUnits(tuple((epsilon / std).tolist()), (tuple(low.tolist()), tuple(high.tolist())))


def ball(inputs: Tensor, epsilon: Any, value_range: Any = None) -> tuple[Tensor, Tensor]:
    """Lowest and highest value that each entry of an adversarial example may take.

        low = max(inputs - epsilon, lo),    high = min(inputs + epsilon, hi)

    Args:
        inputs: clean examples, shape (examples, ..., channels).
        epsilon: radius in the units of `inputs`, a number or an array of shape (channels,).
        value_range: (lo, hi), each like `epsilon`; None for no limit.
    """
    epsilon = ops.cast(epsilon, inputs.dtype)
    low, high = inputs - epsilon, inputs + epsilon
    if value_range is None:
        return low, high
    lowest, highest = (ops.cast(bound, inputs.dtype) for bound in value_range)
    return ops.maximum(low, lowest), ops.minimum(high, highest)


def attack_step(adversarial: Tensor, gradient: Tensor, low: Tensor, high: Tensor, step_size: Any) -> Tensor:
    """One step of the attack, projected onto the ball.

        clip(adversarial + step_size * sign(gradient), low, high)

    Args:
        adversarial: examples so far.
        gradient: of the sum of the examples' losses, with respect to them. Where it is 0, the value stays.
        low, high: those of `ball`.
        step_size: in the units of the inputs, a number or one per channel; negative to descend, towards a target.
    """
    moved = adversarial + ops.cast(step_size, adversarial.dtype) * ops.cast(ops.sign(gradient), adversarial.dtype)
    return ops.clip(moved, low, high)


def random_start(
    inputs: Tensor, noise: Tensor, coin: Tensor, epsilon: Any, low: Tensor, high: Tensor, probability: float
) -> Tensor:
    """Examples to begin with: with a probability, for the whole batch, moved within the ball.

    Args:
        inputs: x, a batch of floating values.
        noise: uniform in [-1, 1), of the shape of `inputs`.
        coin: one number, uniform in [0, 1).
        epsilon, low, high: as in `ball`, and what that returns.
        probability: 0 for never.
    """
    moved = ops.clip(inputs + ops.cast(epsilon, inputs.dtype) * noise, low, high)
    return ops.where(coin < probability, moved, inputs)


def shifted_targets(targets: Tensor, offsets: Tensor, classes: int) -> Tensor:
    """Targets of other classes: class c becomes (c + offset) mod `classes`.

    Args:
        targets: class indices of any shape, or a weight for each class along the last axis (one-hot, smoothed), whose
            weights move along with their classes.
        offsets: whole numbers in [1, classes), of the shape of the indices, or of `targets` without the last axis.
        classes: number of classes, at least 2.
    """
    if len(offsets.shape) == len(targets.shape):
        return (targets + ops.cast(offsets, targets.dtype)) % classes
    places = (ops.arange(classes) - ops.cast(offsets, "int32")[..., None]) % classes
    return ops.take_along_axis(targets, places, axis=-1)
