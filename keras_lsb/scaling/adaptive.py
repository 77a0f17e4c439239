"""A batch size that follows the noise scale: its size, the learning rate with it, and what it saves.

Source: McCandlish, Kaplan, Amodei, OpenAI Dota Team, 2018, arXiv 1812.06162, equation 2.6 and appendix D.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_lsb._checks import choice, non_negative, positive

FOLLOW = ("noise", "linear", "sqrt", "none")


def adaptive_batch_size(noise_scale: float, exchange_rate: float) -> float:
    """sqrt(exchange_rate * noise_scale): where `exchange_rate` more examples are worth one step less.

    Args:
        noise_scale: the noise scale now, in examples.
        exchange_rate: examples that one optimizer step is worth; min_examples / min_steps of a `CriticalBatch` is the
            natural one, at which both cost the same multiple of their minimum.
    """
    return math.sqrt(positive("exchange_rate", exchange_rate) * non_negative("noise_scale", noise_scale))


def learning_rate_factor(batch_size: float, base_batch_size: float, noise_scale: float, follow: str = "noise") -> float:
    """What the learning rate of one batch size is multiplied with at another.

    Args:
        batch_size: batch of the update, in examples.
        base_batch_size: batch that the learning rate belongs to, in examples.
        noise_scale: N, in examples; only "noise" reads it.
        follow: "noise" for (1 + N / base_batch_size) / (1 + N / batch_size), from the best step under noise N (equation
            2.6): linear far below the noise scale, constant far above. "linear" for the ratio of the batch sizes,
            "sqrt" for its root, "none" for 1.

    Raises:
        ValueError: batch sizes that are not positive, a negative noise scale, an unknown `follow`.
    """
    ratio = positive("batch_size", batch_size) / positive("base_batch_size", base_batch_size)
    match choice("follow", follow, FOLLOW):
        case "noise":
            noise = non_negative("noise_scale", noise_scale)
            return (1 + noise / base_batch_size) / (1 + noise / batch_size)
        case "linear":
            return ratio
        case "sqrt":
            return math.sqrt(ratio)
    return 1.0


class AdaptiveGain(NamedTuple):
    """What an adaptive batch can save against a fixed one: gamma, and the limits that both share.

    At the same number of examples E a fixed batch takes (S / min_steps - 1) * (E / min_examples - 1) = 1, an adaptive
    one gamma, which is at most 1.
    """

    gamma: float
    min_steps: float
    min_examples: float

    def steps_ratio(self, examples: float) -> float:
        """Steps of the best adaptive batch / steps of a fixed one, both within `examples`, more than `min_examples`."""
        excess = positive("examples", examples) / self.min_examples - 1
        if excess <= 0:
            raise ValueError(f"`examples` must exceed {self.min_examples:g}. Received: examples={examples!r}")
        return (1 + self.gamma / excess) / (1 + 1 / excess)


def adaptive_gain(noise_scales: Sequence[float], batch_sizes: Sequence[float]) -> AdaptiveGain:
    """The gain that the noise scales over a run predict.

    A step at batch B under noise N makes 1 / (1 + N / B) of the progress of a step without noise. With ds that
    progress, min_steps = sum ds, min_examples = sum N ds and gamma = (sum sqrt(N) ds)^2 / (min_steps * min_examples).

    Args:
        noise_scales: noise scale at each step of a run, in examples.
        batch_sizes: batch size of each step, in examples.

    Raises:
        ValueError: different lengths, no steps, or entries that are not finite and > 0.
    """
    noise, sizes = np.asarray(noise_scales, "float64"), np.asarray(batch_sizes, "float64")
    if noise.shape != sizes.shape or noise.ndim != 1 or noise.size == 0:
        raise ValueError(
            "`noise_scales` and `batch_sizes` must be lists of the same length, one entry per step. "
            f"Received: shapes {noise.shape} and {sizes.shape}"
        )
    for name, values in (("noise_scales", noise), ("batch_sizes", sizes)):
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ValueError(f"`{name}` must hold finite numbers > 0. Received: {name}={values}")
    progress = 1 / (1 + noise / sizes)
    steps, examples = float(progress.sum()), float((noise * progress).sum())
    return AdaptiveGain(float((np.sqrt(noise) * progress).sum()) ** 2 / (steps * examples), steps, examples)
