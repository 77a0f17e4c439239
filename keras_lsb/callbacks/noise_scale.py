"""The gradient noise scale during `fit`: logs, history, error bar and a verdict at the end."""

import math
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from keras_lsb import _keras
from keras_lsb._checks import fraction, whole
from keras_lsb._types import Axes, Model
from keras_lsb.callbacks.measurable import require_measurable
from keras_lsb.scaling import CriticalBatch, NoiseScaleEstimate
from keras_lsb.scaling.axes import axes_or_new


class NoiseScaleRecord(NamedTuple):
    """The estimate after `step` batches of `fit`, counted from the start of training."""

    step: int
    estimate: NoiseScaleEstimate


class NoiseScale(_keras.Callback):
    """Logs the gradient noise scale of a `training.Microbatched` model and ends with a verdict on the batch size.

    At the end of each epoch `logs` hold `noise_scale`, `grad_sq_norm` and `grad_trace`, the ends of the confidence
    interval as `noise_scale_low` and `noise_scale_high`, and `noise_scale/NAME` for each group. Put it before CSVLogger
    in the list of callbacks. All of them are averages over the last measurements (`decay`), in examples.

    Measure in a run with a tuned learning rate: the noise scale goes as batch size / learning rate, so that a rate ten
    times too small reads ten times too large.

    Args:
        interval: optimizer steps between measurements, which bounds their cost; None keeps the model's.
        decay: weight of the past in the averages, in measurements; None keeps the model's, 0.99 unless it was set.
        groups: dict of name to regular expression on the paths of weights, such as {"convolutions": "conv"}.
        confidence: probability that the interval holds the noise scale.
        history_interval: batches of `fit` between entries of `history`.
        verbose: 1 prints the verdict, 0 does not.

    Attributes:
        history: a list of `NoiseScaleRecord`.
        verdict: one paragraph, once training has ended.

    Raises:
        ValueError: an argument out of range; when training begins, a model that is not `Microbatched`, or a single
            replica with a single microbatch, which has nothing to compare.
    """

    def __init__(
        self,
        interval: int | None = None,
        *,
        decay: float | None = None,
        groups: dict[str, str] | None = None,
        confidence: float = 0.9,
        history_interval: int = 50,
        verbose: int = 1,
    ):
        super().__init__()
        self.interval, self.decay, self.groups = interval, decay, groups
        self.confidence = fraction("confidence", confidence)
        self.history_interval = whole("history_interval", history_interval)
        self.verbose = verbose
        self.history: list[NoiseScaleRecord] = []
        self.verdict: str | None = None
        self._step, self._warned = 0, False

    def set_model(self, model: Model) -> None:
        super().set_model(model)
        require_measurable(model, "NoiseScale")
        model.measure(decay=self.decay, interval=self.interval, groups=self.groups)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.model.measured_batch.assign(0.0)  # a step keeps the largest: the last batch of an epoch may be ragged

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._step += 1
        if self._step % self.history_interval == 0:
            self._record()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        estimate = self._record()
        if logs is not None:
            logs |= {
                "noise_scale": estimate.simple,
                "grad_sq_norm": estimate.grad_sq_norm,
                "grad_trace": estimate.trace,
                "noise_scale_low": estimate.low,
                "noise_scale_high": estimate.high,
            }
            for group in self.model.groups:
                logs[f"noise_scale/{group}"] = self.model.noise_scale_estimate(group, self.confidence).simple
        if estimate.simple == math.inf and not self._warned:
            self._warned = True
            warnings.warn(
                f"The noise scale is not resolved after {estimate.measurements} measurements: the average of |G|^2 is "
                f"{estimate.grad_sq_norm:.3g}. Average longer (decay closer to 1), or use a larger batch or smaller "
                "microbatches.",
                stacklevel=2,
            )

    def on_train_end(self, logs: dict | None = None) -> None:
        estimate = self.model.noise_scale_estimate(confidence=self.confidence)
        batch_size = float(_keras.read(self.model.measured_batch))
        self.verdict = verdict(estimate, batch_size, [record.estimate.simple for record in self.history])
        if self.verbose:
            sys.stdout.write(f"{self.verdict}\n")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the noise scale over the steps with its interval; returns the axes."""
        ax = axes_or_new(ax)
        steps = [record.step for record in self.history]
        ax.plot(steps, [record.estimate.simple for record in self.history], label="noise scale")
        low, high = ([getattr(record.estimate, end) for record in self.history] for end in ("low", "high"))
        ax.fill_between(steps, low, high, alpha=0.3, linewidth=0, label=f"{100 * self.confidence:g} % interval")
        ax.set(yscale="log", xlabel="batches", ylabel="noise scale, examples")
        ax.legend()
        return ax

    def _record(self) -> NoiseScaleEstimate:
        estimate = self.model.noise_scale_estimate(confidence=self.confidence)
        if not self.history or self.history[-1].step != self._step:
            self.history.append(NoiseScaleRecord(self._step, estimate))
        return estimate


def verdict(estimate: NoiseScaleEstimate, batch_size: float, history: Sequence[float] = ()) -> str:
    """One paragraph: the noise scale now, its range over the run, and what the batch size wastes or leaves unused."""
    if estimate.measurements == 0:
        return f"Noise scale: not measured, {estimate.skipped} measurements were skipped because they were not finite."
    text = f"Noise scale at the end: {estimate}, {estimate.measurements} measurements"
    text += f", {estimate.skipped} skipped." if estimate.skipped else "."
    seen = [value for value in history if math.isfinite(value)]
    if seen:
        text += f" Over the run: {min(seen):.3g} to {max(seen):.3g} examples."
    if not estimate.resolved:
        return (
            f"{text} It is not resolved at batch size {batch_size:g}: the data only say that it is above "
            f"{estimate.low:.3g} examples. Average longer, or use a larger batch or smaller microbatches."
        )
    if estimate.simple <= 0:
        return f"{text} The small gradients do not differ: a smaller batch would do."
    law = CriticalBatch(1.0, estimate.simple, estimate.simple)
    steps, examples = law.steps(batch_size), law.examples(batch_size) / law.min_examples
    text += (
        f" At batch size {batch_size:g} the model of McCandlish et al. predicts {steps:.3g} times the fewest steps and "
        f"{examples:.3g} times the fewest examples."
    )
    if batch_size < estimate.simple / 2:
        gain = law.speedup(batch_size, estimate.simple)
        return f"{text} A batch of {estimate.simple:.2g} would take {gain:.2g} times fewer steps."
    if batch_size > 2 * estimate.simple:
        share = 1 - law.examples(estimate.simple) / law.examples(batch_size)
        return f"{text} A batch of {estimate.simple:.2g} would save {100 * share:.0f} % of the examples."
    return f"{text} The batch is near the noise scale: steps and examples trade evenly."
