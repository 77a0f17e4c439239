"""A linear warm-up around any schedule, with both read in epochs."""

import warnings
from typing import Self

from keras_lsb import _keras
from keras_lsb._checks import non_negative, positive
from keras_lsb._keras import ops
from keras_lsb._types import Schedule, Tensor
from keras_lsb.scaling.legw import elapsed_epochs, warmup_ramp

# Longer than any published recipe: a horizon beyond it is almost surely a number of steps.
_PLAUSIBLE_EPOCHS = 500
_LENGTH_ARGUMENTS = ("decay_steps", "boundaries", "first_decay_steps", "warmup_steps")


@_keras.register
class LinearWarmup(_keras.LearningRateSchedule):
    """Warms up linearly from 0 to a schedule that is written in epochs.

        value(t) = multiplier * s(t / n) * min(1, t / W),    W = warmup_epochs * n

    with t the number of updates done so far, n = `steps_per_epoch` and s the recipe's schedule as a function of epochs.
    The ramp is evaluated at every step. With a warm-up, value(0) is exactly 0: the first update leaves the weights
    alone, while batch-norm statistics and Adam's moments already move.

    Args:
        learning_rate: a positive number, or a LearningRateSchedule whose argument is read in **epochs**
            (`CosineDecay(0.1, decay_steps=90)` decays over 90 epochs).
        steps_per_epoch: optimizer updates per epoch, > 0, may be fractional. With gradient accumulation in Keras 3,
            schedules see one step per microbatch: count those.
        warmup_epochs: length of the warm-up in epochs, >= 0; 0 means none.
        multiplier: scales the learning rate, > 0.
        epochs: length of the training in epochs, if known. It turns a warm-up that would outlast the training, and a
            schedule written in steps, into a warning.
        name: name of the schedule.

    Raises:
        ValueError: an argument out of range; the message names it and its value.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        steps_per_epoch: float,
        warmup_epochs: float,
        multiplier: float = 1.0,
        epochs: float | None = None,
        name: str | None = None,
    ):
        super().__init__()
        is_schedule = isinstance(learning_rate, _keras.LearningRateSchedule)
        self.learning_rate = learning_rate if is_schedule else positive("learning_rate", learning_rate)
        self.steps_per_epoch = positive("steps_per_epoch", steps_per_epoch)
        self.warmup_epochs = non_negative("warmup_epochs", warmup_epochs)
        self.multiplier = positive("multiplier", multiplier)
        self.epochs = None if epochs is None else positive("epochs", epochs)
        self.name = name
        self._warn_of_units()

    @property
    def warmup_steps(self) -> float:
        """Length of the warm-up in steps, not rounded."""
        return self.warmup_epochs * self.steps_per_epoch

    def __call__(self, step: Tensor) -> Tensor:
        """Learning rate after `step` updates, float32."""
        rate = self.learning_rate
        if isinstance(rate, _keras.LearningRateSchedule):
            rate = ops.cast(rate(elapsed_epochs(step, self.steps_per_epoch)), "float32")
        return self.multiplier * rate * warmup_ramp(step, self.warmup_steps)

    def summary(self) -> str:
        """One line to print before a long run: the peak, and the warm-up in epochs and in steps."""
        schedule = isinstance(self.learning_rate, _keras.LearningRateSchedule)
        rate = f"{self.multiplier:.6g} x schedule" if schedule else f"{self.multiplier * self.learning_rate:.6g}"
        return (
            f"{type(self).__name__}: peak learning rate {rate}, warm-up {self.warmup_epochs:.6g} epochs = "
            f"{self.warmup_steps:.6g} steps, {self.steps_per_epoch:.6g} steps per epoch"
        )

    def get_config(self) -> dict:
        return {**self._recipe_config(), "warmup_epochs": self.warmup_epochs, "multiplier": self.multiplier}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> Self:
        config = dict(config)
        if isinstance(config["learning_rate"], dict):
            config["learning_rate"] = _keras.deserialize_schedule(config["learning_rate"], custom_objects)
        return cls(**config)

    def _recipe_config(self) -> dict:
        rate = self.learning_rate
        return {
            "learning_rate": _keras.serialize_schedule(rate) if isinstance(rate, _keras.LearningRateSchedule) else rate,
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
            "name": self.name,
        }

    def _warn_of_units(self) -> None:
        longest = _longest_argument(self.learning_rate)
        limit = _PLAUSIBLE_EPOCHS if self.epochs is None else 2 * self.epochs
        if longest is not None and longest[1] > limit:
            name, value = longest
            warnings.warn(
                f"`learning_rate` is read in epochs, but its {name}={value:g} is more than {limit:g} epochs: it looks "
                "like a number of steps. Divide it by the steps per epoch, or pass `epochs` if it is right. "
                f"Received: learning_rate={type(self.learning_rate).__name__}({name}={value:g})",
                stacklevel=3,
            )
            return
        total = self.epochs if self.epochs is not None else _end(self.learning_rate)
        if total is not None and self.warmup_epochs > total:
            warnings.warn(
                f"`warmup_epochs` gives a warm-up of {self.warmup_epochs:g} epochs at this batch size, longer than the "
                f"training of {total:g} epochs: the peak learning rate is never reached. Use a smaller batch size or a "
                f"shorter warm-up. Received: warmup_epochs={self._received_warmup():g}",
                stacklevel=3,
            )

    def _received_warmup(self) -> float:
        return self.warmup_epochs


def _longest_argument(schedule: float | Schedule) -> tuple[str, float] | None:
    """The largest argument of a Keras schedule that is a length on its axis, with its name; None if there is none."""
    if not isinstance(schedule, _keras.LearningRateSchedule):
        return None
    lengths = {name: getattr(schedule, name, None) for name in _LENGTH_ARGUMENTS}
    lengths = {name: max(value) if isinstance(value, (list, tuple)) else value for name, value in lengths.items()}
    found = [(name, float(value)) for name, value in lengths.items() if isinstance(value, (int, float))]
    return max(found, key=lambda item: item[1], default=None)


def _end(schedule: Schedule) -> float | None:
    """Where a schedule that ends does end; None for one that may go on, or that is a number."""
    schedules = _keras.keras.optimizers.schedules
    ends = isinstance(schedule, (schedules.CosineDecay, schedules.PolynomialDecay))
    if ends and not getattr(schedule, "cycle", False):
        return schedule.decay_steps + getattr(schedule, "warmup_steps", 0)
    return None
