"""`Microbatched` saved, restored, resumed, rebuilt from its config, and traced once."""

import numpy as np
import pytest

from keras_lsb.training import Microbatched
from keras_lsb.training import microbatched as module
from tests.microbatches import X, averages, compiled, fit, microbatched, small_model, weights
from tests.support import LEGACY, TENSORFLOW, keras, tensorflow_only, to_numpy

GROUPS = {"hidden": "hidden", "kernels": "kernel"}


def model_of(microbatches=4, **compile_arguments):
    arguments = {"groups": GROUPS, "decay": 0.9, "interval": 1}
    defaults = {"optimizer": keras.optimizers.SGD(0.3, momentum=0.9)}
    return microbatched(microbatches, arguments=arguments, **(defaults | compile_arguments))


def state(model) -> list:
    rows = [to_numpy(model.averages), to_numpy(model.group_averages), to_numpy(model.measured_batch)]
    return [*weights(model), *rows]


def assert_same_state(model, expected, share: float):
    """Each array within a share of its largest entry: sums over threads are not the same to the last digit."""
    for actual, wanted in zip(state(model), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=share * max(1.0, np.abs(wanted).max()))


@pytest.fixture(scope="module")
def never_stopped():
    """State after one and after three epochs of one fit."""
    keras.utils.set_random_seed(7)
    model, states = model_of(), []
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: states.append(state(model)))
    fit(model, epochs=3, callbacks=[record])
    return states[0], states[-1]


def test_saved_and_reloaded_continues(tmp_path, never_stopped):
    model = model_of()
    fit(model, epochs=1)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored) is Microbatched
    configs = [one.get_config() | {"model": None} for one in (model, restored)]
    assert configs[0] == configs[1]
    assert_same_state(restored, never_stopped[0], 1e-5)
    assert restored.noise_scale_estimate() == model.noise_scale_estimate()
    assert restored.noise_scale_estimate("hidden") == model.noise_scale_estimate("hidden")
    np.testing.assert_allclose(restored.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)
    fit(restored, epochs=3, initial_epoch=1)
    assert_same_state(restored, never_stopped[1], 1e-4)


def test_weights_file_holds_the_averages(tmp_path, never_stopped):
    model = model_of()
    fit(model, epochs=1)
    model.save_weights(tmp_path / "model.weights.h5")
    restored = model_of()
    restored.optimizer.build(restored.trainable_variables)
    restored.load_weights(tmp_path / "model.weights.h5")
    assert_same_state(restored, never_stopped[0], 1e-5)


class _Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_interrupted_fit_resumes(tmp_path, never_stopped):
    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / ("backup" if LEGACY else "backup.keras")))

    with pytest.raises(KeyboardInterrupt):
        fit(model_of(), epochs=3, callbacks=[backup(), _Interrupt()])
    resumed = model_of()
    if not LEGACY:
        resumed.optimizer.build(resumed.trainable_variables)
    fit(resumed, epochs=3, callbacks=[backup()])
    assert_same_state(resumed, never_stopped[1], 1e-4)
    assert averages(resumed)["measurements"] == 12


@tensorflow_only("tf.train.Checkpoint")
def test_checkpoint_restores_the_averages(tmp_path, never_stopped):
    import tensorflow as tf

    model = model_of()
    fit(model, epochs=1)
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    restored = model_of()
    restored.optimizer.build(restored.trainable_variables)
    tf.train.Checkpoint(model=restored).restore(path).assert_existing_objects_matched()
    assert_same_state(restored, never_stopped[0], 1e-5)
    fit(restored, epochs=3, initial_epoch=1)
    assert_same_state(restored, never_stopped[1], 1e-4)


def test_config_round_trip():
    model = Microbatched(small_model(), 3, noise_scale=False, decay=0.5, interval=7, groups=GROUPS, name="split")
    copy = Microbatched.from_config(model.get_config())
    assert copy.get_config() == model.get_config()
    assert (copy.microbatches, copy.noise_scale, copy.decay, copy.interval, copy.name) == (3, False, 0.5, 7, "split")
    assert copy.groups == GROUPS
    assert [v.shape for v in copy.trainable_variables] == [v.shape for v in model.trainable_variables]


def test_wrapped_model_is_exported_by_itself(tmp_path):
    model = model_of()
    fit(model, epochs=1)
    model.model.save(tmp_path / "inner.keras")
    inner = keras.models.load_model(tmp_path / "inner.keras", compile=False)
    assert isinstance(inner, keras.Sequential)
    np.testing.assert_allclose(inner.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True] if TENSORFLOW else [True])  # JAX runs eagerly without
def test_later_epochs_and_fits_trace_nothing(monkeypatch, jit_compile):
    traced, step = [], module.backend_step.train_step
    monkeypatch.setattr(module.backend_step, "train_step", lambda *args: traced.append(1) or step(*args))
    model = model_of(jit_compile=jit_compile)
    fit(model, epochs=1)
    first = len(traced)
    assert first > 0
    fit(model, epochs=3)
    assert len(traced) == first
    model.measure(interval=2)
    fit(model, epochs=1)
    assert len(traced) > first
    again = len(traced)
    model.measure(interval=2, decay=0.9, groups=GROUPS)
    fit(model, epochs=1)
    assert len(traced) == again or not TENSORFLOW


def test_compile_again_keeps_the_averages():
    model = model_of()
    fit(model, epochs=1)
    compiled(model, optimizer=keras.optimizers.SGD(0.1))
    fit(model, epochs=1)
    assert averages(model)["measurements"] == 8
