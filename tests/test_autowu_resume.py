"""A run with `callbacks.AutoWU` that was saved or interrupted goes on as if it had not been."""

import numpy as np
import pytest

from keras_lsb.callbacks import AutoWU
from keras_lsb.scaling import autowu
from keras_lsb.schedules import AutoWU as Schedule
from tests.autowu_problem import EPOCHS, STEPS, TOTAL, Interrupt, Watch, X, batches, by_hand, fit, made, weights
from tests.support import (
    LEGACY,
    TENSORFLOW,
    assert_all_close,
    assert_close,
    keras,
    legacy_only,
    to_numpy,
)

OPTIONS = {"steps_per_check": 6}  # four losses wait when the eighth epoch ends, and one when the seventeenth does
SWITCH, EARLY, LATE = 72, 8, 17  # a step and two epochs
SAME = 2e-6
CLOSE = 1e-4  # to float64


def save_checkpoint(model, path):
    import tensorflow as tf

    tf.train.Checkpoint(model=model).write(str(path / "checkpoint"))


def load_checkpoint(path):
    """The state waits for the callback."""
    import tensorflow as tf

    model, callback = made(options=OPTIONS)
    model.optimizer.build(model.trainable_variables)
    tf.train.Checkpoint(model=model).read(str(path / "checkpoint"))
    return model, callback


def load_weights(name):
    def load(path):
        model, callback = made(options=OPTIONS)
        model.optimizer.build(model.trainable_variables)
        callback.set_model(model)
        model.load_weights(path / name)
        return model, callback

    return load


def load_model(name):
    """With a name that tf_keras forgets in HDF5 files."""
    names = {"AutoWU": Schedule}
    return lambda path: (keras.models.load_model(str(path / name), custom_objects=names), AutoWU(verbose=0))


# Name -> how a model is saved in a folder, and how (model, callback) are made from it.
FORMATS = {
    "keras": (lambda model, path: model.save(path / "model.keras"), load_model("model.keras")),
    "weights": (lambda model, path: model.save_weights(path / "m.weights.h5"), load_weights("m.weights.h5")),
}
if TENSORFLOW:
    FORMATS["checkpoint"] = save_checkpoint, load_checkpoint
if LEGACY:  # a model from an HDF5 file cannot go on in Keras 3
    FORMATS["h5"] = lambda model, path: model.save(str(path / "model.h5")), load_model("model.h5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, callback, weights after each batch) of a run that is saved in all formats twice while it goes on."""
    keras.utils.set_random_seed(7)
    folder, watch = tmp_path_factory.mktemp("saved"), Watch()
    model, callback = made(options=OPTIONS)

    def save(epoch, logs):
        if epoch + 1 in (EARLY, LATE):
            for name, (write, _) in FORMATS.items():
                (folder / f"{name}{epoch + 1}").mkdir()
                write(model, folder / f"{name}{epoch + 1}")

    fit(model, keras.callbacks.LambdaCallback(on_epoch_end=save), callback, watch)
    return folder, callback, watch


def assert_continues(whole, model, callback, start, end):
    """The callback has seen the steps from `start` to `end`, and all is as in the run that was never stopped."""
    _, expected, watch = whole
    assert_close(callback.losses, expected.losses[start:end], SAME)
    assert_all_close(weights(model), watch.weights[end - 1], SAME)
    steps = np.arange(TOTAL, dtype="int32")
    assert_close(to_numpy(callback.schedule(steps)), to_numpy(expected.schedule(steps)), 0)
    found, wanted = callback.schedule.controller, expected.schedule.controller
    assert (found.switch_step, found.peak) == (wanted.switch_step, wanted.peak)
    assert_close(found.losses, wanted.losses, 0)


def test_saving_does_not_disturb(whole):
    _, callback, watch = whole
    hand = by_hand(interval=6)
    assert hand.switch == SWITCH
    assert_close(callback.losses, hand.losses, CLOSE)
    assert_all_close(watch.weights[-1], hand.weights[-1], CLOSE)
    assert callback.schedule.controller.peak == pytest.approx(hand.controller.peak, rel=1e-6)


@pytest.mark.parametrize("saved", [EARLY, LATE])
@pytest.mark.parametrize("name", FORMATS)
def test_saved_during_fit_and_continued(whole, name, saved):
    model, callback = FORMATS[name][1](whole[0] / f"{name}{saved}")
    end = {EARLY: 16, LATE: 19}[saved]
    fit(model, callback, initial_epoch=saved, epochs=saved + 1)
    fit(model, callback, initial_epoch=saved + 1, epochs=end)
    assert_continues(whole, model, callback, saved * STEPS, end * STEPS)


@pytest.mark.parametrize(("saved", "known"), [(EARLY, EARLY * STEPS), (LATE, SWITCH)])
def test_plot_after_a_restart_has_the_losses_of_the_warmup_from_before(whole, saved, known):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    model, callback = FORMATS["keras"][1](whole[0] / f"keras{saved}")
    fit(model, callback, initial_epoch=saved, epochs=saved + 1)
    drawn = callback.plot()[0].lines[0].get_ydata()
    expected = whole[1].losses[: (saved + 1) * STEPS].copy()
    expected[known : saved * STEPS] = np.nan
    assert_close(drawn, expected, SAME)


@pytest.mark.parametrize("name", FORMATS)
def test_file_serves_without_the_callback(whole, name):
    model, _ = FORMATS[name][1](whole[0] / f"{name}{LATE}")
    assert_all_close(weights(model), whole[2].weights[LATE * STEPS - 1], 0)
    model.predict(X, verbose=0)
    if name in ("keras", "h5"):  # where the schedule comes from the file
        fit(model, initial_epoch=LATE, epochs=LATE + 1)
        assert_all_close(weights(model), whole[2].weights[(LATE + 1) * STEPS - 1], SAME)


@pytest.mark.parametrize("name", FORMATS)
def test_state_of_another_version_is_refused(whole, name, monkeypatch):
    monkeypatch.setattr(autowu, "_STATE_VERSION", 2)
    with pytest.raises(ValueError, match=r"writes version 2\. Received: version=1"):
        fit(*FORMATS[name][1](whole[0] / f"{name}{EARLY}"), epochs=1)


@pytest.mark.parametrize("name", FORMATS)
def test_file_without_the_state_is_refused(tmp_path, name):
    model, _ = made(options=OPTIONS)
    fit(model, epochs=2)
    FORMATS[name][0](model, tmp_path)
    model, callback = FORMATS[name][1](tmp_path)
    with pytest.raises(ValueError, match=r"has done 10 updates, while AutoWU has seen 0: .*without the state"):
        fit(model, callback, initial_epoch=2)
    assert_close(callback.losses, [], 0)


@legacy_only("a SavedModel that can be trained on")
@pytest.mark.parametrize("saved", [EARLY, LATE])
def test_saved_model_is_refused_as_it_has_lost_the_updates(tmp_path, saved):
    model, callback = made(options=OPTIONS)
    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: model.save(str(tmp_path), save_format="tf"))
    fit(model, callback, epochs=saved - 1)
    fit(model, save, callback, initial_epoch=saved - 1, epochs=saved)
    loaded = keras.models.load_model(str(tmp_path))
    assert_close(loaded.predict(X, verbose=0), model.predict(X, verbose=0), 1e-5)
    assert loaded.optimizer._learning_rate.get_config() == model.optimizer._learning_rate.get_config()
    with pytest.raises(ValueError, match=rf"has done 0 updates, while AutoWU has seen {saved * STEPS}: one of them"):
        fit(loaded, AutoWU(verbose=0), initial_epoch=saved)


