"""Regression of a loss curve by a Gaussian process with a fixed length scale, as AutoWU needs it: exact and fast.

The model is a constant mean, the covariance `amplitude * exp(-(x - x')^2 / (2 length_scale^2))` and Gaussian noise, for
x in [0, 1]. Because the length scale is fixed, one eigendecomposition serves all steps of a fit, and every posterior is
a problem of the kernel's numerical rank: 19 at a length scale of 0.2.

Source: Kim, Kim, Kim, Lee, Kim, 2021, arXiv 2107.05855, and its authors' code, whose fit is 100 steps of Adam that go
on from epoch to epoch, not a maximum of the likelihood.
"""

import functools
import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

NOISE_FLOOR = 1e-4  # of the observations; also added to the variance of a difference
_RATE, _BETAS, _EPSILON = 0.01, (0.9, 0.999), 1e-8
_NODES = 40  # Chebyshev nodes at a length scale of 0.2 and above, more in proportion below
_CUTOFF = 1e-14  # eigenvalues of the kernel that are left out, relative to the largest


@functools.cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> AbstractContextManager:
    """A context in which BLAS runs on one thread: more of them slow matrices of this size down, the busier the more."""
    return _threads().limit(limits=1, user_api="blas")


def kernel(x: np.ndarray, length_scale: float) -> np.ndarray:
    """The matrix exp(-(x_i - x_j)^2 / (2 length_scale^2))."""
    return np.exp(-0.5 * np.square((x[:, None] - x) / length_scale))


