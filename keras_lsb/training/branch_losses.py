"""The compiled loss of a model for one of several branches of a training step."""

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Model, Structure, Tensor
from keras_lsb.distribute.reduction import replica_count

tf = _keras.tensorflow


def branch_loss(
    model: Model,
    x: Structure,
    y: Structure,
    y_pred: Structure,
    sample_weight: Structure = None,
    *,
    counts_outputs: bool = False,
) -> Tensor:
    """The loss of predictions without regularization, divided by the number of replicas as Keras' compiled losses are.

    Of type float64 where it is computed in that, float32 otherwise. A `compute_loss` that overrides Keras' own is taken
    as it is.

    Args:
        model: a compiled model; a wrapper hands on the `compute_loss` of the model inside.
        counts_outputs: whether the metrics of several outputs' losses take notice. That of the total never does.
    """
    loss = _branch_loss(model, x, y, y_pred, sample_weight, counts_outputs)
    if loss.shape.rank:  # Keras 3 leaves the losses of no examples as they are, where it knows that there are none
        loss = tf.reduce_sum(loss)
    return loss if loss.dtype == tf.float64 else tf.cast(loss, tf.float32)


def _branch_loss(
    model: Model, x: Structure, y: Structure, y_pred: Structure, sample_weight: Structure, counts_outputs: bool
) -> Tensor:
    if overrides_loss(model):
        return model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
    if _keras.LEGACY:
        with _quiet(model.compiled_loss, y_pred, counts_outputs):
            return model.compiled_loss(y, y_pred, sample_weight)
    if model._compile_loss is None:
        raise ValueError("No loss to compute. Provide a `loss` argument in `compile()`.")
    with contextlib.nullcontext() if counts_outputs else _keras.keras3.StatelessScope():
        return model._compile_loss(y, y_pred, sample_weight)


def additional_loss(model: Model, dtype: Any) -> Tensor:
    """Sum of the losses of regularizers and layers since the last pass, divided likewise; 0 if there are none."""
    if overrides_loss(model) or not model.losses:
        return 0.0
    return tf.add_n([tf.cast(loss, dtype) for loss in model.losses]) / replica_count()


def overrides_loss(model: Model) -> bool:
    """Whether the model inside a wrapper computes its loss itself."""
    return type(model.model).compute_loss is not _keras.Model.compute_loss


@contextlib.contextmanager
def _quiet(losses: Any, y_pred: Structure, counts_outputs: bool) -> Iterator[None]:
    """Within it, tf_keras' container of losses adds what it computes to no metric, or to those of outputs only."""
    if not losses.built:
        losses.build(y_pred)
    kept = losses._total_loss_mean, losses._per_output_metrics
    losses._total_loss_mean = _Silent()
    if not counts_outputs:
        losses._per_output_metrics = [None] * len(kept[1])
    try:
        yield
    finally:
        losses._total_loss_mean, losses._per_output_metrics = kept


class _Silent:
    """A metric that takes no notice."""

    def update_state(self, *arguments: Any, **keywords: Any) -> None:
        """Does nothing."""