def interrupted(path, first, epoch, batch, epochs, **arguments):
    """(model, callback) of a run that was interrupted and went on; `first` is whether AutoWU is the first callback."""

    def callbacks(*more):
        model, callback = made(options=OPTIONS)
        backup = keras.callbacks.BackupAndRestore(str(path), **arguments)
        return model, callback, [callback, backup, *more] if first else [backup, callback, *more]

    model, _, used = callbacks(Interrupt(epoch, batch))
    with pytest.raises(KeyboardInterrupt):
        fit(model, *used)
    model, callback, used = callbacks()
    fit(model, *used, epochs=epochs)
    return model, callback


@pytest.mark.parametrize("first", [True, False], ids=["autowu_first", "backup_first"])
@pytest.mark.parametrize(("epoch", "end"), [(EARLY, 16), (LATE, 19)], ids=["warmup", "decay"])
def test_backup_of_each_epoch(whole, tmp_path, epoch, end, first):
    model, callback = interrupted(tmp_path, first, epoch, 2, end)
    assert_continues(whole, model, callback, epoch * STEPS, end * STEPS)


@pytest.mark.parametrize("first", [True, False], ids=["autowu_first", "backup_first"])
@pytest.mark.parametrize(
    ("save_freq", "epoch", "batch", "saved"),
    [(4, 9, 0, 44), (6, 14, 2, 72)],
    ids=["between_decisions", "at_the_switch"],
)
def test_backup_of_batches(tmp_path, save_freq, epoch, batch, saved, first):
    """Keras 3 begins the epoch anew, with the weights from its middle; tf_keras ends it with the first batches."""
    model, callback = interrupted(tmp_path, first, epoch, batch, 19, save_freq=save_freq)
    end = 19 * STEPS + (0 if LEGACY else saved % STEPS)
    data = [*(batches() * EPOCHS)[:saved], *(batches() * EPOCHS)[: end - saved]]
    hand = by_hand(1, interval=6, data=data)
    assert_close(callback.losses, hand.losses[saved:], CLOSE)
    assert callback.schedule.controller.switch_step == hand.controller.switch_step
    steps = np.arange(len(hand.rates), dtype="int32")
    assert_close(to_numpy(callback.schedule(steps)), hand.rates, 1e-5)
    assert_all_close(weights(model), hand.weights[-1], CLOSE)
