"""The six stages of end_to_end.py. Each leaves a record in a folder that no other setting shares."""

import argparse
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import autowu_cifar10
import cifar10_resnet
import common
import end_to_end_plots
import numpy as np
import quantize_cifar10 as quantize

from keras_lsb import callbacks, scaling, schedules
from keras_lsb.training import Microbatched

FACTORS = (1, 2, 4, 8, 16, 32, 64)  # of the base batch size, that the plan shows
POINTS = 120  # of a curve of learning rates
# Of AutoWU's votes, with CIFAR-10 and without: as in autowu_cifar10.py.
CONFIDENCE = {True: 0.95, False: 0.999}
SHARED = ("blocks", "dtype", "seed", "limit_steps")  # settings of every stage
INITIALS = {
    "batch_size": "b",
    "epochs": "e",
    "microbatches": "m",
    "factor": "x",
    "replicas": "r",
    "tuning_epochs": "t",
    "tuning_rate": "rate",
    "target_kernel": "",
}


class Run:
    """What the stages share: flags, data, and the records of those that are done."""

    def __init__(self, arguments):
        import tensorflow as tf

        self.keras, self.arguments, self.records = tf.keras, arguments, {}
        parts = ["cifar10" if arguments.data_dir else "digits", common.flavour(), f"blocks{arguments.blocks}"]
        parts += [f"limit{arguments.limit_steps}"] if arguments.limit_steps else []
        self.folder = arguments.output / "-".join([*parts, arguments.dtype, f"s{arguments.seed}"])

    @functools.cached_property
    def data(self):
        """(images, labels) to train on, (inputs of the network, labels) held out."""
        training, (images, labels) = cifar10_resnet.load(self.arguments.data_dir)
        return training, (cifar10_resnet.scaled(images.astype("float32")), labels)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data[0][0].shape[1:]

    @functools.cached_property
    def representative(self):
        """Training images, as inputs, on which ranges of activations are measured."""
        return cifar10_resnet.scaled(self.data[0][0][: quantize.REPRESENTATIVE].astype("float32"))

    @functools.cached_property
    def network(self):
        """The network that is quantized, with the weights of the training at the planned batch."""
        model = quantize.build_model(self.keras, self.shape, self.arguments.blocks)
        model.load_weights(self.place("lars") / "trained.weights.h5")
        return model

    @functools.cached_property
    def integers(self):
        """The network with what becomes integers, trained on if tf_keras is in use."""
        settings, where = self.settings("quantized"), self.place("quantized")
        return quantize.integer_model(self.keras, settings, where, self.network, *self.data[0], self.representative)

    def settings(self, name: str) -> argparse.Namespace:
        """What the result of a stage depends on."""
        shared = {key: getattr(self.arguments, key) for key in SHARED}
        return argparse.Namespace(**shared, **STAGES[name].settings(self))

    def place(self, name: str) -> Path:
        """The folder of a stage, whose name differs whenever the result may."""
        own = STAGES[name].settings(self)
        return self.folder / "-".join([name, *(f"{INITIALS[key]}{value}" for key, value in own.items())])

    def steps(self, settings) -> int:
        """Updates in an epoch."""
        return common.steps_in_epoch(len(self.data[0][0]), settings)

    def do(self, name: str) -> dict:
        """The record of a stage, made if there is none yet."""
        folder, settings = self.place(name), self.settings(name)
        record = common.finished(folder)
        if record is None:
            folder.mkdir(parents=True, exist_ok=True)
            started = time.time()
            self.keras.backend.clear_session()
            self.keras.utils.set_random_seed(settings.seed)
            record = common.record(
                folder, settings, settings.seed, started, **STAGES[name].make(self, settings, folder)
            )
        self.records[name] = record
        return record


def recipe(run: Run, settings, folder: Path) -> dict:
    """The small batch, which also measures the noise scale."""
    model = quantize.network(run.keras, settings, run.shape)
    # All measurements weigh the same: one batch size has to serve the whole training.
    measured = Microbatched(model, settings.microbatches, decay=1.0)
    optimizer, noise = cifar10_resnet.scaled_lars(run.keras, settings, run.steps(settings)), callbacks.NoiseScale()
    train(run, settings, folder, measured, optimizer, noise)
    estimate = {name: finite(value) for name, value in measured.noise_scale_estimate()._asdict().items()}
    schedule = cifar10_resnet.lars_rate(run.keras, settings, run.steps(settings))
    return {**outcome(run, settings, folder, model, optimizer, schedule), "noise_scale": estimate}


