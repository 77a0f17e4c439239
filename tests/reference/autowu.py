"""AutoWU in plain float64 NumPy and SciPy: dense kernels, a Cholesky factor per step of the fit, whole covariances.

Source: Kim, Kim, Kim, Lee, Kim, "Automated Learning Rate Scheduler for Large-batch Training", 2021, arXiv 2107.05855,
and its authors' code, whose decays are one step ahead of these.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import linalg, special, stats

NOISE_FLOOR = 1e-4
START = (0.0, 0.0, math.log(math.exp(9e-4) - 1))  # mean, alpha and beta: an amplitude of log 2, a noise of 1e-3


class Decision(NamedTuple):
    """One test: steps done, what the posteriors say, the fitted process, and the rate a decay would begin from."""

    step: int
    probability: float
    vote: bool
    rate: float
    mean: float = math.nan
    amplitude: float = math.nan
    noise: float = math.nan


class Outcome(NamedTuple):
    """All decisions, the number of steps before the decay, and the rate it begins from; None while warming up."""

    decisions: list
    switch_step: int | None
    eta: float | None


def kernel(x, z, length_scale):
    """Covariances of a process of amplitude 1."""
    return np.exp(-((x[:, None] - z[None, :]) ** 2) / (2 * length_scale**2))


def variances(parameters):
    """(amplitude, noise) of the parameters (mean, alpha, beta)."""
    return np.log1p(np.exp(parameters[1])), NOISE_FLOOR + np.log1p(np.exp(parameters[2]))


def likelihood(parameters, x, y, length_scale):
    """Negative log marginal likelihood per point, and its derivatives by the parameters (mean, alpha, beta)."""
    (amplitude, noise), unit = variances(parameters), kernel(x, x, length_scale)
    factor = linalg.cholesky(amplitude * unit + noise * np.eye(len(x)), lower=True)
    inverse = linalg.cho_solve((factor, True), np.eye(len(x)))
    residual = y - parameters[0]
    solved = inverse @ residual
    loss = residual @ solved / 2 + np.sum(np.log(np.diag(factor))) + len(x) / 2 * np.log(2 * np.pi)
    by_amplitude = (np.sum(inverse * unit) - solved @ unit @ solved) / 2  # the sum is the trace of their product
    by_noise = (np.trace(inverse) - solved @ solved) / 2
    slopes = [-solved.sum(), by_amplitude * special.expit(parameters[1]), by_noise * special.expit(parameters[2])]
    return loss / len(x), np.array(slopes) / len(x)


def adam(parameters, moments, gradient, rate=0.01, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
    """One step of Adam; moments are (step count, first, second)."""
    step = moments[0] + 1
    first = beta_1 * moments[1] + (1 - beta_1) * gradient
    second = beta_2 * moments[2] + (1 - beta_2) * gradient**2
    change = (first / (1 - beta_1**step)) / (np.sqrt(second / (1 - beta_2**step)) + epsilon)
    return parameters - rate * change, (step, first, second)


def posterior(parameters, x, y, grid, length_scale):
    """Mean and covariance of the curve, without noise, on the grid."""
    amplitude, noise = variances(parameters)
    factor = linalg.cholesky(amplitude * kernel(x, x, length_scale) + noise * np.eye(len(x)), lower=True)
    scaled = linalg.solve_triangular(factor, amplitude * kernel(x, grid, length_scale), lower=True)
    mean = parameters[0] + scaled.T @ linalg.solve_triangular(factor, y - parameters[0], lower=True)
    return mean, amplitude * kernel(grid, grid, length_scale) - scaled.T @ scaled


def probability_of_rise(mean, covariance):
    """The largest over the grid of P(curve there < curve at the end)."""
    variance = np.diag(covariance) + covariance[-1, -1] - 2 * covariance[:, -1] + 1e-4
    return np.max(stats.norm.cdf((mean[-1] - mean) / np.sqrt(variance))[:-1])


def between(x, low, high, warmup):
    """The rate at a fraction x of the warm-up from `low` to `high`."""
    return low + (high - low) * x if warmup == "linear" else low * (high / low) ** x


def decay_rate(step, switch_step, eta, total_steps, decay="cosine", cosine_fraction=0.2):
    """The rate of a step of the decay."""
    if decay == "constant-cosine":
        switch_step = max(switch_step, (1 - cosine_fraction) * total_steps)
    progress = max(0.0, (step - switch_step) / (total_steps - switch_step))
    angle = np.pi / 2 * (1 + progress) if decay == "half-cosine" else np.pi * progress
    return eta / 2 * (1 + np.cos(angle))


def run(
    losses,
    total_steps,
    steps_per_epoch,
    *,
    warmup_fraction=0.5,
    low=1e-5,
    high=1.0,
    warmup="exponential",
    confidence=0.95,
    patience=3,
    posteriors=5,
    fit_points=100,
    posterior_points=500,
    grid_points=500,
    length_scale=0.2,
    guard=True,
    random=None,
):
    """The outcome of a warm-up with these losses, one per step; `random` is a generator that draws the samples.

    Without `guard` an epoch that has no finite loss is like any other, as in the paper.
    """
    limit, decisions = int(warmup_fraction * total_steps), []
    if limit == 0:
        return Outcome([], 0, high)
    parameters, moments = np.array(START), (0, np.zeros(3), np.zeros(3))
    grid = np.linspace(0, 1, grid_points)

    def rate(step):
        return between(step / limit, low, high, warmup)

    def sample(x, y, size):
        if len(x) <= size:
            return x, y
        chosen = sorted(random.choice(len(x), size, replace=False, shuffle=False))
        return x[chosen], y[chosen]

    for done in range(1, len(losses) + 1):
        if done >= limit:
            return Outcome(decisions, done, rate(done - 1))
        if done % steps_per_epoch:
            continue
        y = np.array(losses[:done], np.float64)
        x, finite = np.arange(done) / done, np.isfinite(y)
        if finite.sum() < 2:
            decisions.append(Decision(done, math.nan, False, math.nan))
            continue
        guarded = guard and not finite[-steps_per_epoch:].any()
        x, y = x[finite], y[finite]
        searched = grid <= x[-1] if guarded else grid <= 1
        parameters[0] = y.mean()
        fitted = sample(x, y, fit_points)
        for _ in range(100):
            parameters, moments = adam(parameters, moments, likelihood(parameters, *fitted, length_scale)[1])
        probabilities, rates = [], []
        for _ in range(posteriors):
            mean, covariance = posterior(parameters, *sample(x, y, posterior_points), grid, length_scale)
            probabilities.append(probability_of_rise(mean, covariance))
            rates.append(between(grid[searched][np.argmin(mean[searched])], low, rate(done - 1), warmup))
        vote = bool(guarded or np.sum(np.array(probabilities) > confidence) > posteriors / 2)
        process = (parameters[0], *variances(parameters))
        decisions.append(Decision(done, np.median(probabilities), vote, np.mean(rates), *process))
        if len(decisions) >= patience and all(decision.vote for decision in decisions[-patience:]):
            return Outcome(decisions, done, decisions[-1].rate)
    return Outcome(decisions, None, None)
