"""What AutoWU costs: one decision against two other ways to compute it, and a training step with and without it.

    python benchmarks/autowu.py [--quick]

- One decision, the fit and five posteriors of 500 losses on 500 grid points, with our rank-19 posteriors, with NumPy's
  Cholesky factors in every step, and with GPyTorch where it is installed (`pip install gpytorch`). All three draw the
  same samples of the same losses epoch after epoch, on one thread; they must vote the same and find the same rate.
- A training step with `schedules.AutoWU` and its callback, against a fixed schedule of the same shape, with
  steps_per_execution 1 and 16. The baseline runs twice, as a null pair.

Variants take turns, ratios are taken within each turn. Writes `benchmarks/results/autowu.json`.
"""

import math
import statistics
import sys
import time
from pathlib import Path

import interleaved
import numpy as np
import records
import tensorflow as tf
from scipy import linalg
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import common  # noqa: E402
from mnist_cnn import build_model  # noqa: E402

from keras_lsb import callbacks, optimizers, schedules  # noqa: E402
from keras_lsb.scaling.gaussian_process import NOISE_FLOOR, Conditioned, Hyperparameters, kernel  # noqa: E402

keras = tf.keras
LENGTH_SCALE, GRID, FIT_POINTS, POINTS, POSTERIORS, CONFIDENCE = 0.2, 500, 100, 500, 5, 0.95
DECISION_GOALS, STEP_GOAL = {"Cholesky": 10, "GPyTorch": 50}, 1.02


class Ours:
    """The package's own computation."""

    def __init__(self):
        self.process = Hyperparameters()

    def fit(self, x, y, mean):
        self.process.fit(x, y, mean, LENGTH_SCALE)

    def posterior(self, x, y):
        """The probability that the loss has risen, and where its minimum is."""
        posterior = Conditioned.on(x, y, self.process, LENGTH_SCALE).posterior(GRID)
        return posterior.probability, np.argmin(posterior.mean) / (GRID - 1)


def decide(mean: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """The same from a dense posterior on the grid."""
    variance = np.diag(covariance) + covariance[-1, -1] - 2 * covariance[-1] + NOISE_FLOOR
    score = np.max((mean[-1] - mean[:-1]) / np.sqrt(variance[:-1]))
    return 0.5 * math.erfc(-score / math.sqrt(2)), np.argmin(mean) / (GRID - 1)


class Cholesky:
    """The same numbers from dense matrices: a Cholesky factor in each step of the fit and in each posterior."""

    def __init__(self):
        self.process = Hyperparameters()

    def fit(self, x, y, mean):
        unit, self.process.mean, ones = kernel(x, LENGTH_SCALE), mean, np.ones(len(x))
        for _ in range(100):
            process = self.process
            factor = np.linalg.cholesky(process.amplitude * unit + process.noise * np.eye(len(x)))
            inverse = linalg.cho_solve((factor, True), np.eye(len(x)))
            residual = inverse @ (y - process.mean)
            outer = inverse - np.outer(residual, residual)
            sigmoids = [1 / (1 + math.exp(-raw)) for raw in (process.raw_amplitude, process.raw_noise)]
            slopes = 0.5 * np.sum(outer * unit) * sigmoids[0], 0.5 * np.trace(outer) * sigmoids[1]
            process._descend(tuple(slope / len(x) for slope in (-ones @ residual, *slopes)))

    def posterior(self, x, y):
        process, grid = self.process, np.linspace(0, 1, GRID)
        places = np.concatenate([x, grid])
        covariance = process.amplitude * kernel(places, LENGTH_SCALE)
        inside, across = np.split(covariance[: len(x)], [len(x)], axis=1)
        outside = covariance[len(x) :, len(x) :]
        factor = np.linalg.cholesky(inside + process.noise * np.eye(len(x)))
        half = linalg.solve_triangular(factor, np.column_stack([across, y - process.mean]), lower=True)
        half, residual = half[:, :-1], half[:, -1]
        mean = process.mean + half.T @ residual
        return decide(mean, outside - half.T @ half)


def gpytorch_process():
    """A class like the two above that leaves the work to GPyTorch; None where it is not installed."""
    try:
        import gpytorch
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)

    class Process(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(None, None, likelihood)
            self.mean = gpytorch.means.ConstantMean()
            self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
            self.kernel.base_kernel.lengthscale = LENGTH_SCALE
            self.kernel.base_kernel.raw_lengthscale.requires_grad_(False)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    class GPyTorch:
        def __init__(self):
            constraint = gpytorch.constraints.GreaterThan(NOISE_FLOOR)
            self.likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=constraint)
            self.likelihood.noise = 1e-3
            self.process = Process(self.likelihood).double()
            trained = [parameter for parameter in self.process.parameters() if parameter.requires_grad]
            self.optimizer = torch.optim.Adam(trained, lr=0.01)
            self.objective = gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self.process)

        def fit(self, x, y, mean):
            x, y = torch.from_numpy(x), torch.from_numpy(y)
            self.process.mean.constant.data.fill_(mean)
            self.process.set_train_data(x, y, strict=False)
            self.process.train()
            for _ in range(100):
                self.optimizer.zero_grad()
                (-self.objective(self.process(x), y)).backward()
                self.optimizer.step()

        def posterior(self, x, y):
            self.process.set_train_data(torch.from_numpy(x), torch.from_numpy(y), strict=False)
            self.process.eval()
            with torch.no_grad():
                found = self.process(torch.linspace(0, 1, GRID, dtype=torch.float64))
                return decide(found.mean.numpy(), found.covariance_matrix.numpy())

    return GPyTorch