def plan(run: Run, settings, folder: Path) -> dict:
    """How long the planned batch trains, and whether the noise scale calls it useful."""
    measured = run.records["recipe"]
    noise = measured["noise_scale"]
    # Without an upper bound, the lower end: it asks for more epochs.
    used = noise["low"] if noise["simple"] is None else noise["simple"]
    rows = plan_rows(noise, used, settings, measured["steps"])
    (chosen,) = (row for row in rows if row["factor"] == settings.factor)
    return {
        "plan": rows,
        "planned_batch_size": chosen["batch_size"],
        "planned_epochs": math.ceil(round(chosen["epochs"], 6)),
        "useful_batch_size": used,
        "verdict": verdict(chosen["batch_size"], noise),
        "is_useful": chosen["batch_size"] <= used,
    }


def plan_rows(noise: dict, used: float, settings, steps: int) -> list[dict]:
    """Steps and examples at each batch size by the noise scale `used`, and epochs by the ends of its interval."""
    recipe = cifar10_resnet.OPTIMIZERS["lars"][1]
    factor = settings.batch_size / cifar10_resnet.BASE_BATCH_SIZE
    rate, warmup = scaling.legw(recipe["learning_rate"], recipe["warmup_epochs"], factor)
    factors = sorted({*FACTORS, settings.factor})

    def planned(scale: float) -> scaling.Plan:
        return scaling.plan(scale, settings.batch_size, steps, factors, learning_rate=rate, warmup_epochs=warmup)

    # A noise scale far above all batch sizes stands for one without a bound.
    high = 1e9 * settings.batch_size if noise["high"] is None else noise["high"]
    return [
        {
            "factor": row.devices,
            "batch_size": int(row.batch_size),
            "steps": row.steps,
            "examples": row.examples,
            "epochs": settings.epochs * row.cost,
            "epochs_low": settings.epochs * least.cost,
            "epochs_high": settings.epochs * most.cost,
            "cost": row.cost,
            "learning_rate": row.learning_rate,
            "warmup_epochs": row.warmup_epochs,
        }
        for row, least, most in zip(planned(used), planned(high), planned(noise["low"]), strict=True)
    ]


def verdict(batch_size: int, noise: dict) -> str:
    """Whether the noise scale calls a batch useful, in a sentence or two."""
    simple, low, high = noise["simple"], noise["low"], noise["high"]
    if simple is None:
        start = (
            f"The noise scale has no upper bound here: the measurements only say that it is above {low:.3g} examples."
        )
        known = "within that" if batch_size <= low else "above that: whether it is useful is not known"
        return f"{start} The planned batch of {batch_size} is {known}."
    interval = f"{low:.3g} {'and more' if high is None else f'to {high:.3g}'}"
    start = f"The largest useful batch is the noise scale, {simple:.3g} examples ({interval})."
    if batch_size <= simple:
        return f"{start} The planned batch of {batch_size} is within it."
    extent = "the estimate, not its interval" if high is None or batch_size <= high else "its interval as well"
    return (
        f"{start} The planned batch of {batch_size} is BEYOND it, beyond {extent}: there a larger batch costs more in "
        "examples than it saves in steps."
    )


def lars(run: Run, settings, folder: Path) -> dict:
    """The planned batch on several replicas, with the recipe scaled by LEGW and by nothing else."""
    with common.mirrored(settings.replicas).scope():
        model = quantize.network(run.keras, settings, run.shape)
        optimizer = cifar10_resnet.scaled_lars(run.keras, settings, run.steps(settings))
        train(run, settings, folder, model, optimizer)
    schedule = cifar10_resnet.lars_rate(run.keras, settings, run.steps(settings))
    return outcome(run, settings, folder, model, optimizer, schedule)


