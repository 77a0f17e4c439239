"""Batch normalization on replicas: what evaluates, predicts and saves has the mean of the replicas' statistics."""

import numpy as np
import pytest

from keras_lsb import distribute
from tests.support import LEGACY, TENSORFLOW, assert_all_close, assert_close, keras, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

    from tests.test_replicas import mirrored

pytestmark = tensorflow_only("tf.distribute.MirroredStrategy")

REPLICAS, SHARE, MOMENTUM, EPSILON = 4, 8, 0.75, 1e-3
_random = np.random.default_rng(5)
# Each replica sees values of its own size, so that its statistics are far from those of the others.
X = (_random.normal(size=(64, 3)) + np.tile(np.repeat(np.arange(4.0), SHARE), 2)[:, None]).astype("float32")
Y = _random.normal(size=(64, 1)).astype("float32")


def network(**arguments):
    inputs = keras.layers.Input((3,))
    layer = keras.layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, **arguments)
    return keras.Sequential([inputs, layer, keras.layers.Dense(1, name="output")])


def trained(replicas=REPLICAS, epochs=1, build=network, **arguments):
    strategy = mirrored(replicas) if replicas else tf.distribute.get_strategy()
    with strategy.scope():
        model = build(**arguments)
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    if epochs:
        model.fit(X, Y, batch_size=REPLICAS * SHARE, epochs=epochs, shuffle=False, verbose=0)
    return model


def expected_statistics(epochs=1):
    """Moving mean and variance, each the mean of what the replicas have seen."""
    means, variances = np.zeros((REPLICAS, 3)), np.ones((REPLICAS, 3))
    for _ in range(epochs):
        for batch in X.astype("float64").reshape(2, REPLICAS, SHARE, 3):
            means += (1 - MOMENTUM) * (batch.mean(axis=1) - means)
            variances += (1 - MOMENTUM) * (batch.var(axis=1) - variances)
    assert np.ptp(means, axis=0).min() > 0.5
    return means.mean(axis=0), variances.mean(axis=0)


def statistics(model):
    """(moving mean, moving variance), whatever wrote them."""
    return model.get_weights()[2:4]


def local(variable):
    """What each replica has."""
    variable = variable if LEGACY else variable.value
    return [value.numpy() for value in variable.values]


def test_weights_are_those_of_the_average():
    assert_all_close(statistics(trained()), expected_statistics(), 1e-6)


@pytest.mark.parametrize("reader", ["evaluate", "predict"])
def test_what_reads_gives_each_replica_the_average(reader):
    model = trained()
    layer = model.layers[0]
    assert np.ptp(local(layer.moving_mean), axis=0).min() > 0.5
    arguments = (X, Y) if reader == "evaluate" else (X,)
    found = getattr(model, reader)(*arguments, batch_size=REPLICAS * SHARE, verbose=0)
    for variable, mean in zip((layer.moving_mean, layer.moving_variance), expected_statistics(), strict=True):
        for value in local(variable):
            assert_close(value, mean, 1e-6)
    one = trained(0, epochs=0)
    one.set_weights(model.get_weights())
    assert_close(found, getattr(one, reader)(*arguments, verbose=0), 1e-5)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_files_hold_the_average(tmp_path, name):
    model, path = trained(), tmp_path / name
    one = trained(0, epochs=0)
    if name == "model.keras":
        model.save(path)
        one = keras.models.load_model(path)
    else:
        model.save_weights(path)
        one.load_weights(path)
    assert_all_close(statistics(one), expected_statistics(), 1e-6)


def test_validation_of_each_epoch_sees_the_average():
    with mirrored(REPLICAS).scope():
        model = network()
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    history = model.fit(
        X, Y, batch_size=32, epochs=2, shuffle=False, verbose=0, validation_data=(X, Y), validation_batch_size=32
    )
    one = trained(0, epochs=0)
    for epochs, loss in enumerate(history.history["val_loss"], 1):
        one.set_weights([*model.get_weights()[:2], *expected_statistics(epochs), *model.get_weights()[4:]])
        assert loss == pytest.approx(one.evaluate(X, Y, verbose=0), rel=1e-5)


def test_training_goes_on_as_if_nothing_had_been_averaged():
    model = trained()
    distribute.average_batch_statistics(model)
    model.fit(X, Y, batch_size=32, shuffle=False, verbose=0)
    assert_all_close(statistics(model), expected_statistics(2), 1e-6)


def test_statistics_in_nested_models_and_of_layers_that_do_not_train():
    def build():
        inner = network()
        frozen = keras.layers.BatchNormalization(trainable=False)
        return keras.Sequential([keras.layers.Input((3,)), inner, frozen])

    model = trained(build=build)
    assert_all_close(statistics(model.layers[0]), expected_statistics(), 1e-6)
    assert_all_close(model.layers[1].get_weights()[2:], [[0.0], [1.0]], 0)


def test_layers_may_come_later():
    """The average is that of the layers that a model has when it is read."""
    with mirrored(2).scope():
        first, second = network(), network()
        model = keras.Sequential([keras.layers.Input((3,)), first])
        distribute.average_batch_statistics(model)
        model.add(keras.layers.Dense(3))
        model.add(second)
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    model.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
    model.predict(X, verbose=0)
    values = local(second.layers[0].moving_variance)
    assert_close(values[0], values[1], 0)
    assert np.abs(values[0] - 1).max() > 1e-3


def test_synchronized_statistics_are_left_alone():
    model = trained(synchronized=True)
    before = local(model.layers[0].moving_mean)
    assert_close(before[0], before[1], 0)
    model.predict(X, verbose=0)
    assert_all_close(local(model.layers[0].moving_mean), before, 0)


def test_nothing_to_average_without_replicas():
    model = trained(0)
    before = model.get_weights()
    distribute.average_batch_statistics(model)
    assert_all_close(model.get_weights(), before, 0)
