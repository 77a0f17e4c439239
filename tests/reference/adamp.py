"""AdamP in plain float64 NumPy, with an explicit loop over the channels.

Source: Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
Scale-invariant Weights", ICLR 2021, arXiv 2006.08217.
"""

import math

import numpy as np


def rows_of(shape, channel_axes):
    """Indices that cut an array into rows: a row is all entries that share their indices along `channel_axes`.

    No channel axis: one row, the whole array.
    """
    axes = [axis % len(shape) for axis in channel_axes]
    for channel in np.ndindex(*[shape[axis] for axis in axes]):
        index = [slice(None)] * len(shape)
        for axis, position in zip(axes, channel, strict=True):
            index[axis] = position
        yield tuple(index)


def largest_cosine(gradient, weight, rows, epsilon):
    """Largest |cosine| between the gradient and the weight over the rows."""
    largest = 0.0
    for row in rows:
        gradient_norm = np.sqrt(np.sum(gradient[row] ** 2))
        weight_norm = np.sqrt(np.sum(weight[row] ** 2))
        inner = abs(np.sum(gradient[row] * weight[row]))
        # np.maximum, not max: a NaN row must veto the view.
        largest = np.maximum(largest, inner / (max(gradient_norm, epsilon) * max(weight_norm, epsilon)))
    return largest


def project(perturbation, gradient, weight, *, delta, epsilon, channel_axes):
    """Returns (perturbation, view): view is "channel" or "layer" where that projection fired, else None."""
    for view, axes in (("channel", channel_axes), ("layer", ())):
        rows = list(rows_of(weight.shape, axes))
        if largest_cosine(gradient, weight, rows, epsilon) < delta / math.sqrt(weight[rows[0]].size):
            projected = perturbation.copy()
            for row in rows:
                unit = weight[row] / (np.sqrt(np.sum(weight[row] ** 2)) + epsilon)
                projected[row] = perturbation[row] - unit * np.sum(unit * perturbation[row])
            return projected, view
    return perturbation, None


def adamp_step(
    weight,
    gradient,
    m,
    v,
    step,
    *,
    learning_rate=0.001,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-8,
    weight_decay=0.0,
    delta=0.1,
    weight_decay_ratio=0.1,
    nesterov=False,
    channel_axes=(-1,),
):
    """Update number `step` (1 at the first) of one variable; returns the new (weight, m, v).

    channel_axes: axes whose indices number the channels: (-1,) for Keras' dense and convolution kernels, (-2, -1) for
        depthwise kernels, (0,) for embeddings and for the authors' PyTorch layout.
    Vectors and scalars are never projected.
    """
    weight, gradient, m, v = (np.asarray(array, np.float64) for array in (weight, gradient, m, v))
    m = beta_1 * m + (1 - beta_1) * gradient
    v = beta_2 * v + (1 - beta_2) * gradient**2
    root = np.sqrt(v) / math.sqrt(1 - beta_2**step) + epsilon
    perturbation = (beta_1 * m + (1 - beta_1) * gradient) / root if nesterov else m / root

    ratio = 1.0
    if weight.ndim >= 2:
        perturbation, view = project(
            perturbation, gradient, weight, delta=delta, epsilon=epsilon, channel_axes=channel_axes
        )
        if view is not None:
            ratio = weight_decay_ratio
    weight = weight * (1 - learning_rate * weight_decay * ratio)
    return weight - learning_rate / (1 - beta_1**step) * perturbation, m, v
