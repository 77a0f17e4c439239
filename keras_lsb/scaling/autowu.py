"""AutoWU: warm up until a Gaussian process says that the loss has stopped falling, then decay.

Source: Kim, Kim, Kim, Lee, Kim, "Automated Learning Rate Scheduler for Large-batch Training", 2021, arXiv 2107.05855,
and its authors' code.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from keras_lsb._checks import at_least, fraction, positive, whole
from keras_lsb._types import Axes, Tensor
from keras_lsb.scaling.autowu_plot import plot
from keras_lsb.scaling.autowu_rates import AutoWURates
from keras_lsb.scaling.gaussian_process import Conditioned, Hyperparameters, one_thread

_LARGEST = float(np.finfo("float32").max)  # losses beyond it count as infinite: their squares would overflow
_STATE_VERSION = 1
_LOOK_BACK = 0.1  # of the decay, after which a setback is looked for
_FALL = 0.1  # of the first loss: less is no progress that could be lost
_TEST_SETTINGS = ("steps_per_epoch", "confidence", "patience", "posteriors", "fit_points", "posterior_points")
_TEST_SETTINGS += ("grid_points", "length_scale", "guard", "loss_factor", "seed")  # besides those of the rates


def _usable(losses: np.ndarray) -> np.ndarray:
    """Which losses are numbers that the process can take."""
    return np.abs(losses) <= _LARGEST


def _mean(losses: np.ndarray) -> float:
    """Of the losses that are usable; NaN without any."""
    losses = losses[_usable(losses)]
    return float(losses.mean()) if losses.size else math.nan


class Decision(NamedTuple):
    """What one epoch of losses leads to.

    Attributes:
        phase: "warmup" or "decay".
        learning_rate: learning rate of the next step.
        probability: probability that the loss has risen above its minimum; NaN where it was not tested.
    """

    phase: str
    learning_rate: float
    probability: float


class AutoWUTest(NamedTuple):
    """One test during the warm-up.

    Attributes:
        step: steps done.
        probability: median over the posteriors of the probability that the loss has risen; NaN where it has fewer than
            two finite values.
        vote: whether this speaks for the end of the warm-up.
        learning_rate: the rate from which the decay would start; NaN without a posterior.
        guarded: whether the vote comes from an epoch without any finite loss.
    """

    step: int
    probability: float
    vote: bool
    learning_rate: float
    guarded: bool


class AutoWUSetback(NamedTuple):
    """The loss in the decay is back near the first ones.

    Attributes:
        loss: mean of the newest losses.
        first: mean over the first epoch.
        lowest: mean over the lowest epoch of the warm-up.
    """

    loss: float
    first: float
    lowest: float


class AutoWUController:
    """Decides from the losses of each epoch whether the warm-up goes on.

    Give `update` the training losses of one epoch after another, one loss per step, each taken before its update and
    averaged over replicas. After each epoch a Gaussian process is fitted to all losses so far. The decision votes for
    the end of the warm-up when the loss is lower somewhere than now with a probability above `confidence`; after
    `patience` such votes in a row the decay starts from the rate at which the fitted loss was lowest. Weights are not
    rolled back. Without such votes the decay starts at the limit, from the rate reached there.

    Losses are taken as they are and should be of order 0.1 to 10: the noise floor of the process is 1e-4.

    Args:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: steps per epoch, or between decisions.
        warmup_fraction: largest part of the run that may be warm-up, in [0, 1); 0 means that there is none.
        min_learning_rate: rate of the first step.
        max_learning_rate: rate that would be reached at the limit. Optimizers with good rates above 1 need more.
        warmup: "exponential" or "linear".
        decay: "cosine", "constant-cosine", "half-cosine", or a function of the progress of the decay, 0 to 1, that
            gives a factor of its first rate, such as a Keras schedule: see `AutoWURates`.
        cosine_fraction: length of the final cosine of "constant-cosine", as a fraction of the run.
        confidence: probability above which a posterior votes, in (0, 1).
        patience: votes in a row that end the warm-up.
        posteriors: posteriors per decision, of which more than half must vote; each sees another sample of the losses.
        fit_points: most losses that the process is fitted to, sampled at random.
        posterior_points: most losses that a posterior is conditioned on.
        grid_points: points at which the curve is compared with its end.
        length_scale: length scale of the process, as a fraction of the losses so far, at least 0.01.
        guard: whether an epoch without any finite loss is a vote for the end of the warm-up, with the rate searched up
            to the last finite loss. The paper's rule, which this turns off, may warm up on a loss that is NaN.
        loss_factor: what losses are multiplied with first, for losses of another order than 1.
        seed: of the sampling, which nothing else uses.

    Attributes:
        steps: steps seen.
        switch_step: steps done when the decay began, None during the warm-up.
        peak: the rate from which the decay began, None during the warm-up.
        reason: why it began: "gaussian process", "guard", "limit" or "no warm-up"; None during the warm-up.
        non_finite: losses of the warm-up that were NaN or infinite.
        tests: a list of `AutoWUTest`.
        curves: the process after the test at each step, a dict of steps to `gaussian_process.Conditioned`; not saved.

    Raises:
        ValueError: an argument out of range; the message names it and its value.

    Source: Kim, Kim, Kim, Lee, Kim, 2021, arXiv 2107.05855, with the fit of its authors' code.

    Examples:
        >>> controller = AutoWUController(total_steps=200, steps_per_epoch=10)
        >>> losses = [2.3 - 3 * (t / 100) + 3 * (t / 100) ** 2 for t in range(80)]
        >>> [decision.phase for decision in controller.replay(losses)][-2:]
        ['warmup', 'decay']
        >>> controller.switch_step, round(controller.peak, 6), controller.reason
        (80, 0.002949, 'gaussian process')
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        warmup_fraction: float = 0.5,
        min_learning_rate: float = 1e-5,
        max_learning_rate: float = 1.0,
        warmup: str = "exponential",
        decay: str | Callable = "cosine",
        cosine_fraction: float = 0.2,
        confidence: float = 0.95,
        patience: int = 3,
        posteriors: int = 5,
        fit_points: int = 100,
        posterior_points: int = 500,
        grid_points: int = 500,
        length_scale: float = 0.2,
        guard: bool = True,
        loss_factor: float = 1.0,
        seed: int = 0,
    ):
        self.rates = AutoWURates(
            total_steps, warmup_fraction, min_learning_rate, max_learning_rate, warmup, decay, cosine_fraction
        )
        self.steps_per_epoch = whole("steps_per_epoch", steps_per_epoch)
        self.confidence = fraction("confidence", confidence)
        self.patience = whole("patience", patience)
        self.posteriors = whole("posteriors", posteriors)
        self.fit_points = whole("fit_points", fit_points, minimum=2)
        self.posterior_points = whole("posterior_points", posterior_points, minimum=2)
        self.grid_points = whole("grid_points", grid_points, minimum=2)
        self.length_scale = at_least("length_scale", length_scale, 0.01)
        self.guard = bool(guard)
        self.loss_factor = positive("loss_factor", loss_factor)
        self.seed = whole("seed", seed, minimum=0)

        self.steps, self.non_finite = 0, 0
        self.switch_step: int | None = None
        self.peak: float | None = None
        self.reason: str | None = None
        self.tests: list[AutoWUTest] = []
        self.curves: dict = {}
        self._losses = np.empty(0)
        self._process = Hyperparameters()
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        if self.rates.limit == 0:
            self._switch(0, self.rates.max_learning_rate, "no warm-up")
        elif self.patience * self.steps_per_epoch >= self.rates.limit:
            warnings.warn(
                f"AutoWU cannot end the warm-up before its limit: {self.patience} votes take "
                f"{self.patience * self.steps_per_epoch} steps, the limit is {self.rates.limit}. Train for longer, or "
                f"decide more often. Received: total_steps={self.rates.total_steps}, "
                f"steps_per_epoch={self.steps_per_epoch}, patience={self.patience}",
                stacklevel=2,
            )

    @property
    def phase(self) -> str:
        """What the next step belongs to: "warmup" or "decay"."""
        return "warmup" if self.switch_step is None else "decay"

    @property
    def votes(self) -> int:
        """Votes in a row for the end of the warm-up, up to the last test."""
        return next((i for i, test in enumerate(reversed(self.tests)) if not test.vote), len(self.tests))

    @property
    def growth(self) -> float:
        """Factor by which the rate grows during `patience` decisions, at the end of the warm-up."""
        start = self.rates.limit - self.patience * self.steps_per_epoch
        return self.rates.max_learning_rate / float(self.rates.during_warmup(max(start, 0)))

    @property
    def losses(self) -> np.ndarray:
        """The losses of the warm-up, one per step."""
        return self._losses.copy()

    def learning_rate(self, step: int | None = None) -> float:
        """The rate of a step, by default of the next one, if the warm-up goes on to its limit unless it has ended."""
        return float(self.learning_rates(self.steps if step is None else step))

    def learning_rates(self, steps: Tensor) -> np.ndarray:
        """The same for an array of steps."""
        if self.switch_step is None:
            return self.rates.at(steps, self.rates.limit, self.rates.limit_peak)
        return self.rates.at(steps, self.switch_step, self.peak)

    def update(self, epoch_losses: Sequence[float]) -> Decision:
        """Takes the losses of one epoch and decides.

        Args:
            epoch_losses: `steps_per_epoch` losses, one per step; fewer only in a last epoch that ends at `total_steps`.
                NaN and infinite ones are counted and left out.

        Raises:
            ValueError: another number of losses.
        """
        losses = np.asarray(epoch_losses, "float64").ravel()
        rest = self.rates.total_steps - self.steps
        if len(losses) != self.steps_per_epoch and not 0 < len(losses) == rest < self.steps_per_epoch:
            raise ValueError(
                f"`epoch_losses` must hold the {self.steps_per_epoch} losses of one epoch, one per step. "
                f"Received: {len(losses)} losses after {self.steps} of {self.rates.total_steps} steps"
            )
        self.steps += len(losses)
        probability = math.nan
        if self.phase == "warmup":
            self._losses = np.concatenate([self._losses, losses])
            self.non_finite += int(np.count_nonzero(~_usable(losses)))
            if self.steps >= self.rates.limit:
                self._switch(self.rates.limit, self.rates.limit_peak, "limit")
            else:
                test = self._test(self._losses, new=len(losses))
                probability = test.probability
                self.tests.append(test)
                if self.votes >= self.patience:
                    self._switch(self.steps, test.learning_rate, "guard" if test.guarded else "gaussian process")
        return Decision(self.phase, self.learning_rate(), probability)

    def setback(self, losses: Sequence[float]) -> AutoWUSetback | None:
        """Whether the warm-up has cost what it had learned: for the losses that were given to `update` last.

        The last rates of a warm-up are too high. They can spoil weights for good while each loss is finite. That shows
        when a tenth of the decay is over, at the first epoch that ends then: if its mean loss is nearer to that of
        the first epoch than to that of the lowest epoch of the warm-up. Near is by ratio, as losses fall by orders of
        magnitude, and by difference where one is not positive. A warm-up whose lowest epoch is less than a tenth below
        the first had nothing to lose.
        """
        if not self.switch_step:
            return None
        due = self.switch_step + math.ceil(_LOOK_BACK * (self.rates.total_steps - self.switch_step))
        if not self.steps - len(losses) < due <= self.steps:
            return None
        starts = range(0, len(self._losses), self.steps_per_epoch)
        means = [_mean(self._losses[start : start + self.steps_per_epoch]) for start in starts]
        first, now = means[0], _mean(np.asarray(losses, "float64"))
        lowest = min((mean for mean in means if not math.isnan(mean)), default=math.nan)
        middle = math.sqrt(first * lowest) if lowest > 0 else (first + lowest) / 2
        if first - lowest >= _FALL * abs(first) and now > middle:
            return AutoWUSetback(now, first, lowest)
        return None

    def replay(self, losses: Sequence[float]) -> list[Decision]:
        """Feeds the losses of many epochs, for a dry run on those of an old log; a rest that fills no epoch is left."""
        starts = range(0, len(losses) - self.steps_per_epoch + 1, self.steps_per_epoch)
        return [self.update(losses[start : start + self.steps_per_epoch]) for start in starts]

    def plot(self, axes: Axes | None = None, losses: Sequence[float] | None = None) -> Axes:
        """Draws the losses with the last fitted curve, the tests with their votes, and the learning rates.

        Args:
            axes: three axes, one above the other; new ones without them.
            losses: losses of the whole run, one per step; those of the warm-up without them.

        Returns:
            The axes.
        """
        return plot(self, axes, losses)

    def settings(self) -> dict:
        """The arguments, as JSON takes them; a function as `decay` by its name."""
        decay = self.rates.decay
        return {
            **vars(self.rates),
            "decay": decay if isinstance(decay, str) else getattr(decay, "__name__", type(decay).__name__),
            **{name: getattr(self, name) for name in _TEST_SETTINGS},
        }

    def state_dict(self) -> dict:
        """Everything that decides how the run goes on, as JSON takes it: a resumed run agrees bit for bit."""
        return {
            "version": _STATE_VERSION,
            "settings": self.settings(),
            "steps": self.steps,
            "non_finite": self.non_finite,
            "switch_step": self.switch_step,
            "peak": self.peak,
            "reason": self.reason,
            "losses": self._losses.tolist(),
            "tests": [list(test) for test in self.tests],
            "process": self._process.state_dict(),
            "random": copy.deepcopy(self._random.bit_generator.state),
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            ValueError: a state of another version or of a controller with other settings, named with both values. The
                controller is left as it was.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"The state is not one of this version of AutoWU, which writes version {_STATE_VERSION}. "
                f"Received: version={state.get('version')!r}"
            )
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"The state lacks {missing}. Received: state with {sorted(state)}")
        for name, value in self.settings().items():
            saved = state["settings"].get(name)
            if saved != value:
                raise ValueError(
                    f"`{name}` differs from that of the saved run: {value!r} here, {saved!r} there. Use the same, or "
                    "start without the saved state."
                )
        if state["process"].keys() != self._process.state_dict().keys():
            raise ValueError(f"The state of the process is not complete. Received: process={state['process']}")
        random = np.random.PCG64()
        random.state = state["random"]  # a ValueError where it is that of another generator
        self._process, self._random = Hyperparameters(**copy.deepcopy(state["process"])), np.random.Generator(random)
        self._losses = np.asarray(state["losses"], "float64")
        self.tests, self.curves = [AutoWUTest(*test) for test in state["tests"]], {}
        self.steps, self.non_finite = state["steps"], state["non_finite"]
        self.switch_step, self.peak, self.reason = state["switch_step"], state["peak"], state["reason"]

    def _switch(self, step: int, peak: float, reason: str) -> None:
        self.switch_step, self.peak, self.reason = step, peak, reason

    def _test(self, losses: np.ndarray, new: int) -> AutoWUTest:
        """The decision on all losses so far, of which the last `new` ones are this epoch's."""
        finite = _usable(losses)
        places = np.arange(len(losses))[finite] / len(losses)
        values = self.loss_factor * losses[finite]
        if len(values) < 2:
            return AutoWUTest(self.steps, math.nan, False, math.nan, False)
        guarded = self.guard and not finite[-new:].any()
        last = places[-1] if guarded else 1.0
        candidates = np.linspace(0.0, 1.0, self.grid_points)
        candidates = candidates[candidates <= last]
        highest = self.rates.during_warmup(self.steps - 1)
        probabilities, rates = [], []
        with one_thread():
            chosen = self._sample(len(values), self.fit_points)
            self._process.fit(places[chosen], values[chosen], float(values.mean()), self.length_scale)
            # Posteriors that see all losses are the same.
            for _ in range(self.posteriors if len(values) > self.posterior_points else 1):
                chosen = self._sample(len(values), self.posterior_points)
                curve = Conditioned.on(places[chosen], values[chosen], self._process, self.length_scale)
                posterior = curve.posterior(self.grid_points)
                lowest = candidates[np.argmin(posterior.mean[: len(candidates)])]
                probabilities.append(posterior.probability)
                rates.append(self.rates.between(float(lowest), highest))
        self.curves[self.steps] = curve
        agree = sum(probability > self.confidence for probability in probabilities)
        vote = guarded or 2 * agree > len(probabilities)
        rate = float(np.mean(rates))
        return AutoWUTest(self.steps, float(np.median(probabilities)), bool(vote), rate, bool(guarded))

    def _sample(self, count: int, size: int) -> np.ndarray | slice:
        """Indices of `size` losses out of `count`, in order; all of them where there are no more."""
        if count <= size:
            return slice(None)
        return np.sort(self._random.choice(count, size, replace=False, shuffle=False))
