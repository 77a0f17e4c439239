"""The gradient noise scale: estimators from two batch sizes, their averages, and the error bar of their ratio.

Source: McCandlish, Kaplan, Amodei, OpenAI Dota Team, "An Empirical Model of Large-Batch Training", 2018,
arXiv 1812.06162, equations 2.8 to 2.10 and appendix A.1. The interval of a ratio of means is Fieller's, 1954.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import fraction, positive
from keras_lsb._keras import ops
from keras_lsb._types import Tensor


class NoiseScale(NamedTuple):
    """Squared norm of the true gradient, trace of one example's gradient covariance, and trace / grad_sq_norm.

    `simple` is in examples: inf where `grad_sq_norm` is not positive, NaN where both parts are zero.
    """

    grad_sq_norm: float
    trace: float
    simple: float


def noise_scale(small_sq_norm: ArrayLike, big_sq_norm: ArrayLike, small_batch: float, big_batch: float) -> NoiseScale:
    """Estimates the gradient noise scale from squared gradient norms at two batch sizes.

        grad_sq_norm = (B * big_sq_norm - b * small_sq_norm) / (B - b),    b = small_batch, B = big_batch
        trace        = (small_sq_norm - big_sq_norm) / (1 / b - 1 / B)
        simple       = trace / grad_sq_norm

    The first two are unbiased, their ratio is not: to use many measurements, average each of the two and divide the
    averages. One measurement of `grad_sq_norm` may be negative; it is reported as it is.

    Args:
        small_sq_norm: squared norm of the gradient of the mean loss over `small_batch` examples, averaged over the
            small gradients whose mean is the big one. A number, or an array of one per measurement.
        big_sq_norm: squared norm of the gradient of the mean loss over `big_batch` examples, of the same shape.
        small_batch: examples behind each small gradient; if they differ, their harmonic mean.
        big_batch: examples behind the big gradient.

    Returns:
        `NoiseScale(grad_sq_norm, trace, simple)`, floats or arrays of the shape of the norms.

    Raises:
        ValueError: batch sizes that are not positive, are equal, or in the wrong order; a negative norm.

    Examples:
        >>> noise_scale(23 / 3, 5.0, small_batch=4, big_batch=12)
        NoiseScale(grad_sq_norm=3.6666666666666665, trace=16.0, simple=4.363636363636364)
        >>> noise_scale(1.0, 0.0, small_batch=4, big_batch=8)
        NoiseScale(grad_sq_norm=-1.0, trace=8.0, simple=inf)
    """
    small_batch, big_batch = positive("small_batch", small_batch), positive("big_batch", big_batch)
    if small_batch == big_batch:
        raise ValueError(
            "`small_batch` and `big_batch` must differ: one replica with one microbatch has a single gradient, whose "
            "norm holds signal and noise together. Split the batch into microbatches, or train on several replicas. "
            f"Received: small_batch={small_batch:g}, big_batch={big_batch:g}"
        )
    if small_batch > big_batch:
        raise ValueError(
            "`small_batch` must be less than `big_batch`. "
            f"Received: small_batch={small_batch:g}, big_batch={big_batch:g}"
        )
    small, big = np.asarray(small_sq_norm, "float64"), np.asarray(big_sq_norm, "float64")
    for name, norm in (("small_sq_norm", small), ("big_sq_norm", big)):
        if np.any(norm < 0):
            raise ValueError(f"`{name}` must be >= 0: it is a squared norm. Received: {name}={norm}")
    grad_sq_norm, trace = signal_and_noise(small, big, small_batch, big_batch)
    simple = noise_to_signal(np.asarray(trace), np.asarray(grad_sq_norm))
    parts: list[Any] = [np.asarray(value) for value in (grad_sq_norm, trace, simple)]
    return NoiseScale(*(part.item() if part.ndim == 0 else part for part in parts))


def signal_and_noise(small: Tensor, big: Tensor, small_batch: Tensor, big_batch: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of a quadratic form of the gradient that has mean `signal + noise / batch size`: `(signal, noise)`.

    With squared norms the parts are |G|^2 and tr(Sigma); with g'Hg they are G'HG and tr(H Sigma). Numbers, arrays or
    tensors; the batch sizes must differ.
    """
    signal = (big_batch * big - small_batch * small) / (big_batch - small_batch)
    return signal, (small - big) / (1 / small_batch - 1 / big_batch)


