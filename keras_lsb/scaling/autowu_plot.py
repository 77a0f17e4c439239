"""The picture of an AutoWU run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lsb._types import Axes

_BAND = 1.96  # standard deviations on both sides: 95 %


def plot(controller: Any, axes: Axes | None = None, losses: Sequence[float] | None = None) -> Axes:
    """Draws what `AutoWUController.plot` describes."""
    if axes is None:
        from matplotlib import pyplot as plt

        _, axes = plt.subplots(3, 1, sharex=True, figsize=(7, 7), height_ratios=(2, 1, 1), layout="constrained")
    loss, probability, rate = axes
    losses = controller.losses if losses is None else np.asarray(losses)
    loss.plot(np.arange(len(losses)), losses, ".", markersize=2, alpha=0.5, label="loss of a step")
    if controller.curves:
        step, curve = list(controller.curves.items())[-1]
        mean = curve.posterior(controller.grid_points).mean / controller.loss_factor
        band = _BAND * curve.deviation(controller.grid_points) / controller.loss_factor
        steps = np.linspace(0, step, controller.grid_points)
        loss.plot(steps, mean, label=f"Gaussian process after {step} steps")
        loss.fill_between(steps, mean - band, mean + band, alpha=0.3, linewidth=0)
        chosen = controller.rates.reached(controller.tests[-1].learning_rate)
        loss.plot(chosen, np.interp(chosen, steps, mean), "v", color="black", label="rate of the decay")
    steps = [test.step for test in controller.tests]
    probability.plot(steps, [test.probability for test in controller.tests], "-", linewidth=0.8)
    for vote, marker, label in ((True, "o", "vote"), (False, "x", "no vote")):
        chosen = [test for test in controller.tests if test.vote == vote]
        probability.plot([t.step for t in chosen], [t.probability for t in chosen], marker, color="black", label=label)
    probability.axhline(controller.confidence, linestyle=":", linewidth=0.8)
    steps, switch_step = np.arange(max(len(losses), controller.steps, 1)), controller.switch_step
    rate.plot(steps, controller.learning_rates(steps))
    if switch_step is not None:
        for ax in axes:
            ax.axvline(switch_step, linestyle="--", color="gray", linewidth=0.8)
        rate.set_title(f"decay from {controller.peak:.3g} after {switch_step} steps: {controller.reason}", size=9)
    loss.set(ylabel="loss")
    probability.set(ylabel="P(loss has risen)", ylim=(-0.05, 1.05))
    rate.set(ylabel="learning rate", xlabel="steps", yscale="log")
    for ax in (loss, probability):
        ax.legend(fontsize=8)
    return axes
