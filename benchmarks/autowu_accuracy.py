"""AutoWU with nothing tuned against a grid of learning rates and LEGW: MNIST and CIFAR-10, LAMB and AdamP, two batches.

    python benchmarks/autowu_accuracy.py --data-dir DATA --task mnist
    python benchmarks/autowu_accuracy.py --data-dir DATA --task cifar10

DATA is a TensorFlow Datasets folder. The grid is a linear warm-up of LEGW's length and a cosine decay; its peak rates
are a factor of two apart and are followed in the direction that is better until they get worse, with one seed. The best
one, the rate that LEGW derives from the best at batch 256, which is found in shorter runs, and AutoWU run with three
seeds. On demand, `--methods "AutoWU restored"` runs it with `on_divergence="restore"`, and with "rate of AutoWU" the
rate that it found has the schedule of the grid. Accuracy is that of held-out training images at the end.

Runs that have finished are kept in `--output`, so that it goes on where it was stopped; each row goes to
`benchmarks/results/autowu_TASK.json` when its runs are there, in place of the one before, so that parts of the table
can be made on their own. A row's `grid` has the rates that were tried for it and the accuracy with the first seed: at
the row's batch size, or for LEGW at batch 256.

`benchmarks/results/autowu_runs` has finished runs of the tables; as `--output` it adds to them and repeats none.
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
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import records

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import cifar10_resnet  # noqa: E402
import common  # noqa: E402
import mnist_cnn  # noqa: E402

OPTIMIZERS = {"lamb": 0.1, "adamp": 0.01}  # and their weight decay
METHODS = ("AutoWU", "best of the grid", "LEGW", "AutoWU restored", "rate of AutoWU")
SETTING = ("optimizer", "batch_size", "method")  # the number of epochs belongs to the batch size
CHECKS = 120  # decisions per run, as many as in the 120 epochs of the paper
BASE_BATCH_SIZE, BASE_WARMUP_EPOCHS = 256, 0.1
START = {"lamb": 0.01, "adamp": 0.008}  # peak rates at batch 1024 from which the grid is followed


def digits(tf, images, labels, batch_size: int, *, seed: int | None = None):
    """Batches of digits, like those of `cifar10_resnet.batches`: with a seed in a new order in every epoch."""
    random = None if seed is None else np.random.default_rng(seed)

    def batches():
        order = np.arange(len(images)) if random is None else random.permutation(len(images))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield images[chosen][..., None], labels[chosen]

    shapes = (tf.TensorSpec((None, *images.shape[1:], 1)), tf.TensorSpec((None,), labels.dtype))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=shapes).prefetch(2)
    return dataset.apply(tf.data.experimental.assert_cardinality(-(-len(images) // batch_size)))


class Task(NamedTuple):
    """Data, network and length of a training."""

    load: Callable
    build: Callable
    batches: Callable
    epochs: dict[int, int]  # by batch size: fewer would be too few updates for a search within the run
    baseline_epochs: int  # of the search at the base batch size


MNIST = Task(
    functools.partial(common.load_digits, hold_out=True),
    functools.partial(mnist_cnn.build_model, policy="mixed_bfloat16"),
    batches=digits,
    epochs={1024: 10, 4096: 30},
    baseline_epochs=10,
)
TASKS = {
    "mnist": MNIST,
    "mnist_norm": MNIST._replace(build=functools.partial(MNIST.build, momentum=0.9)),
    # Of batch normalization: with Keras' momentum of 0.99 its statistics would still hold the start of so short a run.
    "cifar10": Task(
        cifar10_resnet.load,
        functools.partial(cifar10_resnet.build_model, momentum=0.9),
        batches=cifar10_resnet.batches,
        epochs={1024: 24, 4096: 24},
        baseline_epochs=8,
    ),
}


class Run(NamedTuple):
    """One training; a learning rate of 0 stands for AutoWU, and only it looks at `on_divergence`."""

    task: str
    optimizer: str
    batch_size: int
    learning_rate: float
    seed: int
    epochs: int
    on_divergence: str = "continue"

    @property
    def name(self) -> str:
        values = self if self.on_divergence != "continue" else self[:-1]
        return "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


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
        schedule = schedules.LinearWarmup(
            keras.optimizers.schedules.CosineDecay(run.learning_rate, decay_steps=run.epochs),
            steps_per_epoch=steps,
            warmup_epochs=BASE_WARMUP_EPOCHS * run.batch_size / BASE_BATCH_SIZE,
        )
        listeners, found = [], {"warmup_steps": schedule.warmup_steps}
    else:
        total = steps * run.epochs
        schedule = schedules.AutoWU(total, steps_per_check=max(1, total // CHECKS))
        listeners = [callbacks.AutoWU(schedule, on_divergence=run.on_divergence)]
    kind = {"lamb": optimizers.LAMB, "adamp": optimizers.AdamP}[run.optimizer]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kind(schedule, weight_decay=OPTIMIZERS[run.optimizer]), loss, metrics=["accuracy"], jit_compile=False)
    dataset = task.batches(tf, images, labels, run.batch_size, seed=run.seed).repeat()
    started = time.time()
    history = model.fit(dataset, epochs=run.epochs, steps_per_epoch=steps, verbose=2, callbacks=listeners)
    held_out_loss, accuracy = model.evaluate(task.batches(tf, held_out_images, held_out_labels, 500), verbose=0)
    if not run.learning_rate:
        controller = schedule.controller
        found = {"warmup_steps": controller.switch_step, "peak": controller.peak, "reason": controller.reason}
    return {
        **run._asdict(),
        "accuracy": 100 * float(accuracy),
        "held_out_loss": float(held_out_loss),
        "losses": [float(value) for value in history.history["loss"]],
        "steps": steps * run.epochs,
        "seconds": time.time() - started,
        "versions": common.versions(),
        **found,
    }


class Runner:
    """Runs trainings in processes of their own, several at a time, and keeps what they record."""

    def __init__(self, data_dir: str, output: Path, jobs: int):
        self.data_dir, self.output = data_dir, output
        self.pool, self.lock, self.versions = ThreadPoolExecutor(jobs), threading.Lock(), None
        self.futures: dict[Run, Future] = {}  # two comparisons may ask for the same run
        output.mkdir(parents=True, exist_ok=True)

    def __call__(self, runs: list[Run]) -> list[dict]:
        with self.lock:
            for run in runs:
                if run not in self.futures:
                    self.futures[run] = self.pool.submit(self._record, run)
        done = [self.futures[run].result() for run in runs]
        self.versions = done[0]["versions"]
        return done

    def _record(self, run: Run) -> dict:
        path = self.output / f"{run.name}.json"
        if not path.exists():
            command = [sys.executable, __file__, "--data-dir", self.data_dir, "--run", json.dumps(run)]
            with path.with_suffix(".log").open("w") as log:
                environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}  # its batch norm is one fused operation
                subprocess.run(
                    [*command, "--output", str(self.output)], stdout=log, stderr=log, check=True, env=environment
                )
            print(f"{run.name}: {json.loads(path.read_text())['accuracy']:.2f} %", flush=True)
        return json.loads(path.read_text())


def follow(runner: Runner, run: Run) -> dict[float, float]:
    """Accuracy by peak rate: rates a factor of two apart, from the best in both directions until they are worse."""
    found: dict[float, float] = {}

    def accuracy(rate: float) -> float:
        found[rate] = runner([run._replace(learning_rate=rate)])[0]["accuracy"]
        return found[rate]

    best = START[run.optimizer] * (run.batch_size / 1024) ** 0.5
    runner([run._replace(learning_rate=rate) for rate in (best, 2 * best)])
    for factor in (2.0, 0.5):
        while accuracy(factor * best) > accuracy(best):
            best *= factor
    return found


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


def rate_of(method: str, runner: Runner, runs: list[Run]) -> tuple[float, dict[float, float]]:
    """The peak rate of one of `METHODS`, and what the search for it has measured; `runs` are those of AutoWU."""
    if method in ("AutoWU", "AutoWU restored"):
        return 0.0, {}
    if method == "rate of AutoWU":
        return summary(runner(runs), method)["learning_rate"], {}
    searched = runs[0]
    if method == "LEGW":
        epochs = min(searched.epochs, TASKS[searched.task].baseline_epochs)
        searched = searched._replace(batch_size=BASE_BATCH_SIZE, epochs=epochs)
    found = follow(runner, searched)
    return max(found, key=found.get) * (runs[0].batch_size / searched.batch_size) ** 0.5, found


def draw(path: Path, output: Path, task: str, batch_size: int) -> None:
    """Training losses over the epochs of the finished runs at a batch size, for each optimizer."""
    names = f"{task}-*-{batch_size}-*-{TASKS[task].epochs[batch_size]}.json"  # not those of `AutoWU restored`
    found = [json.loads(file.read_text()) for file in sorted(output.glob(names))]
    with common.pictures(path, columns=len(OPTIMIZERS), size=(9, 4)) as panels:
        for optimizer, axes in zip(OPTIMIZERS, panels, strict=True):
            runs = [record for record in found if record["optimizer"] == optimizer]
            for rate in sorted({record["learning_rate"] for record in runs}):
                losses = np.array([record["losses"] for record in runs if record["learning_rate"] == rate])
                label, style = (f"grid, {rate:g}", ":") if rate else ("AutoWU", "-")
                epochs = np.arange(1, losses.shape[1] + 1)
                (line,) = axes.plot(epochs, losses.mean(axis=0), style, label=label)
                axes.fill_between(epochs, losses.min(0), losses.max(0), alpha=0.2, linewidth=0, color=line.get_color())
            axes.set(yscale="log", xlabel="epoch", ylabel="training loss", title=f"{optimizer}, batch {batch_size}")
            axes.legend()


def main() -> None:
    parser = records.parser(__doc__)
    parser.add_argument("--data-dir", required=True, help="folder of tensorflow-datasets")
    parser.add_argument("--task", choices=TASKS, default="mnist")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:3])
    parser.add_argument("--epochs", type=int, help="epochs of each run; another number than the task's is not recorded")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the grid is followed with the first")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=Path("runs/autowu_accuracy"), help="keeps finished runs")
    parser.add_argument("--figure", type=Path, help="only draw the runs that have finished, at the first batch size")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run = Run(*json.loads(arguments.run))
        path = arguments.output / f"{run.name}.json"
        path.with_suffix(".partial").write_text(json.dumps(train(run, arguments.data_dir), indent=1))
        path.with_suffix(".partial").replace(path)
        return
    if arguments.figure:
        draw(arguments.figure, arguments.output, arguments.task, arguments.batch_sizes[0])
        return
    runner = Runner(arguments.data_dir, arguments.output, arguments.jobs)
    cells = [(optimizer, batch_size) for batch_size in arguments.batch_sizes for optimizer in arguments.optimizers]

    def row(cell: tuple[str, int], method: str) -> dict:
        epochs = arguments.epochs or TASKS[arguments.task].epochs[cell[1]]
        on_divergence = "restore" if method == "AutoWU restored" else "continue"
        runs = [Run(arguments.task, *cell, 0.0, seed, epochs, on_divergence) for seed in arguments.seeds]
        rate, found = rate_of(method, runner, runs)
        runs = [run._replace(learning_rate=rate) for run in runs]
        grid = ", ".join(f"{found[each]:.2f} at {each:.3g}" for each in sorted(found))
        return {**summary(runner(runs), method), "grid": grid or None}

    name, task = f"autowu_{arguments.task}", arguments.task
    rows = [(cell, method) for method in arguments.methods for cell in cells]
    with ThreadPoolExecutor(len(rows)) as pool:
        for future in as_completed([pool.submit(row, *one) for one in rows]):
            print(future.result(), flush=True)
            if arguments.epochs is None:
                found = [future.result()]
                records.keep(arguments, name, found, SETTING, versions=runner.versions, order=order, task=task)


def order(row: dict) -> tuple:
    """Of the rows in the results."""
    return row["batch_size"], row["optimizer"], METHODS.index(row["method"])


if __name__ == "__main__":
    main()
