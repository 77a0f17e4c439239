"""Loss curves, decays and controllers that the tests of AutoWU share: 200 steps, 10 per epoch, 100 of warm-up."""

import numpy as np

from keras_lsb.scaling import AutoWUController
from keras_lsb.scaling.gaussian_process import Hyperparameters
from tests.support import keras

U = np.arange(100) / 100
VALLEY = 2.3 - 3 * U + 3 * U**2  # oracle A
FALL = 2.3 * np.exp(-100 * U / 60)  # oracle B
ETA = 0.002949439  # of oracle A
SCATTERED = np.where(np.arange(100) % 7 == 3, np.nan, VALLEY)
DECAYS = ("cosine", "constant-cosine", "half-cosine")
LINEAR = keras.optimizers.schedules.PolynomialDecay(1.0, decay_steps=1, end_learning_rate=0.0)


def controller_of(**settings) -> AutoWUController:
    """By default that of oracle A: 200 steps, 10 per epoch."""
    return AutoWUController(**{"total_steps": 200, "steps_per_epoch": 10, **settings})


def replayed(losses, **settings) -> AutoWUController:
    controller = controller_of(**settings)
    controller.replay(losses)
    return controller


def votes(controller) -> list[int]:
    """Steps at which there were votes."""
    return [test.step for test in controller.tests if test.vote]


def process_of(controller) -> Hyperparameters:
    return Hyperparameters(**controller.state_dict()["process"])


def exact(values) -> list[str]:
    """All digits of numbers, so that NaN equals NaN."""
    return [repr(value) for value in values]


def gap(lowest, slope, finite_after):
    """The losses of the oracle "Gap": a fall to the step `lowest`, a rise, and NaN."""
    t = np.arange(100.0)
    losses = np.where(t < lowest, 2 - 1.5 * t / lowest, 0.5 + slope * (t - lowest))
    return np.where(t <= lowest + finite_after, losses, np.nan)


def curve(seed):
    """A seeded curve of 100 losses: a valley, a fall, a kink or nothing but noise, with and without missing losses."""
    draw = np.random.default_rng(seed)
    bottom, depth = draw.uniform(0.15, 0.5), draw.uniform(2, 6)
    shapes = [depth * (U - bottom) ** 2, depth * np.exp(-U / bottom), depth * np.abs(U - bottom) ** 0.7, 0 * U]
    losses = 0.7 + shapes[seed % 4] + draw.choice([0.003, 0.03, 0.2]) * draw.standard_normal(100)
    missing = seed // 4 % 4
    if missing == 1:
        losses[draw.random(100) < 0.2] = np.nan
    if missing == 2:
        losses[draw.integers(0, 100, 6)] = np.inf, -np.inf, np.nan, np.inf, -np.inf, np.nan
    if missing == 3:
        losses[int(100 * bottom + draw.integers(5, 25)) :] = np.nan
    return losses


def quadratic(progress):
    return (1 - progress) ** 2
