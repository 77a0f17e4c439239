"""What a model needs for its noise scale to be measured."""

from keras_lsb._types import Model
from keras_lsb.distribute.reduction import replicas_of
from keras_lsb.training import Microbatched


def require_measurable(model: Model, callback: str) -> None:
    """Raises a ValueError that says what to change where the noise scale of `model` cannot be measured."""
    if not isinstance(model, Microbatched):
        raise ValueError(
            f"`callbacks.{callback}` needs a model wrapped in `training.Microbatched(model, microbatches)`. "
            f"Received: model of type {type(model).__name__}"
        )
    if not model.noise_scale:
        raise ValueError(
            f"`callbacks.{callback}` needs `Microbatched(..., noise_scale=True)`. Received: noise_scale=False"
        )
    if model.microbatches * replicas_of(model) * model.accumulation == 1:
        raise ValueError(
            f"`callbacks.{callback}` needs at least two small gradients per step: one replica with one microbatch has "
            "nothing to compare. Use `training.Microbatched(model, microbatches=2)` or more, or several replicas. "
            "Received: microbatches=1 on 1 replica"
        )
