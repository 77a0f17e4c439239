"""What the examples share: flags, the scaling methods they compare, callbacks and the record of a finished run."""

import argparse
import contextlib
import csv
import json
import math
import os
import platform
import time
from importlib import metadata
from pathlib import Path

import keras_lsb
from keras_lsb.schedules import LEGW, LinearWarmup

METHODS = ("legw", "linear", "linear-warmup", "sqrt")


def parse_arguments(
    description: str,
    *,
    batch_size: int,
    epochs: int,
    warmup_epochs: float,
    learning_rate: float,
    stand_in: str = "data that scikit-learn ships",
):
    """The flags of every example; the recipe's numbers at its base batch size are the defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-dir", help=f"folder with the data set; without it, {stand_in}")
    parser.add_argument("--batch-size", type=int, default=batch_size, help="global batch size, in examples")
    parser.add_argument("--base-batch-size", type=int, default=batch_size, help="batch size the recipe was tuned at")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--learning-rate", type=float, default=learning_rate, help="of the recipe")
    parser.add_argument("--warmup-epochs", type=float, default=warmup_epochs, help="of the recipe")
    parser.add_argument("--method", choices=METHODS, default="legw", help="how the recipe is scaled to --batch-size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit-steps", type=int, help="steps per epoch at most, for a quick look")
    parser.add_argument("--hold-out", action="store_true", help="evaluate on training examples kept aside, for tuning")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="checkpoints, logs and results")
    return parser


def with_defaults(arguments, with_data: dict, of_digits: dict):
    """The arguments, with what was not given taken from a setting: one with a data folder, another without."""
    for name, value in (with_data if arguments.data_dir else of_digits).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def set_threads(threads: int) -> None:
    """Limits TensorFlow to `threads` CPU threads; call before anything else uses TensorFlow."""
    if threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def set_virtual_devices(count: int) -> None:
    """Makes so many devices of this machine's CPU; call before anything else uses TensorFlow."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)


def mirrored(count: int):
    """A strategy over the first `count` virtual devices."""
    import tensorflow as tf

    # Collectives on virtual devices keep the size of their first group, and take one of two times, by chance.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(count)], reduction)


@contextlib.contextmanager
def pictures(path: Path, rows: int = 1, columns: int = 1, *, size=(7, 4.5), dpi: int = 150):
    """The axes of a figure without a screen, one or an array of them, which is saved at the end; `size` in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
    yield axes
    figure.savefig(path, dpi=dpi)
    pyplot.close(figure)


@contextlib.contextmanager
def picture(path: Path):
    """The axes of a figure with a grid."""
    with pictures(path) as axes:
        yield axes
        axes.grid(alpha=0.25)


def load_digits(data_dir: str | None, hold_out: bool = False):
    """MNIST, or scikit-learn's digits without a folder: training and test set, each (images, labels).

    Images are float32 in [0, 1], of shape (examples, rows, pixels).
    """
    if data_dir is None:
        from sklearn import datasets

        images, labels = datasets.load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8).astype("float32") / 16
        return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])
    import tensorflow_datasets as tfds

    splits = ["train[:55000]", "train[55000:]"] if hold_out else ["train", "test"]
    parts = tfds.load("mnist", split=splits, data_dir=data_dir, download=False, batch_size=-1, as_supervised=True)
    return [(images[..., 0].astype("float32") / 255, labels) for images, labels in tfds.as_numpy(parts)]


def scaled_schedule(method: str, learning_rate, arguments, steps_per_epoch: float):
    """The recipe's learning rate at the batch size in use, by one of `METHODS`.

    legw: sqrt(k) and k times the warm-up epochs; linear: k without warm-up; linear-warmup: k with the recipe's own
    warm-up epochs; sqrt: sqrt(k) without warm-up.
    """
    factor = arguments.batch_size / arguments.base_batch_size
    if method == "legw":
        return LEGW(
            learning_rate,
            base_batch_size=arguments.base_batch_size,
            batch_size=arguments.batch_size,
            steps_per_epoch=steps_per_epoch,
            warmup_epochs=arguments.warmup_epochs,
            epochs=arguments.epochs,
        )
    return LinearWarmup(
        learning_rate,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=arguments.warmup_epochs if method == "linear-warmup" else 0,
        multiplier=math.sqrt(factor) if method == "sqrt" else factor,
        epochs=arguments.epochs,
    )


def steps_in_epoch(examples: int, arguments) -> int:
    """Updates that `fit` executes per epoch, the ragged last batch included."""
    steps = math.ceil(examples / arguments.batch_size)
    return min(steps, arguments.limit_steps or steps)


def accuracy(keras):
    """The metric that "accuracy" stands for, with its variables: in want of them the first step is traced twice."""
    return keras.metrics.SparseCategoricalAccuracy(name="accuracy")


def run_name(example: str, arguments, seed: int, *details: str) -> str:
    """A name that differs whenever the result may: the folder of one run."""
    batch = f"b{arguments.batch_size}of{arguments.base_batch_size}"
    parts = [example, flavour(), arguments.method, batch, f"e{arguments.epochs}", *details]
    parts += [f"lr{arguments.learning_rate:g}", f"w{arguments.warmup_epochs:g}", f"s{seed}"]
    parts += [f"limit{arguments.limit_steps}"] if arguments.limit_steps else []
    parts += ["holdout"] if arguments.hold_out else []
    return "-".join(parts)


def callbacks(keras, folder: Path) -> list:
    """Resume after an interruption, CSV and TensorBoard logs, and an end to a run whose loss is NaN."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.BackupAndRestore(str(folder / "backup")),
        keras.callbacks.CSVLogger(str(folder / "log.csv"), append=True),
        keras.callbacks.TensorBoard(str(folder / "tensorboard"), write_graph=False),
    ]


def history(folder: Path) -> dict[str, list[float]]:
    """What was logged by epoch, that of an interrupted run included; an epoch that was repeated counts once."""
    with (folder / "log.csv").open() as log:
        rows = list({row["epoch"]: row for row in csv.DictReader(log)}.values())
    names = [name for name in (rows[0] if rows else ()) if name != "epoch" and not name.startswith("val_")]
    return {name: [float(row[name]) for row in rows] for name in names}


def flavour() -> str:
    """The package that `tf.keras` is: keras (Keras 3) or tf_keras."""
    import tensorflow as tf

    return tf.keras.Model.__module__.split(".")[0]


def versions() -> dict:
    """What a recorded number depends on: package versions, Keras flavour, processor count."""
    import tensorflow as tf

    return {
        "keras_lsb": keras_lsb.__version__,
        "tensorflow": tf.__version__,
        flavour(): metadata.version(flavour()),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def finished(folder: Path) -> dict | None:
    """The record of a run that has already finished in `folder`, or None."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def record(folder: Path, arguments, seed: int, started: float, **results) -> dict:
    """Writes the results of a finished run to its folder and returns them."""
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output", "data_dir", "seeds")}
    result = {**results, **settings, "seed": seed, "seconds": time.time() - started, "versions": versions()}
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(folder / "result.json")
    return result
