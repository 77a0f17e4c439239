"""Measures the critical batch size: steps and examples to several training losses, over batch sizes and learning rates.

    python examples/critical_batch.py --data-dir DATA
    python examples/critical_batch.py --batch-sizes 8 32 128 --goals 1 0.5     # scikit-learn's digits, a minute

At each batch size plain SGD runs at a grid of constant learning rates around eps* / (1 + B* / B), and the grid widens
while the best rate lies on its edge. The loss of a run is the mean over the last fifth of its steps, which delays
every run by the same share; a goal is reached at the first step where that mean is at or below it. The rates that are
best with the first seed run again with the others, and steps are geometric means over the seeds. A run ends early once
it can no longer be the fastest to the last goal.

Each run becomes a row of runs.csv as soon as it ends, and an interrupted sweep continues after the last row. Results
are critical_batch.csv (a row for each goal), critical_batch.json and pareto.png.
"""

import argparse
import csv
import itertools
import json
import math
import time
from pathlib import Path

import common
import numpy as np
from mnist_cnn import SGDTrainer, build_model
from tqdm import tqdm

from keras_lsb.scaling import CriticalBatch

WINDOW = 0.2  # share of the steps so far that the loss is averaged over
FIELDS = ("batch_size", "learning_rate", "seed", "outcome", "steps", "seconds")


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Mean of the last fifth of the losses up to each step."""
    sums = np.concatenate([[0.0], np.cumsum(losses, dtype="float64")])
    ends = np.arange(1, len(losses) + 1)
    widths = np.ceil(WINDOW * ends).astype(int)
    return (sums[ends] - sums[ends - widths]) / widths


def first_steps(losses: np.ndarray, goals: list[float]) -> list[int | None]:
    """Steps after which the smoothed loss has first reached each goal, None where it has not."""
    means = smoothed(losses)
    return [int(np.argmax(means <= goal)) + 1 if np.any(means <= goal) else None for goal in goals]


class Sweep:
    """All runs of a sweep, kept in runs.csv."""

    def __init__(self, arguments, data):
        self.arguments, self.goals = arguments, sorted(arguments.goals, reverse=True)
        self.data = data
        self.path = arguments.output / "runs.csv"
        self.fields = [*FIELDS, *(f"loss_{goal:g}" for goal in self.goals)]
        self.runs = {}
        if self.path.exists():
            with self.path.open() as stream:
                rows = csv.DictReader(stream)
                if rows.fieldnames != self.fields:
                    raise SystemExit(f"{self.path} is of a sweep with other --goals: choose another --output.")
                for row in rows:
                    key = int(row["batch_size"]), float(row["learning_rate"]), int(row["seed"])
                    self.runs[key] = [int(row[name]) if row[name] else None for name in self.fields[len(FIELDS) :]]
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(",".join(self.fields) + "\n")

    def run(self, batch_size: int, learning_rate: float, seed: int, last_goal: int, limit: int) -> list[int | None]:
        """Steps to each goal of one run, which ends at goal number `last_goal` or after `limit` steps."""
        key = batch_size, learning_rate, seed
        if key not in self.runs:
            started = time.time()
            losses, outcome = self._train(batch_size, learning_rate, seed, last_goal, limit)
            reached = first_steps(losses, self.goals)
            row = [*key, outcome, len(losses), round(time.time() - started, 2)]
            with self.path.open("a", newline="") as stream:
                csv.writer(stream).writerow([*row, *("" if steps is None else steps for steps in reached)])
            self.runs[key] = reached
        return self.runs[key]

    def _train(self, batch_size, learning_rate, seed, last_goal, limit):
        losses = np.empty(0)
        for chunk in self._trainer(seed).run(batch_size, learning_rate, seed):
            losses = np.concatenate([losses, chunk])
            if not np.isfinite(chunk).all() or np.mean(chunk) > 2 * losses[0]:
                return losses[: np.flatnonzero(np.isfinite(losses))[-1] + 1], "diverged"
            if smoothed(losses)[-1] <= self.goals[last_goal] or first_steps(losses, self.goals)[last_goal]:
                return losses, "reached"
            if len(losses) >= limit:
                return losses, "stopped"

    def _trainer(self, seed: int) -> SGDTrainer:
        """A new one for each run: dropout then does not depend on the runs before, and a sweep can be continued."""
        import tensorflow as tf

        tf.keras.backend.clear_session()
        tf.keras.utils.set_random_seed(seed)
        return SGDTrainer(build_model(tf.keras, self.data[0].shape[1:], self.arguments.policy), *self.data)

    def best(self, batch_size: int, seed: int, goal: int) -> tuple[int, float] | None:
        """Fewest steps to a goal at one batch size and seed, with the learning rate that took them."""
        found = [
            (steps[goal], rate)
            for (size, rate, s), steps in self.runs.items()
            if (size, s) == (batch_size, seed) and steps[goal] is not None
        ]
        return min(found, default=None)

    def search(self, batch_size: int, longest: int, show) -> None:
        """Runs the first seed over the grid of learning rates, and widens the grid while a best rate is on its edge."""
        arguments, seed, last = self.arguments, self.arguments.seeds[0], len(self.goals) - 1
        centre = arguments.peak_rate / (1 + arguments.transition / batch_size) ** arguments.alpha

        def rate_at(position: int) -> float:
            return float(f"{centre * arguments.spacing ** (position - (arguments.rates - 1) / 2):.4g}")

        def run(position: int) -> None:
            show(f"batch {batch_size}, rate {rate_at(position):g}, seed {seed}")
            best = self.best(batch_size, seed, last)
            limit = math.ceil(1.05 * best[0]) if best else longest
            self.run(batch_size, rate_at(position), seed, last, limit)

        low, high = 0, arguments.rates - 1
        for position in sorted(range(arguments.rates), key=lambda p: abs(p - (arguments.rates - 1) / 2)):
            run(position)
        for _ in range(2 * arguments.rates):
            best_rates = {best[1] for goal in range(last + 1) if (best := self.best(batch_size, seed, goal))}
            if not best_rates or rate_at(high) in best_rates:
                high += 1
                run(high)
            if not best_rates or rate_at(low) in best_rates:
                low -= 1
                run(low)
            if best_rates and not {rate_at(low), rate_at(high)} & best_rates:
                break

    def repeat(self, batch_size: int, show) -> None:
        """Runs the chosen learning rates with the other seeds, each to the last goal that it was chosen for."""
        first, *others = self.arguments.seeds
        last_goals = {}
        for goal in range(len(self.goals)):
            if best := self.best(batch_size, first, goal):
                last_goals[best[1]] = goal, best[0]
        for seed, (rate, (goal, steps)) in itertools.product(others, last_goals.items()):
            show(f"batch {batch_size}, rate {rate:g}, seed {seed}")
            self.run(batch_size, rate, seed, goal, 3 * steps)

    def results(self) -> list[dict]:
        """For each goal, batch size and its chosen learning rate: steps as a geometric mean over seeds, and each."""
        rows = []
        for (number, goal), batch_size in itertools.product(enumerate(self.goals), self.arguments.batch_sizes):
            best = self.best(batch_size, self.arguments.seeds[0], number)
            if best is None:
                continue
            steps = [self.runs.get((batch_size, best[1], seed), [None] * 99)[number] for seed in self.arguments.seeds]
            reached = [count for count in steps if count is not None]
            rows.append(
                {
                    "goal": goal,
                    "batch_size": batch_size,
                    "learning_rate": best[1],
                    "seeds": len(reached),
                    "steps": round(math.exp(np.mean(np.log(reached))), 1),
                    "lowest": min(reached),
                    "highest": max(reached),
                }
            )
        return rows


def left_out_error(sizes: list[int], steps: list[float]) -> float:
    """Largest |predicted / measured - 1| over batch sizes left out of the fit one at a time, the ends excepted."""
    errors = []
    for index in range(1, len(sizes) - 1):
        law = CriticalBatch.fit(sizes[:index] + sizes[index + 1 :], steps[:index] + steps[index + 1 :])
        errors.append(abs(law.steps(sizes[index]) / steps[index] - 1))
    return max(errors, default=math.nan)


def fits(rows: list[dict]) -> list[tuple[dict, CriticalBatch]]:
    """The fit of each goal that at least three batch sizes have reached, as a row and as the law."""
    found = []
    for goal, group in itertools.groupby(rows, key=lambda row: row["goal"]):
        group = list(group)
        sizes, steps = [row["batch_size"] for row in group], [row["steps"] for row in group]
        if len(sizes) < 3:
            continue
        law = CriticalBatch.fit(sizes, steps)
        row = {
            "goal": goal,
            "min_steps": round(law.min_steps, 2),
            "min_examples": round(law.min_examples),
            "critical_batch": round(law.critical_batch, 2),
            "stderr": round(law.stderr, 2),
            "log_residual": round(law.log_residual, 3),
            "left_out_error": round(left_out_error(sizes, steps), 3),
        }
        found.append((row, law))
    return found


def save(arguments, sweep: Sweep) -> None:
    """Prints the fits and writes critical_batch.csv, critical_batch.json and pareto.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    rows = sweep.results()
    found = fits(rows)
    if not found:
        raise SystemExit("No goal was reached at three batch sizes: choose higher --goals or a longer --max-epochs.")
    table = [row for row, _ in found]
    with (arguments.output / "critical_batch.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, table[0])
        writer.writeheader()
        writer.writerows(table)
    record = {"versions": common.versions(), "policy": arguments.policy, "fits": table, "steps": rows}
    (arguments.output / "critical_batch.json").write_text(json.dumps(record, indent=1) + "\n")
    ax = None
    for row, law in found:
        ax = law.plot(ax, label=f"loss {row['goal']:g}")
    ax.figure.savefig(arguments.output / "pareto.png", dpi=150)
    print(" ".join(f"{name:>14}" for name in table[0]))
    for row in table:
        print(" ".join(f"{value:>14}" for value in row.values()))
    print(f"Pareto plot: {arguments.output / 'pareto.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", help="folder with MNIST of tensorflow-datasets; without it, scikit-learn's digits"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--goals", type=float, nargs="+", default=[1.0, 0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05])
    parser.add_argument("--rates", type=int, default=4, help="learning rates of the grid at each batch size, at least")
    parser.add_argument("--spacing", type=float, default=2.0, help="factor between neighbouring learning rates")
    parser.add_argument("--peak-rate", type=float, default=0.4, help="eps*: centre of the grid at large batches")
    parser.add_argument("--transition", type=float, default=64, help="B*: batch size where the centre is half of it")
    parser.add_argument("--alpha", type=float, default=1.0, help="exponent of the centre: 1 for SGD and momentum")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-epochs", type=float, default=10, help="limit of a run at the smallest batch size")
    parser.add_argument("--policy", default="float32", help="Keras dtype policy, such as mixed_bfloat16")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--output", type=Path, default=Path("runs/critical_batch"))
    arguments = parser.parse_args()
    arguments.batch_sizes.sort()
    common.set_threads(arguments.threads)
    (images, labels), _ = common.load_digits(arguments.data_dir)
    sweep = Sweep(arguments, (images, labels))
    longest = math.ceil(arguments.max_epochs * len(images) / arguments.batch_sizes[0])
    with tqdm(arguments.batch_sizes, unit="size") as progress:
        for batch_size in progress:
            sweep.search(batch_size, longest, progress.set_postfix_str)
            sweep.repeat(batch_size, progress.set_postfix_str)
            if best := sweep.best(batch_size, arguments.seeds[0], len(sweep.goals) - 1):
                longest = math.ceil(1.5 * best[0])  # a larger batch takes no more steps
    save(arguments, sweep)


if __name__ == "__main__":
    main()