def autowu(run: Run, settings, folder: Path) -> dict:
    """The same batch, epochs and replicas, with a learning rate that the run finds by itself."""
    total = run.steps(settings) * settings.epochs
    check = max(1, total // autowu_cifar10.CHECKS)
    kind, recipe = cifar10_resnet.OPTIMIZERS["lamb"]
    confidence = CONFIDENCE[bool(run.arguments.data_dir)]
    with common.mirrored(settings.replicas).scope():
        model = quantize.network(run.keras, settings, run.shape)
        schedule = schedules.AutoWU(total, steps_per_check=check, confidence=confidence)
        optimizer, listener = kind(schedule, weight_decay=recipe["weight_decay"]), callbacks.AutoWU(schedule)
        train(run, settings, folder, model, optimizer, listener)
    end_to_end_plots.save(lambda: listener.plot()[0].figure, folder / "autowu.svg")
    controller = schedule.controller
    return {
        **outcome(run, settings, folder, model, optimizer, schedule),
        "check": check,
        "switch_step": controller.switch_step,
        "peak": controller.peak,
        "reason": controller.reason or "none, it ended before",
    }


def quantized(run: Run, settings, folder: Path) -> dict:
    """The network with integers in place of floats, as Keras simulates it."""
    tuned = common.flavour() == "tf_keras"
    return {
        "accuracy": quantize.accuracy_of(run.integers, *run.data[1]),
        "steps": run.steps(settings) * settings.tuning_epochs if tuned else None,
        "history": common.history(folder / "quantization-aware") if tuned else {},
    }


def file(run: Run, settings, folder: Path) -> dict:
    """The LiteRT files and the proof of the integer one."""
    contents = quantize.make_files(run.network, run.integers, run.representative, settings.target_kernel)
    rows, proof = quantize.measure_files(contents, run.integers, *run.data[1], settings.target_kernel)
    quantize.write_files(folder, contents)
    return {
        "files": rows,
        "accuracy": rows[-1]["accuracy"],
        "float_operators": list(proof.float_operators),
        "ok": proof.ok,
        "report": str(proof),
        **quantize.numbers_of(proof),
    }


def train(run: Run, settings, folder: Path, model, optimizer, *listeners) -> None:
    quantize.train(
        run.keras,
        model,
        settings,
        *run.data[0],
        folder,
        optimizer=optimizer,
        epochs=settings.epochs,
        listeners=listeners,
    )


def outcome(run: Run, settings, folder: Path, model, optimizer, schedule) -> dict:
    """What a training has come to: weights in a file, and numbers."""
    trained = quantize.in_float32(run.keras, settings, model.get_weights(), run.shape)
    trained.save_weights(folder / "trained.weights.h5")
    steps, history = run.steps(settings) * settings.epochs, common.history(folder)
    places = np.unique(np.linspace(0, steps - 1, POINTS).astype(int)).tolist()
    return {
        "steps": steps,
        "updates": int(optimizer.iterations.numpy()),
        "accuracy": quantize.accuracy_of(trained, *run.data[1]),
        "history": {name: [finite(value) for value in values] for name, values in history.items()},
        "rates": {"steps": places, "values": [float(schedule(step)) for step in places]},
    }


def finite(value):
    """A number as JSON takes it: None stands for infinity and NaN."""
    return value if math.isfinite(value) else None


class Stage(NamedTuple):
    title: str
    settings: Callable[[Run], dict]  # besides those that all stages share, in the order of the folder's name
    make: Callable[[Run, argparse.Namespace, Path], dict]


def _of_recipe(run: Run) -> dict:
    flags = run.arguments
    return {"batch_size": flags.base_batch_size, "epochs": flags.epochs, "microbatches": flags.microbatches}


def _of_plan(run: Run) -> dict:
    return {**_of_recipe(run), "factor": run.arguments.factor}


def _of_large(run: Run) -> dict:
    planned = run.records["plan"]
    sizes = {"batch_size": planned["planned_batch_size"], "epochs": planned["planned_epochs"]}
    return {**sizes, "replicas": run.arguments.replicas}


def _of_quantized(run: Run) -> dict:
    flags = run.arguments
    return {**_of_large(run), "tuning_epochs": flags.tuning_epochs, "tuning_rate": flags.tuning_rate}


def _of_file(run: Run) -> dict:
    return {**_of_quantized(run), "target_kernel": run.arguments.target_kernel}


STAGES = {
    "recipe": Stage("A recipe at a small batch, and its noise scale", _of_recipe, recipe),
    "plan": Stage("The plan for a larger batch", _of_plan, plan),
    "lars": Stage("The planned batch: LARS and LEGW", _of_large, lars),
    "autowu": Stage("The planned batch: AutoWU", _of_large, autowu),
    "quantized": Stage("Integers in place of floats", _of_quantized, quantized),
    "file": Stage("The file and its proof", _of_file, file),
}