def decisions(epochs: int, steps: int = 100) -> list[dict]:
    """Seconds and results of each implementation, epoch after epoch of a noisy loss that falls and rises."""
    step = np.arange(epochs * steps)
    losses = 0.5 + 1.8 * (step / len(step) / 0.6 - 1) ** 2 + 0.07 * np.sin(step.astype(float) ** 2)
    kinds = {"ours": Ours, "Cholesky": Cholesky, "GPyTorch": gpytorch_process()}
    processes = {name: kind() for name, kind in kinds.items() if kind}
    random = np.random.default_rng(0)
    seconds, results = {name: [] for name in processes}, {name: [] for name in processes}
    for epoch in range(1, epochs + 1):
        count = epoch * steps
        x, y = np.arange(count) / count, losses[:count]
        samples = [np.sort(random.choice(count, min(count, FIT_POINTS), replace=False))]
        samples += [np.sort(random.choice(count, min(count, POINTS), replace=False)) for _ in range(POSTERIORS)]
        for name in list(processes)[:: 1 if epoch % 2 else -1]:
            started = time.perf_counter()
            processes[name].fit(x[samples[0]], y[samples[0]], float(y.mean()))
            found = [processes[name].posterior(x[chosen], y[chosen]) for chosen in samples[1:]]
            seconds[name].append(time.perf_counter() - started)
            results[name].append(found)
    measured = slice(POINTS // steps, None)  # from the first epoch with as many losses as a posterior takes
    rows = []
    for name in processes:
        ratios = [a / b for a, b in zip(seconds[name][measured], seconds["ours"][measured], strict=True)]
        votes = [[p > CONFIDENCE for p, _ in found] for found in results[name]]
        gap = np.abs(np.asarray(results[name]) - np.asarray(results["ours"]))
        rows.append(
            {
                "implementation": name,
                "milliseconds": round(1000 * statistics.median(seconds[name][measured]), 2),
                "times_ours": round(statistics.median(ratios), 1),
                "goal": DECISION_GOALS.get(name),
                "same_votes": votes == [[p > CONFIDENCE for p, _ in found] for found in results["ours"]],
                "largest_probability_gap": float(f"{gap[..., 0].max():.1e}"),
                "largest_minimum_gap": float(f"{gap[..., 1].max():.1e}"),
            }
        )
    return rows


def stepper(with_autowu: bool, batch_size: int, steps: int, execution: int, rounds: int):
    """A function that trains `steps` steps in one call of `fit`."""
    random = np.random.default_rng(0)
    images = random.normal(size=(batch_size, 28, 28, 1)).astype("float32")
    data = tf.data.Dataset.from_tensors((images, random.integers(0, 10, batch_size))).repeat()
    keras.utils.set_random_seed(0)
    model = build_model(keras, (28, 28), dropout=0.0)
    total = 2 * steps * (rounds + 4)
    if with_autowu:
        # So small a rate that the warm-up lasts: every round decides.
        schedule = schedules.AutoWU(total, max_learning_rate=1e-4, steps_per_check=steps)
        listeners = [callbacks.AutoWU(schedule, verbose=0)]
    else:
        schedule, listeners = keras.optimizers.schedules.ExponentialDecay(1e-5, total // 2, 10.0), []
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.LAMB(schedule), loss, jit_compile=False, steps_per_execution=execution)
    return lambda: model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0, callbacks=listeners)


def steps(batch_size: int, execution: int, rounds: int, count: int) -> dict:
    """Ratio of a step with AutoWU to one with a fixed schedule, and of the latter to itself."""
    variants = [stepper(with_autowu, batch_size, count, execution, rounds) for with_autowu in (True, False, False)]
    found = interleaved.compare(*variants, rounds)
    return {
        "batch_size": batch_size,
        "steps_per_execution": execution,
        "ratio": found.ratio,
        "null": found.null,
        "goal": STEP_GOAL,
        "step_ms": round(1000 * found.seconds / count, 2),
    }


def main() -> None:
    arguments = records.parser(__doc__, "few rounds").parse_args()
    with threadpool_limits(1):
        rows = decisions(epochs=8 if arguments.quick else 30)
    for row in rows:
        print(row, flush=True)
    sizes = ((64, 1, 3, 16),) if arguments.quick else ((64, 1, 15, 48), (64, 16, 15, 48), (256, 1, 11, 16))
    step_rows = []
    for size in sizes:
        step_rows.append(steps(*size))
        print(step_rows[-1], flush=True)
    for name, found in (("autowu", rows), ("autowu_step", step_rows)):
        records.keep(arguments, name, found, versions=common.versions())


if __name__ == "__main__":
    main()
