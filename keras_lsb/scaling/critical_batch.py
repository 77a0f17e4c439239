"""The critical batch size: what every batch size costs in steps and in examples, fitted to runs at several of them.

Source: McCandlish, Kaplan, Amodei, OpenAI Dota Team, "An Empirical Model of Large-Batch Training", 2018,
arXiv 1812.06162, equations 2.11 and 2.12, appendix A.3.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import positive
from keras_lsb._types import Axes
from keras_lsb.scaling.axes import axes_or_new

_BOUND = math.log(1e6)  # how far outside the measured batch sizes the critical one is looked for
_UNCERTAIN = 0.5  # relative standard error from which the fit warns


@dataclass(frozen=True)
class CriticalBatch:
    """Steps and examples to one goal as a function of the batch size, and the batch size where the two trade evenly.

        steps(B)    = min_steps * (1 + critical_batch / B)
        examples(B) = min_examples * (1 + B / critical_batch) = B * steps(B)

    At the critical batch size both cost twice their minimum. Made by `fit`, or from known values.

    Attributes:
        min_steps: optimizer steps to the goal as the batch grows without bound.
        min_examples: examples to the goal as the batch shrinks to nothing.
        critical_batch: min_examples / min_steps, in examples.
        stderr: standard error of `critical_batch`; NaN where the fit has as many unknowns as data, inf at a bound.
        log_residual: root mean square of log(measured steps / fitted steps), natural logarithm.
        batch_sizes: batch sizes of the fit, in examples.
        measured_steps: steps of the fit.
    """

    min_steps: float
    min_examples: float
    critical_batch: float
    stderr: float = math.nan
    log_residual: float = math.nan
    batch_sizes: tuple[float, ...] = field(default=(), repr=False)
    measured_steps: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def fit(cls, batch_sizes: Sequence[float], steps: Sequence[float]) -> Self:
        """Least squares of log steps on log(min_steps) + log(1 + critical_batch / batch size).

        The covariance of the two logarithms is inv(J'J) * SSR / (n - 2). A critical batch size far outside the
        measured ones, or steps that do not fall as the batch grows, leave it unresolved: a warning says so.

        Args:
            batch_sizes: at least two different batch sizes, in examples; repeated ones are runs of their own.
            steps: optimizer steps that the fastest run at each batch size took to the same goal.

        Raises:
            ValueError: fewer than two different batch sizes, different lengths, entries that are not finite and > 0.

        Examples:
            >>> sizes = [32, 128, 512, 2048]
            >>> law = CriticalBatch.fit(sizes, [1000 * (1 + 500 / size) for size in sizes])
            >>> round(law.critical_batch), round(law.min_steps), round(law.speedup(125, 2000), 6)
            (500, 1000, 4.0)
        """
        sizes, counts = _column("batch_sizes", batch_sizes), _column("steps", steps)
        if len(sizes) != len(counts):
            raise ValueError(
                "`batch_sizes` and `steps` must have the same length. "
                f"Received: {len(sizes)} batch sizes and {len(counts)} steps"
            )
        if len(np.unique(sizes)) < 2:
            raise ValueError(
                "`batch_sizes` must hold at least two different sizes: one says nothing about the trade. "
                f"Received: batch_sizes={batch_sizes!r}"
            )
        log_critical, at_bound = _fit_log_critical_batch(sizes, counts)
        residuals, log_min_steps = _residuals(log_critical, sizes, counts)
        critical, min_steps = math.exp(log_critical), math.exp(log_min_steps)
        error = math.inf if at_bound else critical * _log_stderr(critical, sizes, residuals)
        _warn_if_unresolved(critical, error, at_bound)
        return cls(
            min_steps=min_steps,
            min_examples=critical * min_steps,
            critical_batch=critical,
            stderr=error,
            log_residual=math.sqrt(float(np.mean(residuals**2))),
            batch_sizes=tuple(sizes.tolist()),
            measured_steps=tuple(counts.tolist()),
        )

    def steps(self, batch_size: ArrayLike) -> Any:
        """Optimizer steps to the goal at `batch_size` examples, a number or an array."""
        return self.min_steps * (1 + self.critical_batch / _size("batch_size", batch_size))

    def examples(self, batch_size: ArrayLike) -> Any:
        """Examples to the goal at `batch_size` examples, a number or an array."""
        return self.min_examples * (1 + _size("batch_size", batch_size) / self.critical_batch)

    def speedup(self, from_batch: ArrayLike, to_batch: ArrayLike) -> Any:
        """How many times fewer steps `to_batch` takes than `from_batch`, both in examples."""
        return self.steps(_size("from_batch", from_batch)) / self.steps(_size("to_batch", to_batch))

    def plot(self, ax: Axes | None = None, label: str | None = None) -> Axes:
        """Draws steps against examples: the fitted hyperbola, the runs, and the critical batch size.

        Args:
            ax: matplotlib axes; new ones if None.
            label: name of the goal in the legend.

        Returns:
            The axes.
        """
        ax = axes_or_new(ax)
        sizes = np.array(self.batch_sizes or (self.critical_batch / 32, self.critical_batch * 32))
        curve = np.geomspace(min(sizes.min(), self.critical_batch) / 2, 2 * max(sizes.max(), self.critical_batch), 200)
        name = f"B_crit {self.critical_batch:.3g}" + (f" ± {self.stderr:.2g}" if math.isfinite(self.stderr) else "")
        (line,) = ax.plot(
            self.examples(curve), self.steps(curve), label=name if label is None else f"{label}: {name}", linewidth=1
        )
        if self.batch_sizes:
            runs = np.array(self.measured_steps)
            ax.plot(sizes * runs, runs, "o", markersize=4, color=line.get_color())
        ax.plot(2 * self.min_examples, 2 * self.min_steps, "*", markersize=11, color=line.get_color())
        ax.set(xscale="log", yscale="log", xlabel="examples processed", ylabel="optimizer steps")
        ax.legend(fontsize="small")
        return ax


def _column(name: str, values: ArrayLike) -> np.ndarray:
    try:
        array = np.asarray(values, "float64")
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.ndim != 1 or not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(f"`{name}` must be a list of finite numbers > 0. Received: {name}={values!r}")
    return array


def _size(name: str, value: Any) -> Any:
    return _column(name, np.ravel(value)).reshape(np.shape(value)) if np.ndim(value) else positive(name, value)


def _residuals(log_critical: float, sizes: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, float]:
    """Residuals of log steps at a critical batch size, and the log(min_steps) that minimizes them."""
    offsets = np.log(steps) - np.log1p(math.exp(log_critical) / sizes)
    return offsets - offsets.mean(), float(offsets.mean())


def _fit_log_critical_batch(sizes: np.ndarray, steps: np.ndarray) -> tuple[float, bool]:
    """Logarithm of the critical batch size, and whether the search ended at its bound."""
    from scipy import optimize  # here: `import keras_lsb` is to be cheap

    low, high = math.log(sizes.min()) - _BOUND, math.log(sizes.max()) + _BOUND

    def residuals(unknown: Sequence[float] | np.ndarray) -> np.ndarray:
        return _residuals(float(unknown[0]), sizes, steps)[0]

    # The sum of squares may have a flat stretch on either side, so the descent starts at the best point of a grid.
    grid = np.linspace(low, high, 257)
    start = min(grid[1:-1], key=lambda value: float(np.sum(residuals([value]) ** 2)))
    found = optimize.least_squares(residuals, [start], bounds=(low, high), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    value = float(found.x[0])
    return value, min(value - low, high - value) < 1


def _log_stderr(critical: float, sizes: np.ndarray, residuals: np.ndarray) -> float:
    """Standard error of log(critical_batch); NaN with two data."""
    if len(sizes) == 2:
        return math.nan
    share = critical / (critical + sizes)  # derivative of log(1 + critical / size) by log(critical)
    spread = float(np.sum((share - share.mean()) ** 2))  # what the fitted log(min_steps) leaves of J'J
    return math.sqrt(float(np.sum(residuals**2)) / (len(sizes) - 2) / spread)


def _warn_if_unresolved(critical: float, error: float, at_bound: bool) -> None:
    if at_bound or error > _UNCERTAIN * critical:
        warnings.warn(
            f"The critical batch size is not resolved: {critical:.3g} with a standard error of {error:.3g} examples. "
            "Add batch sizes on both sides of it, and more runs.",
            stacklevel=3,
        )
