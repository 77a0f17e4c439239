"""The curvature along the gradient during `fit`."""

import math

from keras_lsb import _keras, scaling
from keras_lsb._checks import whole
from keras_lsb._types import Axes, Structure
from keras_lsb.scaling.axes import axes_or_new
from keras_lsb.training.curvature import CurvatureProbe


class Curvature(_keras.Callback):
    """Measures the curvature of the loss along its gradient on a fixed batch, at an interval.

    At the end of each epoch `logs` hold `curvature`, the local Lipschitz constant |g'Hg| / |g|^2, and with several
    microbatches `noise_scale_hessian` (B_noise) and `noise_scale_simple` (B_simple), all of the last measurement. While
    the constant is still rising or at its peak, a large learning rate diverges: a warm-up should last until it falls.

    Args:
        x: inputs of the batch to measure on.
        y: its targets.
        interval: batches of `fit` between measurements.
        microbatches: parts of the batch for B_noise, which takes a Hessian-vector product for each; 1 leaves it out.
        sample_weight: weights of the examples.

    Attributes:
        history: list of `(batch of fit, scaling.Curvature)`.
    """

    def __init__(
        self, x: Structure, y: Structure, *, interval: int = 100, microbatches: int = 1, sample_weight: Structure = None
    ):
        super().__init__()
        self.batch, self.microbatches = (x, y, sample_weight), whole("microbatches", microbatches)
        self.interval = whole("interval", interval)
        self.history: list[tuple[int, scaling.Curvature]] = []
        self._step = 0
        self._probe: CurvatureProbe | None = None

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._step += 1
        if self._step % self.interval and self.history:
            return
        if self._probe is None:  # the weights of a subclassed model exist only now
            self._probe = CurvatureProbe(self.model, *self.batch, microbatches=self.microbatches)
        self.history.append((self._step, self._probe()))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None and self.history:
            _, last = self.history[-1]
            logs["curvature"] = last.lipschitz
            if not math.isnan(last.noise):
                logs |= {"noise_scale_hessian": last.noise, "noise_scale_simple": last.simple}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the constant over the batches of `fit`, and the noise scales on another axis; returns the axes."""
        ax = axes_or_new(ax)
        steps = [step for step, _ in self.history]
        ax.plot(steps, [found.lipschitz for _, found in self.history], label="curvature")
        ax.set(yscale="log", xlabel="batches", ylabel="curvature along the gradient")
        if self.microbatches > 1:
            right = ax.twinx()
            for name, label, line in (("noise", "B_noise", "--"), ("simple", "B_simple", ":")):
                right.plot(steps, [getattr(found, name) for _, found in self.history], line, label=label)
            right.set(yscale="log", ylabel="noise scale, examples")
            right.legend()
        return ax
