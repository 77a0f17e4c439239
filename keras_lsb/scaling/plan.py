"""What more devices buy: steps, examples, time and cost at several batch sizes, from one noise scale.

Source: McCandlish, Kaplan, Amodei, OpenAI Dota Team, 2018, arXiv 1812.06162, equation 2.11; LEGW for the recipe.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from keras_lsb._checks import non_negative, positive
from keras_lsb._types import Axes
from keras_lsb.scaling.axes import axes_or_new
from keras_lsb.scaling.critical_batch import CriticalBatch
from keras_lsb.scaling.legw import legw

_HEADINGS = {"batch_size": "batch", "learning_rate": "rate", "warmup_epochs": "warm-up"}
_WIDTH = 10  # of the longest number, 1.234e+05, and a space


class PlanRow(NamedTuple):
    """One line of a plan.

    Attributes:
        devices: number of them.
        batch_size: global, in examples.
        steps, examples, seconds: to the goal.
        speedup: against the present run.
        cost: devices * time, relative to the present run.
        learning_rate, warmup_epochs: LEGW's recipe at this batch size, NaN where none was given.
    """

    devices: float
    batch_size: float
    steps: float
    examples: float
    seconds: float
    speedup: float
    cost: float
    learning_rate: float
    warmup_epochs: float


class Plan(tuple[PlanRow, ...]):
    """The rows of a plan; `print` shows them as a table."""

    def __str__(self) -> str:
        lines = ["".join(f"{_HEADINGS.get(name, name):>{_WIDTH}}" for name in PlanRow._fields)]
        lines += [
            "".join(f"{{:>{_WIDTH}}}".format("-" if math.isnan(value) else f"{value:.4g}") for value in row)
            for row in self
        ]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws time against cost, relative to now, with the number of devices at each point; returns the axes."""
        ax = axes_or_new(ax)
        ax.plot([row.cost for row in self], [row.speedup for row in self], "o-", linewidth=1, markersize=4)
        for row in self:
            ax.annotate(f"{row.devices:g}", (row.cost, row.speedup), textcoords="offset points", xytext=(5, -10))
        ax.set(
            xscale="log", yscale="log", xlabel="cost relative to now", ylabel="speed-up", title="by number of devices"
        )
        return ax


def plan(
    noise_scale: float,
    batch_size: float,
    steps: float,
    devices: Sequence[float],
    step_seconds: float | Callable[[float], float] = 1.0,
    *,
    learning_rate: float | None = None,
    warmup_epochs: float = 0.0,
) -> Plan:
    """What each number of devices would take to reach what the present run reaches, with the batch growing with them.

        steps(B) = steps * (1 + noise_scale / B) / (1 + noise_scale / batch_size),    B = devices * batch_size

    The noise scale stands for the critical batch size, which it predicts to an order of magnitude: read the table as
    the shape of the trade, and compare with `CriticalBatch.fit` where runs at several batch sizes exist.

    Args:
        noise_scale: measured noise scale or critical batch size, in examples, >= 0.
        batch_size: batch size now, in examples.
        steps: optimizer steps of the present run.
        devices: numbers of devices, relative to now: 1 is the present number, each device keeps its share of the batch.
        step_seconds: seconds of one step now, kept at every number of devices; or a function of `devices` that returns
            them, to account for communication.
        learning_rate: peak learning rate now, for LEGW's at the other batch sizes; None leaves it out.
        warmup_epochs: warm-up now, in epochs.

    Returns:
        A `Plan`: a `PlanRow` for each entry of `devices`, in their order.

    Raises:
        ValueError: an argument out of range, or no devices.

    Examples:
        >>> print(plan(1000, 100, 1100, devices=[1, 10], step_seconds=0.1, learning_rate=0.1, warmup_epochs=0.5))
           devices     batch     steps  examples   seconds   speedup      cost      rate   warm-up
                 1       100      1100   1.1e+05       110         1         1       0.1       0.5
                10      1000       200     2e+05        20       5.5     1.818    0.3162         5
    """
    noise_scale, batch_size = non_negative("noise_scale", noise_scale), positive("batch_size", batch_size)
    min_steps = positive("steps", steps) / (1 + noise_scale / batch_size)
    law = CriticalBatch(min_steps, noise_scale * min_steps, noise_scale)
    non_negative("warmup_epochs", warmup_epochs)
    if not isinstance(devices, Sequence | np.ndarray) or len(devices) == 0:
        raise ValueError(f"`devices` must be a list of at least one number of devices. Received: devices={devices!r}")

    def seconds_of(count: float) -> float:
        each = step_seconds(count) if callable(step_seconds) else step_seconds
        return law.steps(count * batch_size) * positive("step_seconds", each)

    now, rows = seconds_of(1.0), []
    for count in devices:
        count = positive("devices", count)
        size, seconds = count * batch_size, seconds_of(count)
        recipe = (math.nan, math.nan) if learning_rate is None else legw(learning_rate, warmup_epochs, count)
        rows.append(
            PlanRow(
                count,
                size,
                law.steps(size),
                size * law.steps(size),
                seconds,
                now / seconds,
                count * seconds / now,
                *recipe,
            )
        )
    return Plan(rows)
