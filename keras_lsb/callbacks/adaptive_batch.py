"""A batch size that grows with the noise scale during `fit`."""

import math
import sys
from typing import Any

from keras_lsb import _keras, scaling
from keras_lsb._checks import choice, positive, whole
from keras_lsb._types import Model
from keras_lsb.callbacks.measurable import require_measurable
from keras_lsb.scaling.adaptive import FOLLOW


class AdaptiveBatch(_keras.Callback):
    """Keeps the batch near sqrt(exchange_rate * noise scale) by accumulating batches of `fit`; the rate follows.

    Each `interval` updates it reads the noise scale of a `training.Microbatched` model, and when that is resolved and
    asks for a larger batch, it raises the number of batches of `fit` that one update takes. The batch only grows. A
    change needs no retracing. At the end it prints gamma, and the saving that the noise scales of the run predict.

    Source: McCandlish et al., 2018, arXiv 1812.06162, appendix D and equation 2.6.

    Args:
        exchange_rate: examples that one optimizer step is worth. The `critical_batch` of a `scaling.CriticalBatch` for
            the whole run, min_examples / min_steps, costs steps and examples alike.
        batch_size: examples of one batch of `fit`, over all replicas.
        max_batch_size: largest batch of an update, in examples.
        interval: updates between decisions.
        follow: how the learning rate follows the batch: "sqrt", "linear", "noise" or "none", see
            `scaling.learning_rate_factor`.
        learning_rate: the rate at `batch_size`; None takes the model's at the first `fit` with this callback. Give it
            where a saved model goes on: its own rate has followed the batch already.
        verbose: 1 prints changes and the result, 0 does not.

    Attributes:
        batch_sizes: batch size of each update so far, in examples.
        noise_scales: noise scale read before each update, NaN before the first reading.
        gain: `scaling.AdaptiveGain` once training has ended, None where nothing was measured.

    Raises:
        ValueError: an argument out of range; when training begins, a model whose noise scale cannot be measured or
            that cannot accumulate, or one whose learning rate is a schedule, with a `follow` other than "none".
    """

    def __init__(
        self,
        exchange_rate: float,
        *,
        batch_size: int,
        max_batch_size: int,
        interval: int = 10,
        follow: str = "sqrt",
        learning_rate: float | None = None,
        verbose: int = 1,
    ):
        super().__init__()
        self.exchange_rate = positive("exchange_rate", exchange_rate)
        self.batch_size = whole("batch_size", batch_size)
        self.max_batch_size = whole("max_batch_size", max_batch_size, minimum=self.batch_size)
        self.interval = whole("interval", interval)
        self.follow = choice("follow", follow, FOLLOW)
        self.base_learning_rate: Any = None if learning_rate is None else positive("learning_rate", learning_rate)
        self.verbose = verbose
        self.batch_sizes: list[int] = []
        self.noise_scales: list[float] = []
        self.gain: scaling.AdaptiveGain | None = None
        self._noise_scale = math.nan

    def set_model(self, model: Model) -> None:
        super().set_model(model)
        require_measurable(model, "AdaptiveBatch")
        model.require_accumulation()
        if self.follow != "none" and _keras.has_schedule(model.optimizer):
            raise ValueError(
                "`follow` must be 'none' with a learning-rate schedule, whose value it cannot set. "
                f"Received: follow={self.follow!r}"
            )
        if self.base_learning_rate is None:
            self.base_learning_rate = _keras.learning_rate(model.optimizer)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._decide()  # a restored run continues with the batch size of its noise scale

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.model.pending_batches:
            return
        self.batch_sizes.append(self.model.accumulation * self.batch_size)
        self.noise_scales.append(self._noise_scale)
        if len(self.batch_sizes) % self.interval == 0:
            self._decide()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs["batch_size"] = self.model.accumulation * self.batch_size

    def on_train_end(self, logs: dict | None = None) -> None:
        known = [pair for pair in zip(self.noise_scales, self.batch_sizes, strict=True) if math.isfinite(pair[0])]
        if not known:
            return
        self.gain = scaling.adaptive_gain(*zip(*known, strict=True))
        if self.verbose:
            examples = sum(size for _, size in known)
            share = 1 - self.gain.steps_ratio(max(examples, 1.001 * self.gain.min_examples))
            sys.stdout.write(
                f"Adaptive batch: {self.batch_sizes[0]:g} to {self.batch_sizes[-1]:g} examples, {len(known)} updates, "
                f"{examples:g} examples in all. gamma {self.gain.gamma:.3f} predicts {100 * share:.1f} % fewer steps "
                "than with the best fixed batch.\n"
            )

    def _decide(self) -> None:
        estimate = self.model.noise_scale_estimate()
        if not estimate.resolved or estimate.simple <= 0:
            return
        self._noise_scale = estimate.simple
        target = min(scaling.adaptive_batch_size(estimate.simple, self.exchange_rate), self.max_batch_size)
        batches = max(self.model.accumulation, math.floor(target / self.batch_size))
        size = batches * self.batch_size
        if batches > self.model.accumulation:
            self.model.accumulate(batches)
            if self.verbose:
                sys.stdout.write(
                    f"Update {len(self.batch_sizes)}: noise scale {estimate.simple:.3g}, batch size {size}\n"
                )
        if self.follow != "none":
            factor = scaling.learning_rate_factor(size, self.batch_size, estimate.simple, self.follow)
            _keras.set_learning_rate(self.model.optimizer, factor * self.base_learning_rate)
