"""What every optimizer class must do inside compile and fit: save, resume, mixed precision, compiled loops."""

import numpy as np
import pytest

from keras_lsb import _keras
from tests import registry
from tests.support import LEGACY, assert_all_close, keras, make_variable, ops, snapshot, tensorflow_only, to_numpy

every_class = pytest.mark.parametrize("name", registry.CLASSES)
_random = np.random.default_rng(11)
X = _random.normal(size=(32, 6)).astype("float32")
Y = _random.normal(size=(32, 2)).astype("float32")


def make_model(seed=3):
    """Dense, batch norm, dense. The kernels are drawn once, so that every model starts alike."""
    model = keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(8, activation="tanh", name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="output"),
        ]
    )
    random = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(random.normal(size=weight.shape) * 0.5)
    return model


def make_optimizer(name, **changes):
    """An optimizer with a rate that changes at every step and that is zero at the first."""
    rate = registry.OPTIMIZERS[name][1]["learning_rate"]
    schedule = registry.make_schedule("legw", keras.optimizers.schedules.CosineDecay(rate, 20), steps_per_epoch=4)
    return registry.make(name, learning_rate=schedule, **changes)


def compiled(name, optimizer=None, **arguments):
    model = make_model()
    model.compile(optimizer=optimizer or make_optimizer(name), loss="mse", **arguments)
    return model


def fit(model, epochs=2, initial_epoch=0, callbacks=(), x=X):
    model.fit(
        x,
        Y,
        batch_size=8,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return model


def weights(model):
    return [np.array(weight, "float64") for weight in model.get_weights()]


@every_class
def test_fit_trains(name):
    model = compiled(name)
    before, loss = weights(model), model.evaluate(X, Y, verbose=0)
    fit(model, epochs=10)
    assert model.evaluate(X, Y, verbose=0) < 0.98 * loss
    moved = [np.abs(after - start).max() > 1e-4 for start, after in zip(before, weights(model), strict=True)]
    assert all(moved)


@every_class
def test_saved_and_reloaded_continues_as_if_never_stopped(name, tmp_path):
    expected = fit(compiled(name), epochs=2)
    model = fit(compiled(name, make_optimizer(name, exclude_from_weight_decay=None)), epochs=1)
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert type(restored.optimizer) is registry.OPTIMIZERS[name][0]
    assert restored.optimizer.get_config() == expected.optimizer.get_config()
    fit(restored, epochs=2, initial_epoch=1)
    assert_all_close(weights(restored), weights(expected), 1e-7)
    before, after = (snapshot(built.optimizer, built.trainable_variables) for built in (expected, restored))
    assert_all_close(after, before, 1e-7)


class _Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@every_class
def test_interrupted_fit_resumes(name, tmp_path):
    expected = fit(compiled(name), epochs=3)

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / ("backup" if LEGACY else "backup.keras")))

    with pytest.raises(KeyboardInterrupt):
        fit(compiled(name), epochs=3, callbacks=[backup(), _Interrupt()])
    resumed = compiled(name)
    if not LEGACY:
        resumed.optimizer.build(resumed.trainable_variables)
    fit(resumed, epochs=3, callbacks=[backup()])
    assert_all_close(weights(resumed), weights(expected), 1e-7)


@tensorflow_only("tf.train.Checkpoint")
@every_class
def test_checkpoint_restores_weights_and_slots(name, tmp_path):
    import tensorflow as tf

    expected = fit(compiled(name), epochs=2)
    model = fit(compiled(name), epochs=1)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    restored = compiled(name)
    restored.optimizer.build(restored.trainable_variables)
    tf.train.Checkpoint(model=restored, optimizer=restored.optimizer).restore(path).assert_existing_objects_matched()
    fit(restored, epochs=2, initial_epoch=1)
    assert_all_close(weights(restored), weights(expected), 1e-7)


@every_class
def test_steps_per_execution(name):
    one, four = compiled(name), compiled(name, steps_per_execution=4)
    assert_all_close(weights(fit(four)), weights(fit(one)), 1e-6)


@every_class
def test_jit_equals_no_jit(name):
    plain, jitted = compiled(name, jit_compile=False), compiled(name, jit_compile=True)
    assert_all_close(weights(fit(jitted)), weights(fit(plain)), 5e-6)


@every_class
def test_fit_traces_once(name, monkeypatch):
    calls, cls = [], registry.OPTIMIZERS[name][0]
    rule = cls.rule
    monkeypatch.setattr(cls, "rule", lambda *args, **kwargs: calls.append(1) or rule(*args, **kwargs))
    model = fit(compiled(name), epochs=1)
    traced = len(calls)
    assert traced > 0
    fit(model, epochs=3, initial_epoch=1)
    assert len(calls) == traced


@pytest.fixture
def policy(request):
    """Sets the global precision for one test."""
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
@every_class
def test_mixed_precision_trains_float32_weights(name, policy):
    model = compiled(name)
    loss = model.evaluate(X, Y, verbose=0)
    fit(model, epochs=6)
    wraps = hasattr(model.optimizer, "inner_optimizer")
    assert wraps == (policy == "mixed_float16")
    inner = model.optimizer.inner_optimizer if wraps else model.optimizer
    assert model.evaluate(X, Y, verbose=0) < loss
    state = snapshot(inner, model.trainable_variables)
    assert all(np.isfinite(array).all() for array in state)
    assert {_keras.dtype_name(slot) for slot in inner._slots[inner.slot_names[0]]} == {"float32"}


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
@every_class
def test_fit_skips_a_step_that_overflows(name, policy):
    broken = X.copy()
    broken[:8] = np.inf
    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(2, name="output")])
    model.compile(optimizer=registry.make(name), loss="mse")
    fit(model, epochs=1, x=broken)
    inner = model.optimizer.inner_optimizer
    # tf_keras' loss scaling counts a skipped step in `iterations`, Keras 3's does not.
    assert int(to_numpy(ops.cast(inner.iterations, "int32"))) == (4 if LEGACY else 3)
    assert all(np.isfinite(array).all() for array in snapshot(inner, model.trainable_variables))


@tensorflow_only("loss scaling by hand")
@every_class
def test_infinite_gradient_changes_nothing(name):
    inner = registry.make(name)
    if LEGACY:
        optimizer = keras.mixed_precision.LossScaleOptimizer(inner, initial_scale=1.0)
    else:
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1.0)
    variables = [make_variable([[1.0, 2.0]], "dense/kernel"), make_variable([0.5], "dense/bias")]
    finite = [ops.convert_to_tensor([[0.5, -1.0]]), ops.convert_to_tensor([2.0])]
    optimizer.apply_gradients(zip(finite, variables, strict=True))
    before = snapshot(inner, variables)
    for bad in (np.inf, np.nan):
        gradients = [ops.convert_to_tensor([[0.5, bad]], "float32"), finite[1]]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        assert_all_close(snapshot(inner, variables)[:-1], before[:-1], 0)
    optimizer.apply_gradients(zip(finite, variables, strict=True))
    # tf_keras' loss scaling counts a skipped step in `iterations`, Keras 3's does not.
    assert int(to_numpy(ops.cast(inner.iterations, "int32"))) == (4 if LEGACY else 2)
