"""`Microbatched` makes the update of the unsplit batch, in every kind of model and of `compile`."""

import numpy as np
import pytest

from keras_lsb import _keras
from keras_lsb.training import Microbatched
from tests.microbatches import (
    WEIGHTS,
    X,
    Y,
    assert_same_training,
    averages,
    compiled,
    dense,
    fit,
    loss,
    microbatched,
    small_model,
    weights,
)
from tests.support import LEGACY, assert_all_close, keras, ops, tensorflow_only

TABLE = keras.initializers.RandomUniform(seed=3)
TARGETS = np.random.default_rng(8).normal(size=(50, 2)).astype("float32")
WORDS = np.random.default_rng(9).integers(0, 4, size=(50, 3))


def functional():
    inputs = keras.layers.Input((5,))
    hidden = dense(6, "tanh", 1)(inputs)
    return keras.Model(inputs, dense(3, None, 2)(keras.layers.concatenate([hidden, inputs])))


class Lazy(keras.Model):
    """Has no weights before its first batch."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = dense(6, "tanh", 1), dense(3, None, 2)

    def call(self, inputs):
        return self.out(self.hidden(inputs))


class OwnLoss(Lazy):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y_pred - ops.cast(x[:, :3], "float32"))) * 3.0


class PartlyUsed(Lazy):
    """One layer's weights have no gradient."""

    def __init__(self):
        super().__init__()
        self.unused = dense(2, None, 4)

    def build(self, input_shape):
        self.unused.build((None, 5))
        self.hidden.build((None, 5))
        self.out.build((None, 6))
        self.built = True


def several(names):
    """Two inputs of different shape and two outputs; named ones for dicts of arrays."""
    one, two = keras.layers.Input((5,), name="one"), keras.layers.Input((3,), name="two", dtype="int32")
    words = keras.layers.Flatten()(keras.layers.Embedding(4, 2, embeddings_initializer=TABLE)(two))
    hidden = dense(6, "tanh", 1)(keras.layers.concatenate([one, words]))
    outputs = {"kind": dense(3, None, 2, name="kind")(hidden), "values": dense(2, None, 3, name="values")(hidden)}
    if names:
        return keras.Model({"one": one, "two": two}, outputs)
    return keras.Model([one, two], list(outputs.values()))


def regularized():
    return small_model(dense(4, "tanh", 5, kernel_regularizer=keras.regularizers.L2(0.05)))


def frozen():
    model = small_model(dense(4, "tanh", 5))
    model.layers[0].trainable = False
    return model


def words():
    """An embedding, whose gradient TensorFlow gives as rows with duplicates."""
    layers = [keras.layers.Embedding(4, 5, embeddings_initializer=TABLE), keras.layers.GlobalAveragePooling1D()]
    return keras.Sequential([keras.layers.Input((3,), dtype="int32"), *layers, dense(3)])