def noise_to_signal(noise: Tensor, signal: Tensor, where: Callable = np.where) -> Tensor:
    """noise / signal: inf where the signal is not positive, NaN where both are zero or one is NaN.

    Arrays of NumPy, or tensors with `where=ops.where`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = noise / signal  # NaN for 0 / 0 and for NaN
        measured = (noise == noise) & ((noise != 0) | (signal != 0))
        return where((signal <= 0) & measured, math.inf, ratio)


# Columns of the running averages. Scatters are weighted sums of products of deviations from the averages.
COLUMNS = (
    "weight",
    "squared_weight",
    "grad_sq_norm",
    "trace",
    "grad_sq_norm_scatter",
    "cross_scatter",
    "trace_scatter",
    "measurements",
    "skipped",
)


def update_averages(
    averages: Tensor, grad_sq_norm: Tensor, trace: Tensor, decay: float | Tensor, weight: float | Tensor = 1.0
) -> Tensor:
    """Adds a measurement to exponential averages of `grad_sq_norm` and `trace`, and to the scatter about them.

    A measurement weighs `decay` times less with each later one, and averages are divided by the sum of the weights, so
    that they are not biased towards their start. A measurement that is not finite is only counted. Where batches
    differ, their sizes are good weights: a ragged last batch is noisier, and averages stay unbiased with any weights.

    Args:
        averages: shape (..., 9), float32; zeros at the start, columns as in `COLUMNS`.
        grad_sq_norm: the measurements, shape (...).
        trace: the measurements, shape (...).
        decay: weight of the past; 1 gives the plain averages.
        weight: weight of this measurement, > 0, in any unit.

    Returns:
        The averages after the measurement, of the same shape.
    """
    total, squared, mean_signal, mean_noise, signal_signal, cross, noise_noise, count, skipped = (
        averages[..., column] for column in range(len(COLUMNS))
    )
    finite = ops.logical_and(ops.isfinite(grad_sq_norm), ops.isfinite(trace))
    old_total = decay * total
    new_total = old_total + weight
    signal_step = (grad_sq_norm - mean_signal) * weight / new_total
    noise_step = (trace - mean_noise) * weight / new_total
    share = old_total * new_total / weight  # weight * old / new * deviations, in terms of the steps of the averages
    measured = [
        new_total,
        decay * decay * squared + weight * weight,
        mean_signal + signal_step,
        mean_noise + noise_step,
        decay * signal_signal + share * signal_step * signal_step,
        decay * cross + share * signal_step * noise_step,
        decay * noise_noise + share * noise_step * noise_step,
        count + 1,
        skipped,
    ]
    kept = [averages[..., column] for column in range(len(COLUMNS) - 1)] + [skipped + 1]
    return ops.stack([ops.where(finite, new, old) for new, old in zip(measured, kept, strict=True)], axis=-1)


class NoiseScaleEstimate(NamedTuple):
    """A noise scale from averages, with its confidence interval.

    Attributes:
        simple: average trace / average grad_sq_norm, in examples; NaN before the first measurement, inf where the
            average `grad_sq_norm` is not positive.
        low: lower end of the interval, in examples.
        high: upper end, in examples; inf where the data do not bound the noise scale from above.
        grad_sq_norm: average of |G|^2.
        trace: average of tr(Sigma).
        measurements: measurements so far.
        skipped: measurements left out because they were not finite, or had a single small gradient.
    """

    simple: float
    low: float
    high: float
    grad_sq_norm: float
    trace: float
    measurements: int
    skipped: int

    @property
    def resolved(self) -> bool:
        """Whether the measurements bound the noise scale on both sides."""
        return math.isfinite(self.simple) and math.isfinite(self.high)

    def __str__(self) -> str:
        if self.measurements == 0:
            return "not measured yet"
        return f"{self.simple:.4g} examples [{self.low:.4g}, {self.high:.4g}]"


def estimate(averages: ArrayLike, confidence: float = 0.9) -> NoiseScaleEstimate:
    """The noise scale of one row of averages.

    The interval holds the ratios r for which the average of trace - r * grad_sq_norm is compatible with zero by
    Student's test (Fieller). Where the average of `grad_sq_norm` is itself compatible with zero it has no upper end. It
    takes the measurements as independent; while the weights move, their drift widens it.

    Args:
        averages: shape (9,), as `update_averages` returns it.
        confidence: probability that the interval holds the noise scale, between 0 and 1.
    """
    confidence = fraction("confidence", confidence)
    row = dict(zip(COLUMNS, np.asarray(averages, "float64").tolist(), strict=True))
    counts = int(row["measurements"]), int(row["skipped"])
    if counts[0] == 0:
        return NoiseScaleEstimate(math.nan, math.nan, math.nan, math.nan, math.nan, *counts)
    signal, noise = row["grad_sq_norm"], row["trace"]
    simple = noise_to_signal(np.float64(noise), np.float64(signal)).item()
    return NoiseScaleEstimate(simple, *_interval(row, signal, noise, confidence), signal, noise, *counts)


def _interval(row: dict, signal: float, noise: float, confidence: float) -> tuple[float, float]:
    """Fieller's interval of noise / signal, cut at zero."""
    from scipy import special  # here: `import keras_lsb` is to be cheap

    weight, squared = row["weight"], row["squared_weight"]
    effective = weight**2 / squared  # as many equally weighted measurements have averages as noisy
    if effective < 1.5:
        return 0.0, math.inf
    # scatter / (weight - squared / weight) estimates a covariance without bias, the average has 1 / effective of it.
    quantile = float(special.stdtrit(effective - 1, (1 + confidence) / 2))  # of Student's distribution
    factor = quantile**2 / (weight - squared / weight) / effective
    a = signal**2 - factor * row["grad_sq_norm_scatter"]
    b = signal * noise - factor * row["cross_scatter"]
    c = noise**2 - factor * row["trace_scatter"]
    if noise == 0 and signal == 0:
        return math.nan, math.nan
    root = math.sqrt(max(0.0, b * b - a * c))
    if a > 0 and signal > 0:
        return max(0.0, (b - root) / a), max(0.0, (b + root) / a)
    if a < 0 < c:  # the ratios beyond the positive root of a r^2 - 2 b r + c
        return c / (b + root), math.inf
    return 0.0, math.inf
