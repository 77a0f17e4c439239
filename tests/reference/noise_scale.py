"""The gradient noise scale and the critical batch size in plain float64 NumPy and SciPy.

Source: McCandlish, Kaplan, Amodei, OpenAI Dota Team, "An Empirical Model of Large-Batch Training", 2018,
arXiv 1812.06162, equations 2.2, 2.9, 2.11 and appendix A.1; Fieller, "Some Problems in Interval Estimation", 1954.
Where the paper gives a closed form, this solves the equations behind it instead.
"""

import numpy as np
from scipy import optimize, stats


def measurement(gradients, sizes):
    """(grad_sq_norm, trace) from small gradients, one per row, of `sizes` examples each.

    A mean gradient of B examples has E|g|^2 = |G|^2 + tr(Sigma) / B. That gives one equation for the small gradients
    and one for their mean, solved for |G|^2 and tr(Sigma).
    """
    gradients, sizes = np.asarray(gradients, np.float64), np.asarray(sizes, np.float64)
    big = (sizes[:, None] * gradients).sum(0) / sizes.sum()
    small_sq_norm, big_sq_norm = np.mean(np.sum(gradients**2, 1)), big @ big
    equations = [[1, np.mean(1 / sizes)], [1, 1 / sizes.sum()]]
    return np.linalg.solve(equations, [small_sq_norm, big_sq_norm])


def weights_of(measurements, decay):
    """The finite measurements (grad_sq_norm, trace), one per row, and their weights.

    A third number in the rows is the weight of the measurement when it was made; without it that is 1.
    """
    measurements = np.asarray(measurements, np.float64)
    finite = measurements[np.isfinite(measurements).all(1)]
    first = finite[:, 2] if finite.shape[1] == 3 else 1
    return finite[:, :2], first * np.float64(decay) ** np.arange(len(finite))[::-1]


def averages(measurements, decay):
    """Everything that a running average keeps, from the full list of measurements."""
    finite, weights = weights_of(measurements, decay)
    mean = weights @ finite / weights.sum() if len(finite) else np.zeros(2)
    scatter = (finite - mean).T @ (weights[:, None] * (finite - mean))
    return {
        "weight": weights.sum(),
        "squared_weight": (weights**2).sum(),
        "grad_sq_norm": mean[0],
        "trace": mean[1],
        "grad_sq_norm_scatter": scatter[0, 0],
        "cross_scatter": scatter[0, 1],
        "trace_scatter": scatter[1, 1],
        "measurements": len(finite),
        "skipped": len(measurements) - len(finite),
    }


def compatible_with_zero(values, weights, confidence):
    """Student's test of the mean of `values`; weights w count as (sum w)^2 / sum w^2 measurements of weight 1."""
    count = weights.sum() ** 2 / (weights**2).sum()
    mean = np.average(values, weights=weights)
    variance = np.average((values - mean) ** 2, weights=weights) * count / (count - 1)
    return abs(mean) <= stats.t.ppf(0.5 + confidence / 2, count - 1) * np.sqrt(variance / count)


def boundary(accepted, inside, outside):
    """The end of the accepted ratios between an accepted and a rejected one, by bisection."""
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
    return inside


def interval(measurements, decay, confidence):
    """From the least to the greatest ratio r >= 0 for which the mean of trace - r * grad_sq_norm may be zero.

    (0, inf) where the mean of grad_sq_norm is below zero beyond doubt: no such ratio means anything.
    """
    finite, weights = weights_of(measurements, decay)
    signal, noise = finite.T
    mean_signal, mean_noise = weights @ finite / weights.sum()
    unbounded = compatible_with_zero(signal, weights, confidence)  # the test for r without bound

    def accepted(ratio):
        return compatible_with_zero(noise - ratio * signal, weights, confidence)

    if mean_signal > 0:
        best = max(0.0, mean_noise / mean_signal)
        low = 0.0 if accepted(0.0) else boundary(accepted, best, 0.0)
        return low, np.inf if unbounded else boundary(accepted, best, 1e9)
    if unbounded and not accepted(0.0):
        return boundary(accepted, 1e9, 0.0), np.inf
    return 0.0, np.inf


def critical_batch(batch_sizes, steps):
    """(S_min, B_crit, standard error of B_crit): least squares in log space with both logarithms unknown."""
    sizes = np.asarray(batch_sizes, np.float64)
    (log_min, log_critical), covariance = optimize.curve_fit(
        lambda size, log_min, log_critical: log_min + np.log(1 + np.exp(log_critical) / size),
        sizes,
        np.log(steps),
        p0=(np.log(np.min(steps)), np.log(np.median(sizes))),
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    critical = np.exp(log_critical)
    return np.exp(log_min), critical, critical * np.sqrt(covariance[1, 1])
