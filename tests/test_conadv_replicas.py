"""`training.ConAdv` over two virtual devices gives what one device gives on the same global batch."""

import numpy as np
import pytest

from tests.conadv_problem import (
    CLASSES,
    GRAPH,
    RATE,
    X,
    Y,
    adversarial_weights,
    conadv,
    fit,
    layers,
    weights,
    without_normalization,
)
from tests.support import LEGACY, TENSORFLOW, assert_all_close, keras, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

    from tests.test_replicas import mirrored

pytestmark = tensorflow_only("tf.distribute.MirroredStrategy")
IMAGES, ONE_HOT = X[:17].astype("float32"), Y[:17].astype("float32")  # batches of 8, 8 and 1: an empty share


def synchronized():
    """With statistics of the global batch."""
    kind = keras.layers.experimental.SyncBatchNormalization if LEGACY else keras.layers.BatchNormalization
    dense, _, active, output = layers()
    arguments = {"momentum": 0.75} if LEGACY else {"momentum": 0.75, "synchronized": True}
    return keras.Sequential([keras.layers.Input((4,)), dense, kind(**arguments), active, output])


def normalized():
    return keras.Sequential([keras.layers.Input((4,)), *layers()])


def trained(make, replicas, images=IMAGES, **arguments):
    """(the model, its logs) after two epochs."""
    with (mirrored(replicas) if replicas else tf.distribute.get_strategy()).scope():
        model = conadv(make(), compiling=GRAPH | {"optimizer": keras.optimizers.SGD(RATE)}, **arguments)
    return model, fit(model, images, ONE_HOT[: len(images)], epochs=2)


def assert_same_training(make, images=IMAGES, devices=None, **arguments):
    one, logs = trained(make, 0, images, **arguments)
    two, found = trained(make, 2, images, attack_device=devices, **arguments)
    assert_all_close(weights(two), weights(one), 2e-6)
    assert_all_close(adversarial_weights(two), adversarial_weights(one), 2e-6)
    for name in ("loss", "clean_loss", "adversarial_loss"):
        np.testing.assert_allclose(found[name], logs[name], rtol=0, atol=2e-6, err_msg=name)
    assert np.isfinite(found["loss"]).all()


@pytest.mark.parametrize(
    ("staleness", "devices"), [(0, None), (1, None), (2, ["CPU:2", "CPU:3"]), (1, "CPU:2")], ids=str
)
def test_fact_13_two_halves_are_one_batch(staleness, devices):
    assert_same_training(without_normalization, staleness=staleness, devices=devices)


def test_synchronized_normalization():
    assert_same_training(synchronized, IMAGES[:16], staleness=1)


def test_saved_statistics_are_the_mean_of_the_replicas():
    model, _ = trained(normalized, 2, IMAGES[:16], staleness=1)
    layer = model.model.get_layer("normal")
    local = [
        [np.array(value) for value in (variable if LEGACY else variable.value).values]
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
    assert min(np.abs(one - other).max() for one, other in local) > 1e-4
    assert_all_close(weights(model)[4:6], [np.mean(pair, axis=0) for pair in local], 1e-6)
    assert np.isfinite(model.predict(IMAGES, verbose=0)).all()


def test_a_device_for_each_replica_is_needed():
    with pytest.raises(ValueError, match="`attack_device` must be one device, or name one for each replica"):
        trained(without_normalization, 2, staleness=1, attack_device=["CPU:2"])


def test_shapes_of_these_tests():
    assert weights(conadv(without_normalization()))[-1].shape == (CLASSES,)
