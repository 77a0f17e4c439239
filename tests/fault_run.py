"""Trainings of several workers that faults may end: `python -m tests.fault_run train | errors FOLDER`.

`train` uses all that has a state of its own: LAMB, AutoWU, the noise scale, batch statistics and a backup of each
epoch. It notes the state before each epoch, and each step as it begins, in files of the worker.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import tensorflow as tf

from keras_lsb import _keras, callbacks, distribute, schedules
from keras_lsb.optimizers import LAMB
from tests.microbatches import accuracy, compiled, microbatched, small_model
from tests.noise_scale_problem import X, Y, dataset
from tests.support import error_of, keras, to_numpy

BATCH, EPOCHS = 32, 6
STEPS = len(X) // BATCH
PAUSE = 0.02  # seconds before each step, so that a kill finds its point


class Journal(keras.callbacks.Callback):
    """Writes down the epochs, with a digest of the state that each begins with, and the steps."""

    def __init__(self, folder, schedule):
        super().__init__()
        self.folder, self.schedule, self.epoch = folder, schedule, 0

    def note(self, name, line):
        with (self.folder / f"{name}-{INDEX}").open("a") as file:
            file.write(line + "\n")

    def state(self):
        variables = [*self.model.weights, *self.model.optimizer.variables]
        values = [to_numpy(_keras.read(variable)).tolist() for variable in variables]
        return {"values": values, "autowu": self.schedule.controller.state_dict()}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        digest = hashlib.sha256(json.dumps(self.state(), default=str).encode()).hexdigest()
        self.note("epochs", f"{epoch} {digest}")

    def on_train_batch_begin(self, batch, logs=None):
        self.note("steps", str(self.epoch * STEPS + batch))
        time.sleep(PAUSE)


def train(folder: Path) -> dict:
    """Trains, or goes on with a training; the state at its end."""
    keras.utils.set_random_seed(7)
    normalization = keras.layers.BatchNormalization(momentum=0.7, name="normalization")
    schedule = schedules.AutoWU(STEPS * EPOCHS, steps_per_check=2, min_learning_rate=0.01, max_learning_rate=100.0)
    model = microbatched(2, small_model(normalization), optimizer=LAMB(schedule), metrics=[accuracy()])
    journal = Journal(folder, schedule)
    model.fit(
        dataset(X, Y, batch_size=BATCH),
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[
            callbacks.SameSettings(batch_size=BATCH),
            callbacks.BackupAndRestore(folder / "backup"),
            callbacks.NoiseScale(verbose=0),
            callbacks.AutoWU(schedule, verbose=0),
            journal,
        ],
    )
    return json.loads(json.dumps(journal.state(), default=str))


def fit_with(batch_size=BATCH, seed=7, epochs=1, **settings):
    """A training whose workers are meant to differ in the arguments."""
    keras.utils.set_random_seed(seed)
    rate = schedules.LEGW(0.1, base_batch_size=8, batch_size=batch_size, steps_per_epoch=STEPS, warmup_epochs=0.1)
    model = compiled(small_model(), optimizer=LAMB(rate))
    same = callbacks.SameSettings(**settings)
    model.fit(dataset(X, Y, batch_size=BATCH), epochs=epochs, verbose=0, callbacks=[same])


def fit_with_backup_in(folder, epochs=1, **arguments):
    model = compiled(small_model(keras.layers.BatchNormalization()), optimizer=LAMB(0.1))
    backup = callbacks.BackupAndRestore(folder, delete_checkpoint=False, **arguments)
    model.fit(dataset(X, Y, batch_size=BATCH), epochs=epochs, verbose=0, callbacks=[backup])


def errors(folder: Path) -> dict:
    """What workers are told that were started with different settings."""
    plain = error_of(lambda: compiled(small_model()).fit(dataset(X, Y, batch_size=BATCH), epochs=1, verbose=0))
    enabled = [distribute.enable_multi_worker_fit() for _ in range(2)]
    fit_with_backup_in(folder / "shared")
    return {
        "plain": plain,
        "enabled": enabled,
        "none": error_of(fit_with),
        "batch": error_of(lambda: fit_with(batch_size=BATCH * (1 + INDEX))),
        "seed": error_of(lambda: fit_with(seed=7 + INDEX)),
        "epochs": error_of(lambda: fit_with(epochs=1 + INDEX)),
        "passed": error_of(lambda: fit_with(topology={"kind": "ring", "nodes": 4 + INDEX})),
        "missing": error_of(lambda: fit_with(**({"fold": 3} if INDEX else {}))),
        "apart": error_of(lambda: fit_with_backup_in(folder / ("elsewhere" if INDEX else "shared"))),
        "kept": sorted(path.name for path in folder.iterdir()),
        "every_other": error_of(lambda: fit_with_backup_in(folder / "other", 5, epochs_per_backup=2)),
        "shared": error_of(lambda: fit_with_backup_in(folder / "shared")),
    }


INDEX = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]


def main():
    mode, folder = sys.argv[1], Path(sys.argv[2])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        if mode == "train":
            distribute.enable_multi_worker_fit()
        result = {"train": train, "errors": errors}[mode](folder)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
