"""The training step of `Microbatched` on TensorFlow, in Keras 3 and tf_keras, on one replica and on many."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_lsb import _keras, scaling
from keras_lsb._types import Model, Structure, Tensor
from keras_lsb.distribute.reduction import (
    apply_summed,
    densify,
    local_variable,
    logs_for_fit,
    replica_count,
    sum_over_replicas,
)
from keras_lsb.scaling.noise_scale import signal_and_noise

tf = _keras.tensorflow


class Sums(NamedTuple):
    """What a step sums over small gradients: gradients of the scaled loss, squared norms, counts and 1 / examples."""

    gradients: list
    sq_norms: object
    small_gradients: object
    inverse_sizes: object


# An update from one batch, or from several: all but the last of them are only accumulated.
PARTS = ("update", "accumulate", "finish")


def next_part(model: Model) -> str:
    """Which of `PARTS` the next batch is for; counts the batches that wait."""
    waiting = model.pending_batches
    if waiting + 1 < model.accumulation:
        if model._accumulated.gradients is None:
            _make_accumulators(model)
        model._accumulated.batches += 1
        return "accumulate"
    model._accumulated.batches = 0
    return "finish" if waiting else "update"


def train_step(model: Model, data: Structure) -> dict:
    """One update from one batch, which is this replica's share, or one part of an update."""
    batch = _keras.unpack(data)
    (total,) = sum_over_replicas([tf.cast(examples_in(batch), tf.float32)])
    scale = _keras.loss_scale(model.optimizer)
    sums = sum_gradients(model, batch, scale / total, _measures_now(model) if measures_noise(model) else None)
    statistics = tf.concat([sums.sq_norms, [sums.small_gradients, sums.inverse_sizes]], 0)
    if model._accumulated.part == "update":
        _update(model, sums.gradients, statistics, total, scale)
    else:
        _accumulate(model, sums.gradients, statistics, total, scale)
    results, shared = model.get_metrics_result(), model.step_logs()
    return logs_for_fit(results, shared) if shared else results


def _update(model: Model, gradients: Sequence[Tensor], statistics: Tensor, total: Tensor, scale: Tensor) -> None:
    """Sums over replicas, measures and applies."""
    gradients = _sum_present(gradients)
    if measures_noise(model):
        (statistics,) = sum_over_replicas([statistics])
        _update_averages(model, gradients, statistics, total, scale)
    apply_summed(model.optimizer, _keras.unscale(model.optimizer, gradients), model.trainable_variables)


def _accumulate(model: Model, gradients: Sequence[Tensor], statistics: Tensor, total: Tensor, scale: Tensor) -> None:
    """Adds this replica's sums to its accumulators; the last part of an update applies and clears them."""
    kept = model._accumulated
    pairs = [(g, sum_) for g, sum_ in zip(gradients, kept.gradients, strict=True) if g is not None]
    if kept.part == "accumulate":
        for gradient, accumulator in pairs:
            accumulator.assign_add(gradient * tf.cast(total, gradient.dtype))
        kept.statistics.assign_add(statistics)
        kept.examples.assign_add(total)
        return
    total_of_all = kept.examples + total
    now, then = total / total_of_all, 1 / total_of_all
    means = iter([g * tf.cast(now, g.dtype) + sum_ * tf.cast(then, g.dtype) for g, sum_ in pairs])
    means = [None if gradient is None else next(means) for gradient in gradients]
    _update(model, means, kept.statistics + statistics, total_of_all, scale)
    for variable in (*(accumulator for _, accumulator in pairs), kept.statistics, kept.examples):
        variable.assign(tf.zeros_like(variable))


def _make_accumulators(model: Model) -> None:
    if not model.built:
        raise ValueError("Call the model on a batch before batches are accumulated: its weights do not exist yet.")
    kept = model._accumulated
    rows = len(model.groups) + 1 if measures_noise(model) else 0
    with model.distribute_strategy.scope():
        kept.gradients = [local_variable(variable.shape, variable.dtype) for variable in model.trainable_variables]
        kept.statistics, kept.examples = local_variable([rows + 2], "float32"), local_variable([], "float32")


def measures_noise(model: Model) -> bool:
    """Whether a step has more than one small gradient to compare."""
    several = model.accumulation > 1 or model._accumulated.part != "update"  # a sum that is begun may end in one batch
    return model.noise_scale and (several or model.microbatches * replica_count() > 1)


def examples_in(batch: Structure) -> int | Tensor:
    """Examples in a batch: an int where it is known, otherwise a tensor."""
    first = _keras.leaves(batch[0])[0]
    size = first.shape[0]
    return tf.shape(first)[0] if size is None else int(size)