@functools.lru_cache(maxsize=8)
def _expansion(length_scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chebyshev nodes on [0, 1], their barycentric weights, and the features of the kernel at the nodes."""
    count = 2 * math.ceil(_NODES / 2 * max(1.0, 0.2 / length_scale))  # even: one of an odd number of nodes is 0.5
    angles = math.pi * (2 * np.arange(count) + 1) / (2 * count)
    nodes, weights = 0.5 + 0.5 * np.cos(angles), np.sin(angles)
    weights[1::2] *= -1
    values, vectors = np.linalg.eigh(kernel(nodes, length_scale))
    kept = values > _CUTOFF * values[-1]
    return nodes, weights, vectors[:, kept] * np.sqrt(values[kept])


def features(x: np.ndarray, length_scale: float) -> np.ndarray:
    """Features of shape (points, rank) whose inner products are the kernel at `x`, which lies in [0, 1].

    The kernel is interpolated between Chebyshev nodes, where its eigenvectors are known; the error is below 1e-13.
    """
    nodes, weights, at_nodes = _expansion(length_scale)
    shares = weights / (x[:, None] - nodes)  # no node is a fraction, so that none is met
    return shares @ at_nodes / shares.sum(1, keepdims=True)


@functools.lru_cache(maxsize=8)
def _grid(points: int, length_scale: float) -> np.ndarray:
    """Features at `points` places from 0 to 1, shape (points, rank)."""
    return features(np.linspace(0.0, 1.0, points), length_scale)


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _sigmoid(value: float) -> float:
    return 0.5 + 0.5 * math.tanh(0.5 * value)


@dataclass
class Hyperparameters:
    """Mean, amplitude and noise of the process, in the coordinates in which they are trained, and Adam's state.

    amplitude = softplus(`raw_amplitude`), noise = 1e-4 + softplus(`raw_noise`): variances, in squares of the loss'
    unit. They, the moments and the step count persist from one `fit` to the next; the mean starts anew at each.
    """

    mean: float = 0.0
    raw_amplitude: float = 0.0
    raw_noise: float = math.log(math.expm1(1e-3 - NOISE_FLOOR))
    first_moments: list[float] = field(default_factory=lambda: [0.0] * 3)
    second_moments: list[float] = field(default_factory=lambda: [0.0] * 3)
    steps: int = 0

    @property
    def amplitude(self) -> float:
        return _softplus(self.raw_amplitude)

    @property
    def noise(self) -> float:
        return NOISE_FLOOR + _softplus(self.raw_noise)

    def fit(self, x: np.ndarray, y: np.ndarray, mean: float, length_scale: float, steps: int = 100) -> None:
        """Takes Adam steps on the negative log marginal likelihood per point, in place.

        Args:
            x: places in [0, 1], at least two.
            y: finite losses.
            mean: the mean to start from.
            length_scale: length scale of the kernel.
            steps: number of steps, at rate 0.01 with betas (0.9, 0.999) and epsilon 1e-8.
        """
        self.mean = mean
        spectrum = Spectrum.of(x, y, length_scale)
        for _ in range(steps):
            self._descend(spectrum.gradient(self.mean, self.raw_amplitude, self.raw_noise))

    def _descend(self, gradient: tuple[float, float, float]) -> None:
        (decay, square_decay), self.steps = _BETAS, self.steps + 1
        rate, correction = _RATE / (1 - decay**self.steps), math.sqrt(1 - square_decay**self.steps)
        values = [self.mean, self.raw_amplitude, self.raw_noise]
        for i, slope in enumerate(gradient):
            self.first_moments[i] = decay * self.first_moments[i] + (1 - decay) * slope
            self.second_moments[i] = square_decay * self.second_moments[i] + (1 - square_decay) * slope * slope
            values[i] -= rate * self.first_moments[i] / (math.sqrt(self.second_moments[i]) / correction + _EPSILON)
        self.mean, self.raw_amplitude, self.raw_noise = values

    def state_dict(self) -> dict:
        """All numbers, as JSON takes them."""
        return asdict(self)


class Spectrum(NamedTuple):
    """Eigenvalues of the kernel at the data, and the constant 1 and the losses in the basis of its eigenvectors."""

    eigenvalues: np.ndarray
    ones: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, length_scale: float) -> "Spectrum":
        """One eigendecomposition; eigenvalues that rounding has made negative are 0."""
        values, vectors = np.linalg.eigh(kernel(x, length_scale))
        return cls(np.maximum(values, 0.0), vectors.sum(0), y @ vectors)

    def loss(self, mean: float, raw_amplitude: float, raw_noise: float) -> float:
        """Negative log marginal likelihood divided by the number of points."""
        variances = _softplus(raw_amplitude) * self.eigenvalues + NOISE_FLOOR + _softplus(raw_noise)
        residuals = self.losses - mean * self.ones
        return float(np.mean(residuals**2 / variances + np.log(2 * math.pi * variances))) / 2

    def gradient(self, mean: float, raw_amplitude: float, raw_noise: float) -> tuple[float, float, float]:
        """Derivatives of `loss` by its three arguments."""
        variances = _softplus(raw_amplitude) * self.eigenvalues + (NOISE_FLOOR + _softplus(raw_noise))
        scaled = (self.losses - mean * self.ones) / variances
        slopes = 1.0 / variances - scaled * scaled
        points = len(slopes)
        by_mean = -float(self.ones @ scaled) / points
        by_amplitude = 0.5 * float(self.eigenvalues @ slopes) / points
        by_noise = 0.5 * float(slopes.sum()) / points
        return by_mean, by_amplitude * _sigmoid(raw_amplitude), by_noise * _sigmoid(raw_noise)


class Posterior(NamedTuple):
    """What the losses say of the curve on a grid of [0, 1].

    Attributes:
        mean: mean of the curve, noise not included, shape (grid points,).
        probability: the largest over the grid of P(curve there < curve at its end).
    """

    mean: np.ndarray
    probability: float


class Conditioned(NamedTuple):
    """The process given losses: its features' weights, by their mean and the Cholesky factor of their precision."""

    mean: float
    amplitude: float
    length_scale: float
    weights: np.ndarray
    precision: np.ndarray

    @classmethod
    def on(cls, x: np.ndarray, y: np.ndarray, process: Hyperparameters, length_scale: float) -> "Conditioned":
        """Conditions on losses `y` at places `x`, with the hyperparameters as they are now."""
        basis = features(x, length_scale)
        amplitude, noise = process.amplitude, process.noise
        precision = np.linalg.cholesky(np.eye(basis.shape[1]) + (amplitude / noise) * (basis.T @ basis))
        projected = (math.sqrt(amplitude) / noise) * ((y - process.mean) @ basis)
        weights = np.linalg.solve(precision.T, np.linalg.solve(precision, projected))
        return cls(process.mean, amplitude, length_scale, weights, precision)

    def posterior(self, points: int) -> Posterior:
        """The curve at `points` places from 0 to 1."""
        root, grid = math.sqrt(self.amplitude), _grid(points, self.length_scale)
        differences = grid[-1] - grid
        rises = root * (differences @ self.weights)  # mean at the end minus mean at each place
        scores = rises[:-1] / np.sqrt(np.square(self._deviations(differences[:-1])) + NOISE_FLOOR)
        probability = 0.5 * math.erfc(-float(scores.max()) / math.sqrt(2))
        return Posterior(self.mean + root * float(grid[-1] @ self.weights) - rises, probability)

    def deviation(self, points: int) -> np.ndarray:
        """Standard deviation of the curve at `points` places from 0 to 1, noise not included."""
        return self._deviations(_grid(points, self.length_scale))

    def _deviations(self, basis: np.ndarray) -> np.ndarray:
        scaled = np.linalg.solve(self.precision, basis.T)
        return np.sqrt(self.amplitude * np.square(scaled).sum(0))
