"""MirroredStrategy over virtual CPU devices gives the weights of one device on the same global batch."""

import numpy as np
import pytest

from tests import registry
from tests.support import LEGACY, TENSORFLOW, assert_all_close, keras, make_variable, tensorflow_only, to_numpy

if TENSORFLOW:
    import tensorflow as tf

pytestmark = tensorflow_only("tf.distribute.MirroredStrategy")

CLIPS = {
    None: {},
    "clipnorm": {"clipnorm": 0.02},
    "global_clipnorm": {"global_clipnorm": 0.05},
    "clipvalue": {"clipvalue": 0.01},
}
_random = np.random.default_rng(13)
WORDS = _random.integers(0, 6, size=(24, 3))
TARGETS = _random.normal(size=(24, 2)).astype("float32")
TABLE = _random.normal(size=(6, 4))
KERNEL = _random.normal(size=(4, 2))


def mirrored(replicas):
    # Collectives on CPU keep the size of their first group for the whole process; a plain reduction has no such memory.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(replicas)], tf.distribute.ReductionToOneDevice()
    )


def train_by_hand(make_optimizer, replicas, dtype="float32"):
    """Three steps of a custom loop on batches of 8, with a sparse gradient for the table."""
    strategy = mirrored(replicas) if replicas else tf.distribute.get_strategy()
    with strategy.scope():
        variables = [
            make_variable(TABLE, "embedding/embeddings", dtype),
            make_variable(KERNEL, "dense/kernel", dtype),
            make_variable([0.1, -0.2], "dense/bias", dtype),
        ]
        optimizer = make_optimizer()
        optimizer.build(variables)

    def step(words, targets):
        table, kernel, bias = (
            getattr(variable, "value", variable) if not LEGACY else variable for variable in variables
        )
        with tf.GradientTape() as tape:
            hidden = tf.tanh(tf.reduce_mean(tf.gather(table, words), axis=1))
            error = tf.square(tf.matmul(hidden, kernel) + bias - tf.cast(targets, dtype))
            loss = tf.reduce_sum(error) / 8
        optimizer.apply_gradients(zip(tape.gradient(loss, [table, kernel, bias]), variables, strict=True))

    @tf.function
    def update(words, targets):
        strategy.run(step, args=(words, targets))

    share = 8 // (replicas or 1)

    def shares(array, start):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(array[start + context.replica_id_in_sync_group * share :][:share])
        )

    for start in (0, 8, 16):
        update(shares(WORDS, start), shares(TARGETS, start))
    return [to_numpy(variable) for variable in variables]


@pytest.mark.parametrize(
    ("clip", "replicas"), [(clip, 2) for clip in CLIPS] + [("global_clipnorm", 1), ("clipnorm", 4)]
)
@pytest.mark.parametrize("name", registry.CLASSES)
def test_custom_loop(name, clip, replicas):
    def make():
        return registry.make(name, **CLIPS[clip])

    one = train_by_hand(make, 0)
    assert_all_close(train_by_hand(make, replicas), one, 1e-6)
    assert all(np.abs(end - start).max() > 1e-4 for end, start in zip(one, [TABLE, KERNEL, [0.1, -0.2]], strict=True))


def test_clipping_matters_in_these_tests():
    free = train_by_hand(lambda: registry.make("lars"), 0)
    for clip in ("clipnorm", "global_clipnorm", "clipvalue"):
        bound = train_by_hand(lambda clip=clip: registry.make("lars", **CLIPS[clip]), 0)
        assert np.abs(bound[2] - free[2]).max() > 1e-3


def test_half_precision_weights_on_two_replicas():
    one, two = (train_by_hand(lambda: registry.make("lamb"), replicas, "bfloat16") for replicas in (0, 2))
    # The gradients themselves are rounded to 8 bits before they are summed.
    assert_all_close(two, one, 2**-7)


def train_model(make_optimizer, replicas):
    strategy = mirrored(replicas) if replicas else tf.distribute.get_strategy()
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.layers.Input((3,), dtype="int32"),
                keras.layers.Embedding(6, 4, name="embedding"),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(2, name="output"),
            ]
        )
        model.set_weights([TABLE, KERNEL, np.array([0.1, -0.2])])
        model.compile(optimizer=make_optimizer(), loss="mse", jit_compile=False)
    model.fit(WORDS, TARGETS, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return [np.array(weight, "float64") for weight in model.get_weights()]


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", registry.CLASSES)
def test_fit(name, replicas):
    def make():
        return registry.make(name, **CLIPS["global_clipnorm"])

    assert_all_close(train_model(make, replicas), train_model(make, 0), 1e-6)