# Keras 3 on TensorFlow averages the losses of single outputs over batches, whatever their size: no ragged batch here.
BY_NAME = {"x": {"one": X[:48], "two": WORDS[:48]}, "y": {"kind": Y[:48], "values": TARGETS[:48]}}
BY_POSITION = {"x": [X[:48], WORDS[:48]], "y": [Y[:48], TARGETS[:48]]}
TWO_LOSSES = {"loss": {"kind": loss(), "values": "mse"}, "loss_weights": {"kind": 1.0, "values": 0.3}}
# name: (model, microbatches, arguments of compile, arguments of fit)
CASES = {
    "one microbatch": (small_model, 1, {}, {}),
    "four": (small_model, 4, {"metrics": ["accuracy"]}, {}),
    "seven, with a remainder": (small_model, 7, {"metrics": ["accuracy"]}, {}),
    "more than examples": (small_model, 40, {}, {}),
    "functional": (functional, 4, {"metrics": ["accuracy"]}, {}),
    "lazy": (Lazy, 4, {"metrics": ["accuracy"]}, {}),
    "sample weights": (small_model, 3, {"weighted_metrics": ["accuracy"]}, {"sample_weight": WEIGHTS}),
    "class weights": (small_model, 3, {}, {"class_weight": {0: 0.3, 1: 2.0, 2: 1.0}}),
    "dicts": (lambda: several(True), 4, TWO_LOSSES | {"metrics": {"values": ["mae"]}}, BY_NAME),
    "lists": (lambda: several(False), 4, {"loss": [loss(), "mse"], "loss_weights": [1.0, 0.3]}, BY_POSITION),
    "regularized": (regularized, 3, {}, {}),
    "frozen layer": (frozen, 3, {}, {}),
    "weights without gradient": (PartlyUsed, 3, {}, {}),
    "embedding": (words, 3, {}, {"x": WORDS}),
    "own compute_loss": (OwnLoss, 3, {"loss": None}, {}),
    "steps_per_execution": (small_model, 3, {"steps_per_execution": 2, "metrics": ["accuracy"]}, {}),
    "jit_compile": (small_model, 3, {"jit_compile": True}, {}),
    "run_eagerly": (small_model, 3, {"run_eagerly": True, "jit_compile": False, "metrics": ["accuracy"]}, {}),
    "clipped norms": (small_model, 3, {"optimizer": lambda: keras.optimizers.SGD(0.3, clipnorm=0.05)}, {}),
    "clipped global norm": (small_model, 3, {"optimizer": lambda: keras.optimizers.SGD(0.3, global_clipnorm=0.1)}, {}),
}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", CASES)
def test_trains_as_the_unsplit_batch(name):
    make, microbatches, compile_arguments, fit_arguments = CASES[name]

    def arguments():  # an optimizer serves one model
        return {key: value() if key == "optimizer" else value for key, value in compile_arguments.items()}

    plain, wrapped = compiled(make(), **arguments()), microbatched(microbatches, make(), **arguments())
    history = assert_same_training(plain, wrapped, **fit_arguments)
    measured = averages(wrapped)["measurements"]
    assert measured == (0 if microbatches == 1 else 6 if "x" in fit_arguments and name != "embedding" else 8)
    assert ("noise_scale" in history) == (microbatches > 1)


def test_clipping_matters_in_these_tests():
    free = microbatched(3)
    fit(free)
    for name in ("clipped norms", "clipped global norm"):
        model = microbatched(3, optimizer=CASES[name][2]["optimizer"]())
        fit(model)
        assert np.abs(weights(model)[0] - weights(free)[0]).max() > 1e-2
        assert averages(model)["trace"] != pytest.approx(averages(free)["trace"], rel=1e-3)  # other weights
    first = [microbatched(3, optimizer=keras.optimizers.SGD(0.3, **clip)) for clip in ({}, {"global_clipnorm": 1e-3})]
    for model in first:
        fit(model, X[:16], Y[:16], epochs=1)
    assert averages(first[1])["trace"] == pytest.approx(averages(first[0])["trace"], rel=1e-4)  # before the clipping


def test_train_on_batch():
    plain, wrapped = compiled(small_model()), microbatched(4)
    for start in (0, 16, 48):
        batch = X[start : start + 16], Y[start : start + 16]
        plain.train_on_batch(*batch)
        wrapped.train_on_batch(*batch)
    assert_all_close(weights(wrapped), weights(plain), 5e-6)
    assert averages(wrapped)["measurements"] == 3


def test_evaluate_and_predict_are_those_of_the_model():
    wrapped = microbatched(4, metrics=["accuracy"])
    fit(wrapped)
    plain = compiled(wrapped.model, metrics=["accuracy"])
    np.testing.assert_allclose(wrapped.predict(X, verbose=0), plain.predict(X, verbose=0), atol=1e-6)
    np.testing.assert_allclose(wrapped.evaluate(X, Y, verbose=0), plain.evaluate(X, Y, verbose=0), rtol=1e-5)


