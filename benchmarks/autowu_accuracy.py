"""AutoWU with nothing tuned against a grid of learning rates and LEGW: MNIST and CIFAR-10, LAMB and AdamP, two batches.

    python benchmarks/autowu_accuracy.py --data-dir DATA --task mnist
    python benchmarks/autowu_accuracy.py --data-dir DATA --task cifar10

DATA is a TensorFlow Datasets folder. The grid is a linear warm-up of LEGW's length and a cosine decay; its peak rates
are a factor of two apart and are followed in the direction that is better until they get worse, with one seed. The best
one, the rate that LEGW derives from the best at batch 256, and AutoWU run with three seeds. Accuracy is that of
held-out training images at the end. Runs that have finished are kept in `--output`, so that it goes on where it was
stopped; `benchmarks/results/autowu_TASK.json` holds what there is so far.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import cifar10_resnet  # noqa: E402
import common  # noqa: E402
import mnist_cnn  # noqa: E402

OPTIMIZERS = {"lamb": 0.1, "adamp": 0.01}  # and their weight decay
METHODS = ("AutoWU", "best of the grid", "LEGW")
CHECKS = 120  # decisions per run, as many as in the 120 epochs of the paper
BASE_BATCH_SIZE, BASE_WARMUP_EPOCHS = 256, 0.1
START = {"lamb": 0.01, "adamp": 0.004}  # peak rates at batch 1024 from which the grid is followed


class Task(NamedTuple):
    """Data, network and length of a training."""

    load: Callable
    build: Callable
    augment: bool
    epochs: dict[int, int]  # by batch size: fewer would be too few updates for a search within the run


TASKS = {
    "mnist": Task(
        functools.partial(common.load_digits, hold_out=True),
        functools.partial(mnist_cnn.build_model, policy="mixed_bfloat16"),
        augment=False,
        epochs={1024: 10, 4096: 30},
    ),
    "mnist_norm": Task(
        functools.partial(common.load_digits, hold_out=True),
        functools.partial(mnist_cnn.build_model, policy="mixed_bfloat16", momentum=0.9),
        augment=False,
        epochs={1024: 10, 4096: 30},
    ),
    # Of batch normalization: with Keras' momentum of 0.99 its statistics would still hold the start of so short a run.
    "cifar10": Task(
        cifar10_resnet.load,
        functools.partial(cifar10_resnet.build_model, momentum=0.9),
        augment=True,
        epochs={1024: 8, 4096: 24},
    ),
}


class Run(NamedTuple):
    """One training; a learning rate of 0 stands for AutoWU."""

    task: str
    optimizer: str
    batch_size: int
    learning_rate: float
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        return "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in self)


def shifted(images: np.ndarray, random: np.random.Generator, padding: int = 4) -> np.ndarray:
    """A random crop of each padded image, mirrored at random."""
    count, height, width = images.shape[:3]
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=128)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    rows, columns = random.integers(0, 2 * padding + 1, (2, count))
    cropped = np.moveaxis(windows[np.arange(count), rows, columns], 1, -1)
    return np.where(random.integers(0, 2, (count, 1, 1, 1)) == 1, cropped[:, :, ::-1], cropped)


def scaled(images: np.ndarray) -> np.ndarray:
    """The images as the networks take them, of shape (examples, rows, columns, channels)."""
    return (images.astype("float32") - 128) / 64 if images.dtype == np.uint8 else images[..., None]


def train(run: Run, data_dir: str) -> dict:
    """Trains once and returns what is recorded of it."""
    common.set_threads(1)
    import tensorflow as tf

    from keras_lsb import callbacks, optimizers, schedules

    keras, task = tf.keras, TASKS[run.task]
    (images, labels), (held_out_images, held_out_labels) = task.load(data_dir)
    keras.utils.set_random_seed(run.seed)
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = task.build(keras, images.shape[1:])
    steps = -(-len(images) // run.batch_size)
    if run.learning_rate:
        schedule = schedules.LEGW(
            keras.optimizers.schedules.CosineDecay(1.0, decay_steps=run.epochs),
            base_batch_size=BASE_BATCH_SIZE,
            batch_size=run.batch_size,
            steps_per_epoch=steps,
            warmup_epochs=BASE_WARMUP_EPOCHS,
        )
        schedule.multiplier = run.learning_rate
        listeners = []
    else:
        total = steps * run.epochs
        schedule = schedules.AutoWU(total, steps_per_check=max(1, total // CHECKS))
        listeners = [callbacks.AutoWU(schedule)]
    kind = {"lamb": optimizers.LAMB, "adamp": optimizers.AdamP}[run.optimizer]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kind(schedule, weight_decay=OPTIMIZERS[run.optimizer]), loss, metrics=["accuracy"], jit_compile=False)
    random = np.random.default_rng(run.seed)

    def batches():
        order = random.permutation(len(images))
        for start in range(0, len(order), run.batch_size):
            chosen = order[start : start + run.batch_size]
            batch = shifted(images[chosen], random) if task.augment else images[chosen]
            yield scaled(batch), labels[chosen]

    shapes = (tf.TensorSpec((None, *model.input_shape[1:])), tf.TensorSpec((None,), labels.dtype))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=shapes).prefetch(2)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    started = time.time()
    history = model.fit(dataset, epochs=run.epochs, verbose=2, callbacks=listeners)
    held_out_loss, accuracy = model.evaluate(scaled(held_out_images), held_out_labels, batch_size=500, verbose=0)
    found = {}
    if not run.learning_rate:
        controller = schedule.controller
        found = {
            "warmup_steps": controller.switch_step,
            "peak": controller.peak,
            "reason": controller.reason,
            "step_losses": [float(value) for value in listeners[0].losses],
        }
    return {
        **run._asdict(),
        "accuracy": 100 * float(accuracy),
        "held_out_loss": float(held_out_loss),
        "losses": [float(value) for value in history.history["loss"]],
        "steps": steps * run.epochs,
        "warmup_steps": BASE_WARMUP_EPOCHS * steps * run.batch_size / BASE_BATCH_SIZE,
        "seconds": time.time() - started,
        "versions": common.versions(),
        **found,
    }


class Runner:
    """Runs trainings in processes of their own, several at a time, and keeps what they record."""

    def __init__(self, data_dir: str, output: Path, jobs: int):
        self.data_dir, self.output = data_dir, output
        self.pool, self.lock, self.versions = ThreadPoolExecutor(jobs), defaultdict(threading.Lock), None
        output.mkdir(parents=True, exist_ok=True)

    def __call__(self, runs: list[Run]) -> list[dict]:
        return list(self.pool.map(self._run, runs))

    def _run(self, run: Run) -> dict:
        path = self.output / f"{run.name}.json"
        with self.lock[run]:  # two comparisons may ask for the same run
            record = self._record(run, path)
        self.versions = record["versions"]
        return record

    def _record(self, run: Run, path: Path) -> dict:
        if not path.exists():
            command = [sys.executable, __file__, "--data-dir", self.data_dir, "--run", json.dumps(run)]
            with path.with_suffix(".log").open("w") as log:
                environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}  # its batch norm is one fused operation
                subprocess.run(
                    [*command, "--output", str(self.output)], stdout=log, stderr=log, check=True, env=environment
                )
            print(f"{run.name}: {json.loads(path.read_text())['accuracy']:.2f} %", flush=True)
        return json.loads(path.read_text())


def best_rate(runner: Runner, task: str, optimizer: str, batch_size: int, epochs: int) -> float:
    """Follows peak rates that are a factor of two apart until they get worse on both sides; returns the best."""

    def accuracy(rate: float) -> float:
        return runner([Run(task, optimizer, batch_size, rate, 0, epochs)])[0]["accuracy"]

    best = START[optimizer] * (batch_size / 1024) ** 0.5
    runner([Run(task, optimizer, batch_size, rate, 0, epochs) for rate in (best, 2 * best)])
    for factor in (2.0, 0.5):
        while accuracy(factor * best) > accuracy(best):
            best *= factor
    return best


def summary(records: list[dict], method: str) -> dict:
    """Mean and range of the accuracy over the seeds of one setting."""
    values = [record["accuracy"] for record in records]
    peaks = [record.get("peak", record["learning_rate"]) for record in records]
    return {
        **{key: records[0][key] for key in ("optimizer", "batch_size", "epochs", "steps")},
        "method": method,
        "seeds": len(values),
        "mean": round(statistics.fmean(values), 2),
        "lowest": round(min(values), 2),
        "highest": round(max(values), 2),
        "learning_rate": float(f"{statistics.geometric_mean(peaks):.3g}"),
        "warmup_steps": round(statistics.fmean(record["warmup_steps"] for record in records)),
    }


def rate_of(method: str, runner: Runner, task: str, optimizer: str, batch_size: int, epochs: int) -> float:
    """The peak rate of one of `METHODS`; 0 for AutoWU."""
    if method == "AutoWU":
        return 0.0
    if method == "best of the grid":
        return best_rate(runner, task, optimizer, batch_size, epochs)
    return best_rate(runner, task, optimizer, BASE_BATCH_SIZE, epochs) * (batch_size / BASE_BATCH_SIZE) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder of tensorflow-datasets")
    parser.add_argument("--task", choices=TASKS, default="mnist")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--epochs", type=int, help="epochs of each run; another number than the task's is not recorded")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the grid is followed with the first")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/autowu_accuracy"), help="keeps finished runs")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run = Run(*json.loads(arguments.run))
        path = arguments.output / f"{run.name}.json"
        path.with_suffix(".partial").write_text(json.dumps(train(run, arguments.data_dir), indent=1))
        path.with_suffix(".partial").replace(path)
        return
    runner = Runner(arguments.data_dir, arguments.output, arguments.jobs)
    cells = [(optimizer, batch_size) for batch_size in arguments.batch_sizes for optimizer in OPTIMIZERS]

    def row(cell: tuple[str, int], method: str) -> dict:
        epochs = arguments.epochs or TASKS[arguments.task].epochs[cell[1]]
        rate = rate_of(method, runner, arguments.task, *cell, epochs)
        runs = [Run(arguments.task, *cell, rate, seed, epochs) for seed in arguments.seeds]
        return summary(runner(runs), method)

    rows = []
    with ThreadPoolExecutor(len(cells)) as pool:
        for method in arguments.methods:
            rows += pool.map(functools.partial(row, method=method), cells)
    rows.sort(key=lambda row: (row["batch_size"], row["optimizer"]))
    for row in rows:
        print(row)
    if arguments.epochs is None:
        result = {"versions": runner.versions, "task": arguments.task, "rows": rows}
        (ROOT / "results" / f"autowu_{arguments.task}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
