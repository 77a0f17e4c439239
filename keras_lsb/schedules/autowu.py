"""AutoWU as a Keras learning-rate schedule."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

from keras_lsb import _keras
from keras_lsb._checks import whole
from keras_lsb._keras import ops
from keras_lsb._types import Tensor
from keras_lsb.scaling.autowu import AutoWUController, Decision


@_keras.register
class AutoWU(_keras.LearningRateSchedule):
    """Warms up exponentially until the loss has stopped falling, then decays from the rate at which it was lowest.

        value(t) = warm-up(t) for t < S, decay(t) from then on,    t the number of updates done so far

    The rates of both are those of `scaling.AutoWURates`. S is the limit of the warm-up, `warmup_fraction *
    total_steps`, unless `callbacks.AutoWU` decides for an earlier end: give the same schedule to it. There is no
    learning rate to tune.

    Create it under the strategy's scope, as the optimizer. The end of the warm-up and the rate of the decay are
    variables of the graph; on JAX, which has none, the training step is compiled once more when the decay begins.

    Args:
        total_steps: optimizer updates of the whole training: epochs times steps per epoch. With gradient accumulation
            in Keras 3, schedules see one step per microbatch: count those.
        steps_per_check: updates between two decisions; None takes an epoch, or where that is one or two steps, as many
            epochs as make a twentieth of the longest warm-up.
        decay: "cosine", "constant-cosine", "half-cosine", or a Keras schedule of the progress of the decay, 0 to 1,
            whose values are factors of its first rate: `PolynomialDecay(1.0, 1, end_learning_rate=0.0)` is linear.
        state: what `state()` of an earlier schedule has returned.
        name: name of the schedule.
        **options: any other argument of `scaling.AutoWUController`: `warmup_fraction`, `min_learning_rate`,
            `max_learning_rate`, `patience` and so on.

    Attributes:
        controller: the `scaling.AutoWUController` that decides, None before the training begins.
        pending: losses for the next decision.
        before_save: a function that is called before `state()` is taken, such as one that fetches losses, or None.

    Raises:
        ValueError: an argument out of range; the message names it and its value.

    Source: Kim, Kim, Kim, Lee, Kim, 2021, arXiv 2107.05855.

    Examples:
        >>> schedule = AutoWU(total_steps=200)
        >>> [round(float(schedule(step)), 6) for step in (0, 50, 99, 100, 200)]
        [1e-05, 0.003162, 0.891251, 0.891251, 0.0]
    """

    def __init__(
        self,
        total_steps: int,
        *,
        steps_per_check: int | None = None,
        decay: str | Callable = "cosine",
        state: dict | None = None,
        name: str | None = None,
        **options: Any,
    ):
        super().__init__()
        self.steps_per_check = None if steps_per_check is None else whole("steps_per_check", steps_per_check)
        self.options = {"decay": decay, **options}
        with warnings.catch_warnings():
            if steps_per_check is None:
                warnings.simplefilter("ignore")  # whether decisions are too rare is not known yet
            controller = AutoWUController(total_steps, self.steps_per_check or 1, **self.options)
        self.rates, self.name = controller.rates, name
        self.controller: Any = None  # an `AutoWUController` once it has begun
        self.pending: list[float] = []
        self.before_save: Callable[[], None] | None = None
        self._switch_step, self._peak = (
            _keras.scalar(float(value)) for value in (self.rates.limit, self.rates.limit_peak)
        )
        if state is not None:
            self.load_state(state)

    def __call__(self, step: Tensor) -> Tensor:
        """Learning rate after `step` updates, float32."""
        step = ops.cast(step, "float32")
        switch_step, peak = _keras.read(self._switch_step), _keras.read(self._peak)
        return ops.cast(self.rates.at(step, switch_step, peak, ops), "float32")

    def start(self, steps_per_epoch: int | None = None) -> AutoWUController:
        """The controller, made for `steps_per_epoch` where `steps_per_check` does not say how often to decide.

        Raises:
            ValueError: a training that began with decisions at other intervals.
        """
        interval = self.steps_per_check or self._interval(steps_per_epoch)
        if self.controller is None:
            self.controller = AutoWUController(self.rates.total_steps, interval, **self.options)
        elif self.controller.steps_per_epoch != interval:
            raise ValueError(
                f"The training began with a decision every {self.controller.steps_per_epoch} steps and would go on "
                f"with one every {interval}. Keep the batch size, or pass `steps_per_check` to the schedule. "
                f"Received: steps_per_check={self.steps_per_check}, {steps_per_epoch} steps in an epoch"
            )
        return self.controller

    def update(self, losses: Sequence[float], iterations: int) -> Decision:
        """Takes the losses between two decisions and decides.

        Args:
            losses: losses of the next updates, as many as the controller wants.
            iterations: updates that the optimizer has done by now, from which the decay runs if it begins.
        """
        warms_up = self.controller.phase == "warmup"
        decision = self.controller.update(losses)
        if warms_up and decision.phase == "decay" and self.controller.reason != "limit":
            self._set(iterations, self.controller.peak)
        return decision

    @property
    def seen(self) -> int:
        """Updates whose losses are known here."""
        return (self.controller.steps if self.controller else 0) + len(self.pending)

    def state(self) -> dict | None:
        """What is needed to go on from here, as JSON takes it; None before the first loss."""
        if self.before_save is not None:
            self.before_save()
        if not self.seen:
            return None
        return {
            "switch_step": float(_keras.read(self._switch_step)),
            "peak": float(_keras.read(self._peak)),
            "pending": list(self.pending),
            "controller": self.controller.state_dict(),
        }

    def load_state(self, state: dict | None) -> None:
        """Goes on where `state()` was taken.

        Raises:
            ValueError: a state of another version, or of a schedule with other arguments.
        """
        if state is None:
            return
        interval = state["controller"].get("settings", {}).get("steps_per_epoch", 1)
        controller = AutoWUController(self.rates.total_steps, self.steps_per_check or interval, **self.options)
        controller.load_state_dict(state["controller"])
        self.controller, self.pending = controller, list(state["pending"])
        self._set(state["switch_step"], state["peak"])

    def get_config(self) -> dict:
        decay = self.options["decay"]
        return {
            "total_steps": self.rates.total_steps,
            "steps_per_check": self.steps_per_check,
            **self.options,
            "decay": decay if isinstance(decay, str) else _keras.serialize_schedule(decay),
            "state": self.state(),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> Self:
        config = dict(config)
        if isinstance(config.get("decay"), dict):
            config["decay"] = _keras.deserialize_schedule(config["decay"], custom_objects=custom_objects)
        return cls(**config)

    def _interval(self, steps_per_epoch: int | None) -> int:
        if steps_per_epoch is None:
            raise ValueError(
                "`steps_per_check` is needed where the number of steps in an epoch is not known: pass it to "
                "`schedules.AutoWU`, or `steps_per_epoch` to `fit`. Received: steps_per_check=None"
            )
        if steps_per_epoch > 2:
            return steps_per_epoch
        return steps_per_epoch * max(1, self.rates.limit // 20 // steps_per_epoch)

    def _set(self, switch_step: float, peak: float) -> None:
        self._switch_step, self._peak = (
            _keras.assigned(variable, float(value))
            for variable, value in ((self._switch_step, switch_step), (self._peak, peak))
        )
