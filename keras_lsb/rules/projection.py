"""AdamP's projection: takes out of a step the part that only rescales scale-invariant weights."""

import math

from keras_lsb._keras import column_sums, ops
from keras_lsb._types import Tensor


def to_channels(array: Tensor, channel_axes: tuple[int, ...]) -> Tensor:
    """`array` as a matrix with one column per channel: all entries with the same index along `channel_axes`."""
    order = _channels_last(len(array.shape), channel_axes)
    channels = math.prod(array.shape[axis] for axis in order[-len(channel_axes) :])
    moved = array if order == sorted(order) else ops.transpose(array, order)
    return ops.reshape(moved, (-1, channels))


def from_channels(matrix: Tensor, shape: tuple[int, ...], channel_axes: tuple[int, ...]) -> Tensor:
    """The inverse of `to_channels`: an array of `shape`."""
    order = _channels_last(len(shape), channel_axes)
    array = ops.reshape(matrix, tuple(shape[axis] for axis in order))
    return array if order == sorted(order) else ops.transpose(array, sorted(order, key=order.__getitem__))


def project(weight: Tensor, gradient: Tensor, step: Tensor, *, delta: float, epsilon: float) -> tuple[Tensor, Tensor]:
    """Projects `step` onto the tangent of `weight` where the gradient says that the weight is scale-invariant.

    Two views are tried in turn: the channels, which are the columns, and the whole layer, all entries. A view of n
    entries each fires if **every** channel (the layer) has

        |gradient . weight| / (max(||gradient||, epsilon) * max(||weight||, epsilon)) < delta / sqrt(n)

    and then, channel by channel with h = weight / (||weight|| + epsilon), the step becomes step - h * (h . step).

    Args:
        weight, gradient, step: matrices of one shape with one column per channel, see `to_channels`.
        delta: threshold of the cosine.
        epsilon: guards zero channels: their cosine counts as 0 and they project nothing.

    Returns:
        `(step, fired)`: the projected step, and a boolean scalar that tells whether either view fired.
    """
    products = gradient * weight, ops.square(gradient), ops.square(weight), weight * step
    inner = [column_sums(product) for product in products]
    rows, channels = weight.shape
    channel_fires, channel_factor = _view(*inner, entries=rows, delta=delta, epsilon=epsilon)
    whole = [ops.sum(value) for value in inner]
    layer_fires, layer_factor = _view(*whole, entries=rows * channels, delta=delta, epsilon=epsilon)

    layer_factor = ops.where(layer_fires, layer_factor, ops.zeros_like(layer_factor))
    factor = ops.where(channel_fires, channel_factor, layer_factor * ops.ones_like(channel_factor))
    return step - weight * factor, ops.logical_or(channel_fires, layer_fires)


def _channels_last(rank: int, channel_axes: tuple[int, ...]) -> list[int]:
    channels = [axis % rank for axis in channel_axes]
    return [axis for axis in range(rank) if axis not in channels] + channels


def _view(
    gradient_weight: Tensor,
    gradient_square: Tensor,
    weight_square: Tensor,
    weight_step: Tensor,
    *,
    entries: int,
    delta: float,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Whether every channel is below the threshold, and the multiple of the weight to take out of each one's step."""
    weight_norm = ops.sqrt(weight_square)
    norms = ops.maximum(ops.sqrt(gradient_square), epsilon) * ops.maximum(weight_norm, epsilon)
    fires = ops.max(ops.abs(gradient_weight) / norms) < delta / math.sqrt(entries)
    return fires, weight_step / ops.square(weight_norm + epsilon)
