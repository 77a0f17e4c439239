"""AdamP's projection: takes out of a step the part that only rescales scale-invariant weights."""

import math

from keras_lsb._keras import ops


def project(weight, gradient, step, *, channel_axes: tuple[int, ...], delta: float, epsilon: float):
    """Projects `step` onto the tangent of `weight` where the gradient says that the weight is scale-invariant.

    Two views are tried in turn, the channels (a row is all entries with the same index along `channel_axes`) and the
    whole layer (one row). With n entries a row, a view fires if **every** row has

        |gradient . weight| / (max(||gradient||, epsilon) * max(||weight||, epsilon)) < delta / sqrt(n)

    and then, row by row with h = weight / (||weight|| + epsilon), the step becomes step - h * (h . step).

    Args:
        weight, gradient, step: arrays of one shape with at least two dimensions.
        channel_axes: axes that number the channels, e.g. (-1,) for Keras' dense and convolution kernels.
        delta: threshold of the cosine.
        epsilon: guards zero rows: their cosine counts as 0 and they project nothing.

    Returns:
        `(step, fired)`: the projected step, and a boolean scalar that tells whether either view fired.
    """
    rank = len(weight.shape)
    channels = {axis % rank for axis in channel_axes}
    within_row = tuple(axis for axis in range(rank) if axis not in channels)

    def rows(product):
        return ops.sum(product, axis=within_row, keepdims=True)

    inner = rows(gradient * weight), rows(ops.square(gradient)), rows(ops.square(weight)), rows(weight * step)
    row_size = math.prod(weight.shape[axis] for axis in within_row)
    channel_fires, channel_factor = _view(*inner, row_size=row_size, delta=delta, epsilon=epsilon)
    whole = [ops.sum(value) for value in inner]
    layer_fires, layer_factor = _view(*whole, row_size=math.prod(weight.shape), delta=delta, epsilon=epsilon)

    layer_factor = ops.where(layer_fires, layer_factor, ops.zeros_like(layer_factor))
    factor = ops.where(channel_fires, channel_factor, layer_factor * ops.ones_like(channel_factor))
    return step - weight * factor, ops.logical_or(channel_fires, layer_fires)


def _view(gradient_weight, gradient_square, weight_square, weight_step, *, row_size, delta, epsilon):
    """Whether every row is below the threshold, and the multiple of the weight to take out of each row's step."""
    weight_norm = ops.sqrt(weight_square)
    norms = ops.maximum(ops.sqrt(gradient_square), epsilon) * ops.maximum(weight_norm, epsilon)
    fires = ops.max(ops.abs(gradient_weight) / norms) < delta / math.sqrt(row_size)
    return fires, weight_step / ops.square(weight_norm + epsilon)
