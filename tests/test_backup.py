"""BackupAndRestore: a run that was interrupted ends as one that was not; what is damaged or foreign is refused."""

import functools
import json
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_lsb import callbacks, schedules
from keras_lsb.optimizers import LAMB
from tests import registry
from tests.autowu_problem import LONG_ENOUGH, STEPS, fit, made
from tests.microbatches import X, Y, averages, microbatched
from tests.support import TENSORFLOW, assert_all_close, keras, to_numpy
from tests.workers import start

EPOCHS = 4
EAGERLY = {"run_eagerly": True, "jit_compile": False} if TENSORFLOW else {}


class Stop(Exception):
    """Stands for whatever ends a process."""


class StopIn(keras.callbacks.Callback):
    """Ends the training in the middle of an epoch."""

    def __init__(self, epoch, batch=1):
        super().__init__()
        self.epoch, self.batch = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.present = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.present, batch) == (self.epoch, self.batch):
            raise Stop


def small(optimizer="lamb", seed=3, units=4, graph=False):
    """A model that runs eagerly unless told otherwise: so few steps take less time than a graph of them."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.layers.Input((5,)),
            keras.layers.Dense(units, activation="tanh"),
            keras.layers.BatchNormalization(momentum=0.7),
            keras.layers.Dense(2),
        ]
    )
    rate = schedules.LEGW(0.05, base_batch_size=8, batch_size=16, steps_per_epoch=3, warmup_epochs=1)
    model.compile(registry.make(optimizer, learning_rate=rate), "mse", **({} if graph else EAGERLY))
    return model


def train(model, *extra, epochs=EPOCHS, folder=None, **arguments):
    kept = [] if folder is None else [callbacks.BackupAndRestore(folder, **arguments)]
    targets = np.stack([Y, 1 - Y], axis=1).astype("float32")[:48]
    return model.fit(X[:48], targets, 16, epochs, shuffle=False, verbose=0, callbacks=[*kept, *extra])


def state(model):
    return [to_numpy(variable) for variable in [*model.weights, *model.optimizer.variables]]


@functools.cache
def uninterrupted(**arguments):
    """The state in which a training ends that nothing has ended before."""
    model = small(**arguments)
    train(model)
    return state(model)


def interrupted(folder, epoch=2, make=small, **arguments):
    with pytest.raises(Stop):
        train(make(), StopIn(epoch), folder=folder, **arguments)


@pytest.mark.parametrize("optimizer", registry.CLASSES)
def test_resumed_run_is_the_uninterrupted_one(tmp_path, optimizer):
    settings = {"optimizer": optimizer, "graph": True}
    interrupted(tmp_path, make=lambda: small(**settings))
    resumed = small(seed=4, **settings)
    history = train(resumed, folder=tmp_path)
    assert history.epoch == [2, 3]
    assert_all_close(state(resumed), uninterrupted(**settings), 0)


def test_every_other_epoch(tmp_path):
    interrupted(tmp_path, 3, epochs_per_backup=2)
    resumed = small()
    assert train(resumed, folder=tmp_path).epoch == [2, 3]
    assert_all_close(state(resumed), uninterrupted(), 0)


def test_backup_is_removed_at_the_end_and_later_fits_begin_anew(tmp_path):
    folder = tmp_path / "runs" / "backup"
    interrupted(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["backup.json", "epoch-2.weights.h5"]
    model = small()
    train(model, folder=folder)
    assert not folder.exists()
    assert train(model, epochs=2).epoch == [0, 1]


def test_end_may_be_kept(tmp_path):
    model = small()
    train(model, folder=tmp_path, epochs=2, delete_checkpoint=False)
    longer = small()
    assert train(longer, folder=tmp_path).epoch == [2, 3]
    assert_all_close(state(longer), uninterrupted(), 0)


def test_folder_with_files_of_others_is_not_removed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    train(small(), folder=tmp_path, epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_rate_that_a_later_callback_has_changed(tmp_path):
    """The backup is made after all callbacks have seen the end of the epoch, wherever it stands in the list."""

    def make():
        model = small()
        model.compile(LAMB(0.1), "mse", **EAGERLY)
        return model

    def halving():
        return keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, mode="max", verbose=0)

    with pytest.raises(Stop):
        train(make(), halving(), StopIn(2), folder=tmp_path)
    resumed = make()
    train(resumed, folder=tmp_path, epochs=3)
    assert to_numpy(resumed.optimizer.learning_rate) == pytest.approx(0.05)


def test_state_of_autowu(tmp_path):
    whole, resumed, broken = made(), made(), made()
    fit(*whole, epochs=LONG_ENOUGH)
    with pytest.raises(Stop):
        fit(*broken, callbacks.BackupAndRestore(tmp_path), StopIn(LONG_ENOUGH // 2, STEPS - 1), epochs=LONG_ENOUGH)
    fit(*resumed, callbacks.BackupAndRestore(tmp_path), epochs=LONG_ENOUGH)
    assert_all_close(state(resumed[0]), state(whole[0]), 0)
    assert resumed[1].schedule.controller.state_dict() == whole[1].schedule.controller.state_dict()
    assert whole[1].schedule.controller.switch_step is not None


def test_averages_of_the_noise_scale(tmp_path):
    def noisy():
        return microbatched(4)

    def run(model, *extra, epochs=EPOCHS):
        return model.fit(X[:48], Y[:48], 16, epochs, shuffle=False, verbose=0, callbacks=list(extra))

    whole, resumed = noisy(), noisy()
    run(whole)
    with pytest.raises(Stop):
        run(noisy(), callbacks.BackupAndRestore(tmp_path), StopIn(2))
    run(resumed, callbacks.BackupAndRestore(tmp_path))
    assert averages(resumed) == averages(whole)
    assert_all_close(state(resumed), state(whole), 0)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(folder, match, make=small):
    before = contents(folder)
    model = make()
    weights = [to_numpy(weight) for weight in model.weights]
    with pytest.raises(ValueError, match=match):
        train(model, folder=folder)
    assert contents(folder) == before
    assert_all_close([to_numpy(weight) for weight in model.weights], weights, 0)


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_damaged_weights_are_refused_and_left_alone(tmp_path, damage):
    interrupted(tmp_path)
    path = tmp_path / "epoch-2.weights.h5"
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    refused(tmp_path, rf"folder='{tmp_path}' is damaged: epoch-2.weights.h5 is (missing|not what was written)")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch": 2}'])
def test_damaged_record(tmp_path, text):
    interrupted(tmp_path)
    (tmp_path / "backup.json").write_text(text)
    refused(tmp_path, "damaged: backup.json cannot be read")


def test_backup_of_another_version(tmp_path):
    interrupted(tmp_path)
    path = tmp_path / "backup.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 0, "keras_lsb": "0.0.9"}))
    refused(tmp_path, "format 0 of keras_lsb '0.0.9'")


@pytest.mark.parametrize("name", ["training_metadata.json", "checkpoint"])
def test_backup_of_stock_keras(tmp_path, name):
    (tmp_path / name).write_text("{}")
    refused(tmp_path, "keras.callbacks.BackupAndRestore has made")


def test_backup_of_another_optimizer(tmp_path):
    """Keras itself would warn, and go on with slots of zeros."""
    interrupted(tmp_path, make=lambda: small("lars"))
    refused(tmp_path, r"It has \d+ variables, the model and its optimizer have \d+")


def test_backup_of_another_model(tmp_path):
    interrupted(tmp_path)
    refused(tmp_path, r"It has \[.*4.*\], the model \[.*6.*\]", make=lambda: small(units=6))


def test_model_that_is_not_built(tmp_path):
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(LAMB(0.1), "mse")
    callback = callbacks.BackupAndRestore(tmp_path)
    callback.set_model(model)
    with pytest.raises(ValueError, match="built before `fit`"):
        callback.on_train_begin()


@pytest.mark.parametrize(
    ("arguments", "match"), [(("",), "folder=''"), (("x", 0), "epochs_per_backup"), (("x", 1.5), "epochs_per_backup")]
)
def test_arguments(arguments, match):
    folder, *epochs = arguments
    with pytest.raises(ValueError, match=match):
        callbacks.BackupAndRestore(folder, **dict(zip(["epochs_per_backup"], epochs, strict=False)))


class Fill(keras.callbacks.Callback):
    """Lets no file grow beyond some kilobytes once the first backup is there."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def test_full_disk_loses_nothing(tmp_path):
    folder = tmp_path / "backup"
    with start("tests.test_backup", folder, workers=1, folder=tmp_path) as process:
        assert process.wait() == [1]
        log = process.log(0)
    assert "The backup of epoch 2 could not be written" in log
    assert "The backup of epoch 1 is still there" in log
    assert sorted(contents(folder)) == ["backup.json", "epoch-1.weights.h5"]
    resumed = small()
    assert train(resumed, folder=folder).epoch == [1, 2, 3]
    assert_all_close(state(resumed), uninterrupted(), 0)


if __name__ == "__main__":  # in a process of its own, whose disk is full
    train(small(), Fill(), folder=Path(sys.argv[1]))
