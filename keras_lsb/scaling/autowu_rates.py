"""The learning rates of AutoWU: an exponential or linear warm-up, and decays from wherever it ends.

Source: Kim, Kim, Kim, Lee, Kim, 2021, arXiv 2107.05855, and its authors' code, whose decays are one step ahead of
these: their last update has a rate of zero.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_lsb._checks import choice, decay_rate, fraction, positive, whole
from keras_lsb._types import Tensor

WARMUPS = ("exponential", "linear")
DECAYS = ("cosine", "constant-cosine", "half-cosine")


@dataclass(frozen=True)
class AutoWURates:
    """The learning rate at every step, once it is known where the warm-up ends.

    warm-up, exponential: r(t) = min_learning_rate * (max_learning_rate / min_learning_rate)^(t / W)
    warm-up, linear:      r(t) = min_learning_rate + (max_learning_rate - min_learning_rate) * t / W
    decay, from rate `peak` after S steps, T steps in all, with u = (t - S) / (T - S):
    cosine:               r(t) = peak / 2 * (1 + cos(pi * u))
    half-cosine:          r(t) = peak / 2 * (1 + cos(pi / 2 * (1 + u)))
    constant-cosine:      peak until (1 - cosine_fraction) * T steps are done, the cosine over the rest
    a function f:         r(t) = peak * f(u), such as a Keras schedule that is written for u from 0 to 1

    Args:
        total_steps: steps of the whole run, T.
        warmup_fraction: largest part of the run that may be warm-up, in [0, 1); W = int(warmup_fraction * T).
        min_learning_rate: rate of the first step, > 0.
        max_learning_rate: rate that step W would have.
        warmup: one of `WARMUPS`.
        decay: one of `DECAYS`, or a function of u.
        cosine_fraction: length of the final cosine of "constant-cosine" as a fraction of the run.

    Raises:
        ValueError: an argument out of range; the message names it and its value.
    """

    total_steps: int
    warmup_fraction: float = 0.5
    min_learning_rate: float = 1e-5
    max_learning_rate: float = 1.0
    warmup: str = "exponential"
    decay: str | Callable = "cosine"
    cosine_fraction: float = 0.2

    def __post_init__(self) -> None:
        checked = {
            "total_steps": whole("total_steps", self.total_steps),
            "warmup_fraction": decay_rate("warmup_fraction", self.warmup_fraction),
            "min_learning_rate": positive("min_learning_rate", self.min_learning_rate),
            "max_learning_rate": positive("max_learning_rate", self.max_learning_rate),
            "warmup": choice("warmup", self.warmup, WARMUPS),
            "decay": self.decay if callable(self.decay) else choice("decay", self.decay, DECAYS),
            "cosine_fraction": fraction("cosine_fraction", self.cosine_fraction),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.max_learning_rate <= self.min_learning_rate:
            raise ValueError(
                "`max_learning_rate` must exceed `min_learning_rate`. Received: "
                f"max_learning_rate={self.max_learning_rate}, min_learning_rate={self.min_learning_rate}"
            )
        if self.decay == "constant-cosine" and self.warmup_fraction + self.cosine_fraction > 1 + 1e-12:
            raise ValueError(
                "`warmup_fraction` + `cosine_fraction` must be at most 1: the final cosine would begin during the "
                f"warm-up. Received: {self.warmup_fraction} + {self.cosine_fraction}"
            )

    @property
    def limit(self) -> int:
        """W, the step at which the warm-up ends in any case."""
        return int(self.warmup_fraction * self.total_steps)

    @property
    def limit_peak(self) -> float:
        """The rate from which the decay starts where the warm-up runs into its limit."""
        return self.during_warmup(self.limit - 1) if self.limit else self.max_learning_rate

    def between(self, x: float, highest: float) -> Tensor:
        """The rate at a fraction `x` of a warm-up that has reached `highest`."""
        if self.warmup == "linear":
            return self.min_learning_rate + (highest - self.min_learning_rate) * x
        return self.min_learning_rate * (highest / self.min_learning_rate) ** x

    def during_warmup(self, step: Tensor) -> Tensor:
        """The rate of a step of the warm-up; a number or an array."""
        return self.between(step / max(self.limit, 1), self.max_learning_rate)

    def reached(self, rate: float) -> float:
        """Steps of the warm-up after which it has reached `rate`, a real number."""
        low, high = self.min_learning_rate, self.max_learning_rate
        if self.warmup == "linear":
            return self.limit * (rate - low) / (high - low)
        return self.limit * math.log(rate / low) / math.log(high / low)

    def linear_steps(self, rate: float) -> float:
        """Length in steps of a linear ramp from 0 to `rate` that has the same sum of rates as this warm-up up to it."""
        start = self.min_learning_rate / rate
        if start == 1:
            return 0.0
        mean = (1 + start) / 2 if self.warmup == "linear" else (start - 1) / math.log(start)
        return 2 * mean * self.reached(rate)

    def at(self, step: Tensor, switch_step: Tensor, peak: Tensor, xp: Any = np) -> Tensor:
        """The rate of a step: that of the warm-up up to `switch_step`, of the decay from `peak` after that.

        Numbers or arrays of the library `xp`, which has NumPy's names.
        """
        warmup = self.during_warmup(xp.minimum(step, switch_step))
        return xp.where(step < switch_step, warmup, self.during_decay(step, switch_step, peak, xp))

    def during_decay(self, step: Tensor, switch_step: Tensor, peak: Tensor, xp: Any = np) -> Tensor:
        """The rate of a step after the warm-up, which ended at `switch_step` with `peak` to decay from.

        Numbers or arrays of the library `xp`, which has NumPy's names.
        """
        start = switch_step
        if self.decay == "constant-cosine":
            start = xp.maximum(switch_step, (1 - self.cosine_fraction) * self.total_steps)
        progress = xp.clip((step - start) / (self.total_steps - start), 0.0, 1.0)
        if callable(self.decay):
            return peak * self.decay(progress)
        if self.decay == "half-cosine":
            progress = 0.5 + 0.5 * progress
        return 0.5 * peak * (1.0 + xp.cos(math.pi * progress))