@pytest.fixture
def policy(request):
    """Sets the global precision for one test."""
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


def loss_scaled(scale):
    wrapper = keras.mixed_precision.LossScaleOptimizer if LEGACY else keras.optimizers.LossScaleOptimizer
    return wrapper(keras.optimizers.SGD(0.3), initial_scale=scale)


def exact_output():
    return keras.layers.Activation("linear", dtype="float32")


def mixed_model():
    return keras.Sequential([*small_model().layers, exact_output()])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_mixed_precision_trains_as_the_unsplit_batch(policy):
    plain, wrapped = compiled(mixed_model()), microbatched(4, mixed_model())
    tolerance = 2e-2 if policy == "mixed_bfloat16" else 2e-3  # gradients of activations are rounded
    assert_same_training(plain, wrapped, atol=tolerance, logs=tolerance)
    assert hasattr(wrapped.optimizer, "inner_optimizer") == (policy == "mixed_float16")
    assert {_keras.dtype_name(variable) for variable in wrapped.trainable_variables} == {"float32"}


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_noise_scale_does_not_depend_on_the_loss_scale(policy):
    models = [microbatched(4, mixed_model(), optimizer=loss_scaled(scale)) for scale in (2.0**4, 2.0**10)]
    for model in models:
        fit(model)
    one, other = map(averages, models)
    assert one["measurements"] == 8
    for name in ("grad_sq_norm", "trace"):
        assert other[name] == pytest.approx(one[name], rel=1e-3)
    keras.mixed_precision.set_global_policy("float32")
    exact = microbatched(4)
    fit(exact)
    assert one["trace"] == pytest.approx(averages(exact)["trace"], rel=2e-2)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_a_batch_that_overflows_is_skipped(policy):
    broken = X.copy()
    broken[20] = np.inf
    model = microbatched(4, mixed_model(), optimizer=loss_scaled(2.0**10))
    fit(model, broken, epochs=1)
    found = averages(model)
    assert (found["measurements"], found["skipped"]) == (3, 1)
    assert all(np.isfinite(value).all() for value in weights(model))


@pytest.mark.parametrize("microbatches", [0, -1, 1.5, "two", None, True])
def test_bad_microbatches(microbatches):
    with pytest.raises(ValueError, match=r"`microbatches` must be a whole number >= 1\. Received"):
        Microbatched(small_model(), microbatches)


def test_bad_arguments():
    for name, value in (("decay", -0.1), ("decay", 1.1), ("interval", 0), ("interval", 2.5)):
        with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: {name}={value}"):
            Microbatched(small_model(), 2, **{name: value})


def test_a_train_step_of_its_own_is_refused():
    class Own(Lazy):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    with pytest.raises(ValueError, match=r"`model` must not override `train_step`.*Received: model of type Own"):
        Microbatched(Own(), 2)
    with pytest.raises(ValueError, match="must not override `train_step`"):
        Microbatched(Microbatched(small_model(), 2), 2)


@tensorflow_only("GradientTape")
def test_gradients_of_the_rows_of_an_embedding_are_summed_before_their_norm():
    import tensorflow as tf

    model = microbatched(2, words(), {"groups": {"table": "embedding"}})
    table = model.trainable_variables[0]
    norms = []
    for part in (slice(0, 8), slice(8, 16), slice(0, 16)):
        with tf.GradientTape() as tape:
            value = loss()(Y[part], model.model(WORDS[part], training=True))
        gradient = tf.convert_to_tensor(tape.gradient(value, getattr(table, "value", table) if not LEGACY else table))
        norms.append(float(tf.reduce_sum(gradient**2)))
    fit(model, WORDS[:16], Y[:16], epochs=1)
    expected = (sum(norms[:2]) / 2 - norms[2]) / (1 / 8 - 1 / 16)
    assert model.noise_scale_estimate("table").trace == pytest.approx(expected, rel=1e-4)