def sum_gradients(model: Model, batch: Structure, weight: Any, measures_now: bool | Tensor) -> Sums:
    """Sums of gradients of `weight` * examples * mean loss over the microbatches of one batch.

    The first microbatch stands outside of the loop: it creates what models and metrics create when first called.
    """
    examples = examples_in(batch)
    if model.microbatches == 1:
        return _small_gradient(model, batch, examples, weight, measures_now)
    size = -(-examples // model.microbatches)
    whole = examples // (size if isinstance(size, int) else tf.maximum(size, 1))
    first = _slice(batch, 0, size)
    sums = _small_gradient(model, first, size, weight, measures_now)
    stacked = _stack(batch, size, whole)

    def add(index: Tensor, *flat: Tensor) -> tuple:
        part = _keras.map_structure(lambda array: tf.gather(array, index), stacked)
        return index + 1, *_flat(_add(sums, flat, _small_gradient(model, part, size, weight, measures_now)))

    if not isinstance(whole, int) or whole > 1:
        state = (tf.constant(1), *_flat(sums))
        state = tf.while_loop(lambda index, *_: index < whole, add, state, parallel_iterations=1)
        sums = _structured(sums, state[1:])
    return _add_remainder(model, batch, sums, size * whole, examples, weight, measures_now)


def _add_remainder(
    model: Model,
    batch: Structure,
    sums: Sums,
    done: Any,
    examples: int | Tensor,
    weight: Any,
    measures_now: bool | Tensor,
) -> Sums:
    rest = examples - done

    def add() -> list:
        part = _slice(batch, done, rest)
        return _flat(_add(sums, _flat(sums), _small_gradient(model, part, rest, weight, measures_now)))

    if isinstance(rest, int):
        return _structured(sums, add()) if rest else sums
    return _structured(sums, tf.cond(rest > 0, add, lambda: _flat(sums)))


def _small_gradient(
    model: Model, batch: Structure, examples: int | Tensor, weight: Any, measures_now: bool | Tensor
) -> Sums:
    """Gradients of `weight` * examples * mean loss over one microbatch, and their norms as of the mean loss."""
    x, y, sample_weight = batch
    factor = weight * tf.cast(examples, tf.float32)
    with tf.GradientTape() as tape:
        y_pred, loss = model.training_loss(x, y, sample_weight, examples)
        loss *= replica_count()  # Keras divides compiled losses by it
        if not isinstance(examples, int):  # a replica's share of the last batch may be empty, and its mean loss NaN
            loss = tf.where(examples > 0, loss, tf.zeros_like(loss))
        scaled = tf.cast(loss, tf.float32) * factor
    gradients = densify(tape.gradient(scaled, model.trainable_weights))
    model.update_training_metrics(loss, examples, x, y, y_pred, sample_weight)
    if measures_now is None:
        return Sums(gradients, tf.zeros([0]), tf.constant(0.0), tf.constant(0.0))
    rows = len(model.groups) + 1

    def norms() -> Tensor:
        return tf.math.divide_no_nan(sq_norms(model, gradients), tf.square(factor))

    found = norms() if measures_now is True else tf.cond(measures_now, norms, lambda: tf.zeros([rows]))
    present = tf.cast(examples > 0, tf.float32)
    return Sums(gradients, found, present, tf.math.divide_no_nan(1.0, tf.cast(examples, tf.float32)))


def sq_norms(model: Model, gradients: Sequence[Tensor]) -> Tensor:
    """Squared norms of the gradient, of all variables and of those of each group."""
    each = [0.0 if gradient is None else 2 * tf.nn.l2_loss(tf.cast(gradient, tf.float32)) for gradient in gradients]
    return tf.stack([tf.add_n([tf.convert_to_tensor(each[i]) for i in members]) for members in model.group_members()])


def _measures_now(model: Model) -> bool | Tensor:
    """True where every step measures, otherwise a tensor."""
    if model.interval == 1:
        return True
    return tf.equal(tf.cast(model.optimizer.iterations, tf.int32) % model.interval, 0)


def _update_averages(
    model: Model, gradients: Sequence[Tensor], statistics: Tensor, total: Tensor, scale: Tensor
) -> None:
    """Adds the measurement to the model's averages. `statistics` are summed over small gradients, `total` examples."""
    rows = len(model.groups) + 1
    norms, count, inverse_sizes = statistics[:rows], statistics[rows], statistics[rows + 1]
    kept = [tf.convert_to_tensor(model.averages)[None]]
    averages = tf.concat([*kept, model.group_averages], 0) if model.groups else kept[0]

    def updated() -> Tensor:
        big = sq_norms(model, gradients) / tf.square(scale)
        parts = signal_and_noise(norms / count, big, count / inverse_sizes, total)  # not finite for one small gradient
        return scaling.update_averages(averages, *parts, model.decay, weight=total)

    measures_now = _measures_now(model)
    averages = updated() if measures_now is True else tf.cond(measures_now, updated, lambda: averages)
    model.averages.assign(averages[0])
    if model.groups:
        model.group_averages.assign(averages[1:])
    model.measured_batch.assign(tf.maximum(tf.convert_to_tensor(model.measured_batch), total))


def _sum_present(gradients: Sequence[Tensor]) -> list:
    """Sums over replicas; None stays None."""
    summed = iter(sum_over_replicas([gradient for gradient in gradients if gradient is not None]))
    return [None if gradient is None else next(summed) for gradient in gradients]


def _flat(sums: Sums) -> list:
    present = [gradient for gradient in sums.gradients if gradient is not None]
    return [*present, sums.sq_norms, sums.small_gradients, sums.inverse_sizes]


def _structured(like: Sums, flat: Sequence[Tensor]) -> Sums:
    *present, norms, count, inverse = flat
    present = iter(present)
    return Sums([None if gradient is None else next(present) for gradient in like.gradients], norms, count, inverse)


def _add(like: Sums, flat: Sequence[Tensor], more: Sums) -> Sums:
    return _structured(like, [a + b for a, b in zip(flat, _flat(more), strict=True)])


def _slice(batch: Structure, start: int | Tensor, size: int | Tensor) -> Structure:
    return _keras.map_structure(lambda array: array[start : start + size], batch)


def _stack(batch: Structure, size: int | Tensor, count: int) -> Structure:
    """The first `count` microbatches of `size` examples, along a new first axis."""

    def stack(array: Tensor) -> Tensor:
        return tf.reshape(array[: size * count], tf.concat([[count, size], tf.shape(array)[1:]], 0))

    def with_shape(array: Tensor) -> Tensor:
        stacked = stack(array)
        fixed = [value if isinstance(value, int) else None for value in (count, size)]
        return tf.ensure_shape(stacked, [*fixed, *array.shape[1:]])

    return _keras.map_structure(with_shape, batch)
