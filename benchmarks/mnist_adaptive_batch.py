"""An adaptive batch on MNIST against the best fixed one: predicted and measured saving in steps at equal examples.

    python benchmarks/mnist_adaptive_batch.py --data-dir DATA

Needs `benchmarks/results/mnist_critical_batch.json`, the sweep over fixed batch sizes with the same network, goals,
smoothing and seeds. An adaptive run starts at batch 16 and ends where its smoothed loss reaches the goal. Its steps are
compared with those of a fixed batch that takes as many examples: on the hyperbola fitted to the sweep, and on the line
in log space between the two runs of the grid on either side. Writes `benchmarks/results/mnist_adaptive_batch.json`.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import common  # noqa: E402
from critical_batch import first_steps  # noqa: E402
from mnist_cnn import build_model  # noqa: E402

from keras_lsb.scaling import AdaptiveGain  # noqa: E402

BATCH_SIZE, MAX_BATCH_SIZE, MICROBATCHES = 16, 2048, 2


def adaptive_run(tf, data, seed: int, learning_rate: float, goal: float, exchange_rate: float, arguments) -> dict:
    """Trains to the goal: updates, examples, and what the noise scales of the run predict."""
    from keras_lsb.callbacks import AdaptiveBatch
    from keras_lsb.training import Microbatched

    keras = tf.keras
    keras.utils.set_random_seed(seed)
    model = Microbatched(build_model(keras, data[0].shape[1:3], arguments.policy), MICROBATCHES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, jit_compile=False)
    adaptive = AdaptiveBatch(exchange_rate, batch_size=BATCH_SIZE, max_batch_size=MAX_BATCH_SIZE, verbose=0)

    class Goal(keras.callbacks.Callback):
        """Mean loss of each update; ends the training once the smoothed loss has reached the goal."""

        losses, waiting = [], []

        def on_epoch_begin(self, epoch, logs=None):
            self.total = 0.0

        def on_train_batch_end(self, batch, logs=None):
            total = (batch + 1) * float(logs["loss"])
            self.waiting.append(total - self.total)
            self.total = total
            if not self.model.pending_batches:
                self.losses.append(statistics.fmean(self.waiting))
                self.waiting.clear()
                if len(self.losses) % 10 == 0:
                    self.model.stop_training = first_steps(np.array(self.losses), [goal])[0] is not None

    reached = Goal()
    reached.losses, reached.waiting = [], []
    usable = len(data[0]) // BATCH_SIZE * BATCH_SIZE
    model.fit(
        data[0][:usable],
        data[1][:usable],
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        verbose=0,
        callbacks=[reached, adaptive],
    )
    (steps,) = first_steps(np.array(reached.losses), [goal])
    sizes = adaptive.batch_sizes[:steps]
    return {
        "seed": seed,
        "learning_rate": learning_rate,
        "goal": goal,
        "steps": steps,
        "examples": None if steps is None else sum(sizes),
        "last_batch": sizes[-1],
        "gamma": None if adaptive.gain is None else round(adaptive.gain.gamma, 4),
    }


def fixed_steps(examples: float, fit: dict, grid: list[dict]) -> dict:
    """Steps of a fixed batch that takes `examples`: on the fitted hyperbola, and between the runs of the grid."""
    points = sorted((row["batch_size"] * row["steps"], row["steps"]) for row in grid)
    logs = np.log(np.array(points))
    return {
        "fitted": fit["min_steps"] * (1 + 1 / (examples / fit["min_examples"] - 1)),
        "grid": float(np.exp(np.interp(np.log(examples), logs[:, 0], logs[:, 1]))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder with MNIST of tensorflow-datasets")
    parser.add_argument("--goal", type=float, default=0.05)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.07, 0.1, 0.14, 0.2], help="of batch 16")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="limit of a run")
    parser.add_argument("--policy", default="mixed_bfloat16", help="as in the sweep")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_adaptive_batch"), help="keeps finished runs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    common.set_threads(arguments.threads)
    import tensorflow as tf

    sweep = json.loads((ROOT / "results" / "mnist_critical_batch.json").read_text())
    fit = next(row for row in sweep["rows"] if row["goal"] == arguments.goal)
    grid = [row for row in sweep["steps"] if row["goal"] == arguments.goal]
    (images, labels), _ = common.load_digits(arguments.data_dir)
    data = images[..., None], labels

    def run(seed: int, rate: float) -> dict:
        done = arguments.output / f"goal{arguments.goal:g}-rate{rate:g}-seed{seed}.json"
        if not done.exists():
            found = adaptive_run(tf, data, seed, rate, arguments.goal, fit["critical_batch"], arguments)
            done.write_text(json.dumps(found))
        print(done.read_text(), flush=True)
        return json.loads(done.read_text())

    first, *others = arguments.seeds
    tuning = [run(first, rate) for rate in arguments.learning_rates]
    best = min((row for row in tuning if row["steps"]), key=lambda row: row["steps"])
    rows = [best, *(run(seed, best["learning_rate"]) for seed in others)]
    for row in rows:
        fixed = fixed_steps(row["examples"], fit, grid)
        gain = AdaptiveGain(row["gamma"], fit["min_steps"], fit["min_examples"])
        row["predicted_saving"] = round(1 - gain.steps_ratio(row["examples"]), 4)
        row["saving_fitted"] = round(1 - row["steps"] / fixed["fitted"], 4)
        row["saving_grid"] = round(1 - row["steps"] / fixed["grid"], 4)
    result = {"versions": common.versions(), "goal": arguments.goal, "rows": rows, "tuning": tuning}
    for name in ("predicted_saving", "saving_fitted", "saving_grid"):
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else None
        result[name] = {"mean": round(statistics.fmean(values), 4), "stdev": spread and round(spread, 4)}
    (ROOT / "results" / "mnist_adaptive_batch.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
