"""The training step of `Microbatched` on JAX: pure functions of the state that Keras hands in.

Microbatches are strided: with the batch split over devices by `keras.distribution.DataParallel`, each device has a
share of every microbatch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from keras_lsb import _keras, scaling
from keras_lsb._types import Model, Structure, Tensor
from keras_lsb.scaling.noise_scale import signal_and_noise
from keras_lsb.training import microbatched


def train_step(model: Model, state: tuple, data: Structure) -> tuple[dict, tuple]:
    """One update from one batch: the logs and the state after it."""
    trainable, non_trainable, optimizer_state, metrics = state
    batch = _keras.unpack(data)
    examples = next(leaf for leaf in jax.tree.leaves(batch[0])).shape[0]
    size = -(-examples // model.microbatches)
    count = examples // size
    measures = model.noise_scale and model.microbatches > 1
    scale = _keras.state_value(model.optimizer.variables, optimizer_state, lambda: _keras.loss_scale(model.optimizer))
    measures_now = measures and _measures_now(model, optimizer_state)
    gradient = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)

    def add(carry: Tensor, part: Tensor) -> tuple:
        (sums, norms, non_trainable, metrics), (x, y, sample_weight) = carry, part
        share = next(leaf for leaf in jax.tree.leaves(x)).shape[0]
        (_, aux), gradients = gradient(
            trainable, non_trainable, metrics, x, y, sample_weight, training=True, optimizer_variables=optimizer_state
        )
        loss, y_pred, non_trainable, metrics = aux
        _, metrics = model._update_metrics_variables(metrics, loss, x, y, y_pred, sample_weight)
        sums = [total + share / examples * gradient for total, gradient in zip(sums, gradients, strict=True)]
        if measures:
            norms = norms + _norms(model, gradients, measures_now)
        return (sums, norms, non_trainable, metrics), None

    zeros = [jnp.zeros_like(variable) for variable in trainable]
    carry = (zeros, jnp.zeros(len(model.groups) + 1), non_trainable, metrics)
    carry, _ = jax.lax.scan(add, carry, _stack(batch, size, count))
    rest = examples - size * count
    if rest:
        carry, _ = add(carry, jax.tree.map(lambda array: array[size * count :], batch))
    sums, norms, non_trainable, metrics = carry
    if measures:
        small = norms / (count + (rest > 0)) / scale**2
        small_batch = (count + (rest > 0)) / (count / size + (1 / rest if rest else 0))
        big = _norms(model, sums, measures_now) / scale**2
        non_trainable, averages = _update_averages(
            model, non_trainable, small, big, small_batch, examples, measures_now
        )
    trainable, optimizer_state = model.optimizer.stateless_apply(optimizer_state, sums, trainable)
    logs = _keras.state_value(model.metrics_variables, metrics, model.get_metrics_result)
    if measures:
        logs = {**logs, **microbatched.logs_of(averages)}
    return logs, (trainable, non_trainable, optimizer_state, metrics)


def _stack(batch: Structure, size: int, count: int) -> Structure:
    """Microbatches of `size` examples along a new first axis, taken from the batch with a stride."""

    def stack(array: Tensor) -> Tensor:
        return jnp.moveaxis(array[: size * count].reshape(size, count, *array.shape[1:]), 1, 0)

    return jax.tree.map(stack, batch)


def _norms(model: Model, gradients: Sequence[Tensor], measures_now: bool | Tensor) -> Tensor:
    """Squared norms of the gradient, of all variables and of those of each group; zeros where nothing is measured."""

    def norms() -> Tensor:
        each = [jnp.sum(jnp.square(gradient.astype("float32"))) for gradient in gradients]
        return jnp.stack([sum(each[index] for index in members) for members in model.group_members()])

    if measures_now is True:
        return norms()
    return jax.lax.cond(measures_now, norms, lambda: jnp.zeros(len(model.groups) + 1))


def _measures_now(model: Model, optimizer_state: Tensor) -> bool | Tensor:
    if model.interval == 1:
        return True
    iterations = _keras.state_value(
        model.optimizer.variables, optimizer_state, lambda: model.optimizer.iterations.value
    )
    return iterations % model.interval == 0


def _update_averages(
    model: Model,
    non_trainable: Tensor,
    small: Tensor,
    big: Tensor,
    small_batch: Tensor,
    big_batch: Tensor,
    measures_now: bool | Tensor,
) -> tuple[list, Tensor]:
    """The non-trainable state with the measurement added to the model's averages, and the averages of all weights."""
    held = [model.measured_batch, model.averages, *([model.group_averages] if model.groups else [])]
    values = _keras.state_value(model.non_trainable_variables, non_trainable, lambda: [v.value for v in held])
    batch, averages = values[0], jnp.concatenate([jnp.atleast_2d(value) for value in values[1:]])
    if small_batch < big_batch:
        parts = signal_and_noise(small, big, small_batch, big_batch)
        updated = scaling.update_averages(averages, *parts, model.decay, weight=float(big_batch))
    else:  # a batch too small to be split
        updated = scaling.update_averages(averages, jnp.full_like(small, jnp.nan), small, model.decay)
    averages = updated if measures_now is True else jnp.where(measures_now, updated, averages)
    changes = zip(held, (jnp.maximum(batch, big_batch), averages[0], averages[1:]), strict=False)
    return _replaced(model, non_trainable, changes), averages[0]


def _replaced(model: Model, values: Sequence[Tensor], changes: Any) -> list:
    """Values of the non-trainable variables, some of them changed."""
    changes = {id(variable): jnp.asarray(value, "float32") for variable, value in changes}
    return [
        changes.get(id(variable), value) for variable, value in zip(model.non_trainable_variables, values, strict=True)
    ]
