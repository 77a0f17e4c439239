"""AutoWU during `fit`: feeds the losses of the steps to the schedule, reports its decisions and draws them."""

import math
import sys
import warnings
from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._checks import choice
from keras_lsb._types import Axes, Model
from keras_lsb.distribute.reduction import is_multi_worker
from keras_lsb.scaling import AutoWUSetback, Decision
from keras_lsb.schedules.autowu import AutoWU as Schedule
from keras_lsb.training.step_losses import StepLosses

ON_DIVERGENCE = ("continue", "stop", "restore")
_STATE = "autowu_state"
_LONGEST_EXECUTION = 512  # steps; Keras may tune them while it trains, and losses of so many more fit in the recorder


class AutoWU(_keras.Callback):
    """Feeds the training losses to a `schedules.AutoWU` and ends its warm-up when the loss has stopped falling.

    Losses are recorded on the device, one per update, and read once per decision. At the end of each epoch `logs` hold
    `autowu_probability` of the last decision (NaN when none was made), `autowu_phase` (0 warm-up, 1 decay) and
    `learning_rate` of the next update, which CSVLogger and TensorBoard show when they come later in the list.

    The state of the decisions is saved with the optimizer: in `.keras` files, weights files, TensorFlow's checkpoints
    and by BackupAndRestore, so that a run that was interrupted goes on as if it had not been.

    Args:
        schedule: the learning rate of the optimizer; None takes it from there, as after loading a model.
        on_divergence: what happens when the weights are probably spoiled: when all losses between two decisions are NaN
            or infinite, or when a tenth into the decay they are back near those of the start. There is a warning in
            any case. "continue": nothing else; the schedule's guard ends the warm-up. "stop": training ends at once.
            "restore": weights and optimizer state go back to those, at a decision, after which the loss was lowest up
            to the next; in the warm-up not before its end. Copies of two decisions are kept in host memory.
        verbose: 1 prints each decision, 0 prints nothing.

    Attributes:
        losses: the loss of each update since this callback began, a float32 array.

    Raises:
        ValueError: an argument out of range; when training begins, a schedule that is not the optimizer's, or a number
            of updates that does not match the state that was loaded.
    """

    def __init__(self, schedule: Schedule | None = None, *, on_divergence: str = "continue", verbose: int = 1):
        super().__init__()
        if schedule is not None and not isinstance(schedule, Schedule):
            raise ValueError(f"`schedule` must be a `schedules.AutoWU`. Received: schedule={schedule!r}")
        self.schedule: Any = schedule
        self.on_divergence = choice("on_divergence", on_divergence, ON_DIVERGENCE)
        self.verbose = verbose
        self.losses = np.empty(0, "float32")
        self._recorder: StepLosses | None = None
        self._unread = 0
        self._epoch, self._checked, self._warned = 0, False, False
        self._kept: list | None = None  # the training state from which the loss was lowest up to the next decision
        self._kept_loss = math.inf
        self._newest: list | None = None  # that after `_newest_step` of `losses`: what comes of it is not known yet
        self._newest_step = 0

    def set_model(self, model: Model) -> None:
        super().set_model(model)
        rate = _keras.innermost(model.optimizer)._learning_rate
        if self.schedule is None and isinstance(rate, Schedule):
            self.schedule = rate
        if self.schedule is None or rate is not self.schedule:
            raise ValueError(
                "`callbacks.AutoWU` needs the schedule that is the learning rate of the optimizer: "
                "`schedule = schedules.AutoWU(...)`, `optimizer=LAMB(schedule)`, `callbacks=[AutoWU(schedule)]`. "
                f"Received: schedule={self.schedule!r}, while the optimizer has {rate!r}"
            )
        # Now, and not when the training begins: that is when BackupAndRestore loads.
        setattr(model.optimizer, _STATE, _keras.HostState(self._save, self._load))

    def on_train_begin(self, logs: dict | None = None) -> None:
        controller = self.schedule.start(self._steps_per_epoch())
        most_in_execution = max(_LONGEST_EXECUTION, _keras.steps_per_execution(self.model))
        self._recorder = StepLosses.on(self.model, controller.steps_per_epoch + most_in_execution)
        self._unread, self._checked = 0, False
        self._newest, self._newest_step = None, len(self.losses)
        _keras.watch_executions(self.model, self._after_execution)
        if self.verbose and controller.phase == "warmup":
            sys.stdout.write(
                f"AutoWU: warms up for at most {controller.rates.limit} steps and decides every "
                f"{controller.steps_per_epoch}; while {controller.patience} votes are taken the rate grows "
                f"{controller.growth:.3g} times.\n"
            )
        if not is_multi_worker(self.model):  # where all workers have to read together
            self.schedule.before_save = self._read

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        if not self._checked:
            self._checked = True
            self._check_updates()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._read()  # for what several workers save now, when they cannot read together
        if logs is None:
            return
        controller = self.schedule.controller
        last = [test.probability for test in controller.tests[-1:] if test.step == controller.steps]
        logs["autowu_probability"] = last[0] if last else math.nan
        logs["autowu_phase"] = float(controller.phase == "decay")
        logs["learning_rate"] = float(self.schedule(_keras.updates_done(self.model.optimizer)))

    def on_train_end(self, logs: dict | None = None) -> None:
        self._read()
        _keras.stop_watching_executions(self.model)
        self._recorder = self.schedule.before_save = None

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws losses with the fitted curve and its 95 % band, votes, and learning rates; returns the three axes."""
        controller = self.schedule.controller
        known = np.full(max(0, self.schedule.seen - len(self.losses)), np.nan)  # from before an interruption
        warmup = controller.losses[: len(known)]
        known[: len(warmup)] = warmup
        return controller.plot(axes, np.concatenate([known, self.losses]))

    def recipe(self) -> tuple[float, float]:
        """`(learning_rate, warmup_epochs)` of this run for `schedules.LEGW`, which brings them to other batch sizes.

        LEGW's warm-up is linear: it is as long as a linear ramp with the same sum of rates as this run's warm-up up to
        the rate of the decay.

        Raises:
            ValueError: the decay has not begun.
        """
        controller = self.schedule.controller
        if controller is None or controller.peak is None:
            raise ValueError("AutoWU has found no learning rate yet: its decay has not begun. Train on, then call it.")
        return controller.peak, controller.rates.linear_steps(controller.peak) / self._steps_per_epoch()

    def _steps_per_epoch(self) -> int | None:
        """Updates in an epoch, where it is known."""
        batches = self.params.get("steps")
        return batches and max(1, batches // getattr(self.model, "accumulation", 1))

    def _check_updates(self) -> None:
        done, seen = _keras.updates_done(self.model.optimizer), self.schedule.seen
        if done < seen or (done > seen and self.schedule.controller.phase == "warmup"):
            raise ValueError(
                f"The optimizer has done {done} updates, while AutoWU has seen {seen}: one of them comes from a file "
                "without the state of the other, or the model was trained without the callback. Load a checkpoint "
                "that was written with `callbacks.AutoWU` in `fit`, or begin with a new optimizer and schedule."
            )

    def _after_execution(self) -> None:
        """Decides when there may be losses enough: the last execution of an epoch may have had fewer steps."""
        self._unread += _keras.steps_per_execution(self.model)
        if self._unread + len(self.schedule.pending) >= self.schedule.controller.steps_per_epoch:
            self._decide()

    def _read(self) -> None:
        """Fetches the losses that are new on the device."""
        if self._recorder is None:
            return
        losses = self._recorder.read()
        self.losses = np.concatenate([self.losses, losses])
        self.schedule.pending += losses.tolist()
        self._unread = 0

    def _decide(self) -> None:
        self._read()
        if self.on_divergence == "restore":
            self._keep()
        size = self.schedule.controller.steps_per_epoch
        while len(self.schedule.pending) >= size:
            losses, self.schedule.pending = self.schedule.pending[:size], self.schedule.pending[size:]
            warms_up = self.schedule.controller.phase == "warmup"
            decision = self.schedule.update(losses, _keras.updates_done(self.model.optimizer))
            if warms_up:
                self._report(decision)
                if decision.phase == "decay":
                    self._read_constants_anew()
            if not np.isfinite(losses).any():
                self._warn_of_losses(len(losses))
                self._act_on_divergence(decision)
            setback = self.schedule.controller.setback(losses)
            if setback is not None:
                self._warn_of_setback(setback)
                self._act_on_divergence(decision)

    def _report(self, decision: Decision) -> None:
        if not self.verbose:
            return
        controller = self.schedule.controller
        text = f"AutoWU, epoch {self._epoch + 1}, step {controller.steps}:"
        if not math.isnan(decision.probability):
            test = controller.tests[-1]
            text += f" p = {test.probability:.2f}, {controller.votes} of {controller.patience} votes, "
            text += f"rate would be {test.learning_rate:.2g}."
        if decision.phase == "decay":
            text += f" Decay begins from {controller.peak:.3g} ({controller.reason})."
        if controller.non_finite:
            text += f" {controller.non_finite} losses were not finite."
        sys.stdout.write(f"{text}\n")

    def _keep(self) -> None:
        """Copies the training state; the copy before is kept if the losses that it led to are the lowest yet."""
        losses = self.losses[self._newest_step :]
        finite = np.isfinite(losses).all()
        loss = float(losses.mean(dtype="float64")) if finite else math.inf
        if self._newest is not None and (self._kept is None or loss < self._kept_loss):
            self._kept, self._kept_loss = self._newest, loss
        self._newest = _keras.host_values(_keras.training_state(self.model)) if finite else None
        self._newest_step = len(self.losses)

    def _warn_of_losses(self, count: int) -> None:
        """Once: the last `count` losses have all ceased to be finite."""
        if self._warned:
            return
        self._warned = True
        controller = self.schedule.controller
        rate = controller.learning_rate(controller.steps - 1)
        warnings.warn(
            f"AutoWU, epoch {self._epoch + 1}: all {count} losses up to step {controller.steps} are NaN or infinite, "
            f"at a learning rate of {rate:.3g}. The weights are probably spoiled.",
            stacklevel=2,
        )

    def _warn_of_setback(self, setback: AutoWUSetback) -> None:
        controller = self.schedule.controller
        if self.on_divergence == "restore":
            way_on = "Weights and optimizer state go back to those of the lowest loss."
        else:
            way_on = (
                f"The rate that it found, {controller.peak:.3g}, may be good all the same: train anew with "
                '`on_divergence="restore"`, or in a fixed schedule with this rate and the warm-up of `recipe()`.'
            )
        warnings.warn(
            f"AutoWU, epoch {self._epoch + 1}, step {controller.steps}: a tenth into the decay the loss is "
            f"{setback.loss:.3g}. The warm-up began at {setback.first:.3g} and had reached {setback.lowest:.3g}: its "
            f"last rates have probably spoiled the weights. {way_on}",
            stacklevel=2,
        )

    def _act_on_divergence(self, decision: Decision) -> None:
        if self.on_divergence == "stop":
            self.model.stop_training = True
        elif self.on_divergence == "restore" and decision.phase == "decay":
            if self._kept is None:
                warnings.warn("AutoWU has nothing to restore: no decision had finite losses only.", stacklevel=2)
                return
            for variable, value in zip(_keras.training_state(self.model), self._kept, strict=True):
                variable.assign(value)
            self._newest, self._newest_step = self._kept, len(self.losses)

    def _save(self) -> dict | None:
        if is_multi_worker(self.model):
            self._read()
        return self.schedule.state()

    def _load(self, state: dict | None) -> None:
        if self._recorder is not None:
            self._recorder.read()  # losses of the weights that are replaced
            self._unread = 0
        self._newest, self._newest_step = None, len(self.losses)
        self.schedule.load_state(state)
        self._read_constants_anew()

    def _read_constants_anew(self) -> None:
        _keras.read_constants_anew(self.model)
        if self._recorder is not None:  # `fit` runs
            _keras.watch_executions(self.model, self._after_execution)
