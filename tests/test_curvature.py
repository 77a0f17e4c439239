"""Curvature along the gradient: formulas by hand, a dense Hessian in float64, and B_noise where it equals B_simple."""

import math

import numpy as np
import pytest

from keras_lsb import scaling
from keras_lsb.training import CurvatureProbe, Microbatched
from tests.microbatches import X, Y, accuracy, compiled, dense, fit, small_model, weights
from tests.reference import noise_scale as reference
from tests.support import LEGACY, TENSORFLOW, assert_all_close, keras, ops, tensorflow_only, to_numpy
from tests.test_microbatched import Lazy, PartlyUsed

# JAX has float64 only where the whole process asks for it.
FLOAT, TOLERANCE = ("float64", 1e-8) if TENSORFLOW else ("float32", 2e-3)
TIGHT = 1e-6 if TENSORFLOW else 1e-3


def by_hand(hessian, gradients, size):
    """(lipschitz, best rate, B_noise, B_simple) of equal small gradients, one per row, by solving for both parts."""
    gradients = np.asarray(gradients)
    big = gradients.mean(0)

    def both_parts(small_form, big_form):
        equations = [[1, 1 / size], [1, 1 / (size * len(gradients))]]
        return np.linalg.solve(equations, [small_form, big_form])

    form, form_noise = both_parts(np.mean([g @ hessian @ g for g in gradients]), big @ hessian @ big)
    signal, trace = both_parts(np.mean([g @ g for g in gradients]), big @ big)
    return abs(big @ hessian @ big) / (big @ big), signal / form, form_noise / form, trace / signal


def forms_of(hessian, gradients):
    """Arguments of `scaling.curvature` for the mean of gradients and for each of them."""
    all_of_them = [np.mean(gradients, 0), *np.asarray(gradients)]
    return [g @ hessian @ g for g in all_of_them], [g @ g for g in all_of_them]


def test_formulas():
    random = np.random.default_rng(4)
    root = random.normal(size=(6, 6))
    hessian, gradients = root @ root.T, random.normal([2, 0, 1, 0, 0, -1], size=(5, 6))
    found = scaling.curvature(*forms_of(hessian, gradients), (4, 20))
    assert found == pytest.approx(by_hand(hessian, gradients, 4), rel=1e-10)
    assert found.noise != pytest.approx(found.simple, rel=0.01)
    # tr(H Sigma) with the unbiased covariance of the small gradients
    covariance = 4 * np.cov(gradients, rowvar=False)
    big = gradients.mean(0)
    form = big @ hessian @ big - np.trace(hessian @ covariance) / 20
    assert found.noise == pytest.approx(np.trace(hessian @ covariance) / form, rel=1e-10)


def test_hessian_that_is_a_multiple_of_the_identity():
    gradients = np.random.default_rng(5).normal(size=(4, 6)) + 1
    found = scaling.curvature(*forms_of(3 * np.eye(6), gradients), (2, 8))
    assert found.lipschitz == pytest.approx(3, rel=1e-12)
    assert found.best_learning_rate == pytest.approx(1 / 3, rel=1e-12)
    assert found.noise == pytest.approx(found.simple, rel=1e-12)


def test_negative_curvature_and_no_gradient():
    found = scaling.curvature([-6.0], [2.0], (8, 8))
    assert found[:2] == (3, math.inf)
    assert np.isnan(found[2:]).all()
    assert np.isnan(scaling.curvature([0.0], [0.0], (8, 8)).lipschitz)
    signs = scaling.curvature([-6.0, -9.0], [2.0, 3.0], (4, 8))
    assert (signs.best_learning_rate, signs.noise) == (math.inf, math.inf)
    assert math.isfinite(signs.simple)


@pytest.fixture
def precise():
    """float64 for one test, where the backend has it."""
    keras.backend.set_floatx(FLOAT)
    keras.mixed_precision.set_global_policy(FLOAT)
    yield
    keras.backend.set_floatx("float32")
    keras.mixed_precision.set_global_policy("float32")


def make_model():
    """168 parameters, trained for two epochs so that nothing is symmetric."""
    model = keras.Sequential(
        [keras.layers.Input((5,)), dense(13, "tanh", 1), dense(4, "tanh", 3), dense(7, "tanh", 4), dense(3, None, 2)]
    )
    model = compiled(model, metrics=[accuracy()])
    fit(model, X.astype(FLOAT), Y)
    return model


def dense_hessian(model, x, y):
    """The Hessian of the mean loss, from nested differentiation of every entry of the gradient."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if TENSORFLOW:
        import tensorflow as tf

        trainable = [v if LEGACY else v.value for v in model.trainable_variables]
        with tf.GradientTape(persistent=True) as outer:
            with tf.GradientTape() as inner:
                value = loss(y, model(x, training=False))
            flat = tf.concat([tf.reshape(g, [-1]) for g in inner.gradient(value, trainable)], 0)
        rows = outer.jacobian(flat, trainable, experimental_use_pfor=False)
        return np.concatenate([row.numpy().reshape(len(flat), -1) for row in rows], 1)
    import jax
    from jax.flatten_util import ravel_pytree

    values, rest = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))
    flat, unravel = ravel_pytree(values)
    return np.asarray(
        jax.hessian(lambda flat: loss(y, model.stateless_call(unravel(flat), rest, x, training=False)[0]))(flat)
    )


def flat_gradient(probe, x, y):
    return np.concatenate([to_numpy(g).ravel() for g in probe._gradient(ops.convert_to_tensor(x), y, None)])


@pytest.mark.usefixtures("precise")
def test_agrees_with_a_dense_hessian():
    x, y = X[:32].astype(FLOAT), Y[:32]
    model = make_model()
    probe = CurvatureProbe(model, x, y, microbatches=8)
    hessian = dense_hessian(model, x, y)
    assert 150 < len(hessian) < 250
    gradients = [flat_gradient(probe, x[start : start + 4], y[start : start + 4]) for start in range(0, 32, 4)]
    np.testing.assert_allclose(np.mean(gradients, 0), flat_gradient(probe, x, y), rtol=0, atol=1e-6)
    found = probe()
    assert found == pytest.approx(by_hand(hessian, gradients, 4), rel=TOLERANCE)
    assert found.noise != pytest.approx(found.simple, rel=0.01)
    assert CurvatureProbe(model, x, y)().lipschitz == pytest.approx(found.lipschitz, rel=TOLERANCE)
    product = probe._product(*probe.batch, probe._gradient(*probe.batch))
    expected = hessian @ flat_gradient(probe, x, y)
    scale = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(np.concatenate([to_numpy(p).ravel() for p in product]), expected, rtol=0, atol=scale)


@pytest.mark.usefixtures("precise")
def test_noise_scales_agree_where_the_hessian_is_a_multiple_of_the_identity():
    """Orthonormal inputs: the squared error of each output has the same curvature along every weight."""
    random = np.random.default_rng(6)
    x = np.tile(np.eye(8), (4, 1)).astype(FLOAT)  # each input in every microbatch
    y = random.normal([3, -2, 1], size=(32, 3)).astype(FLOAT)
    layer = keras.layers.Dense(3, use_bias=False, kernel_initializer=keras.initializers.RandomNormal(seed=2))
    model = keras.Sequential([keras.layers.Input((8,)), layer])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    found = CurvatureProbe(model, x, y, microbatches=4)()
    assert found.lipschitz == pytest.approx(2 / (8 * 3), rel=TIGHT)
    assert found.noise == pytest.approx(found.simple, rel=TIGHT)
    kernel = to_numpy(layer.kernel)
    small = [(2 / 24 * (kernel - y[start : start + 8])).ravel() for start in range(0, 32, 8)]
    signal, trace = reference.measurement(small, [8] * 4)
    assert signal > 0
    assert found.simple == pytest.approx(trace / signal, rel=10 * TIGHT)


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_metrics_and_optimizer_are_untouched(wrapped):
    between = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.3, seed=1)]
    model = small_model(*between)
    model = compiled(Microbatched(model, 4) if wrapped else model, metrics=[accuracy()])
    fit(model, epochs=1)

    def state():
        values = [to_numpy(v) for metric in model.metrics for v in metric.variables]
        optimizer = model.optimizer.variables() if callable(model.optimizer.variables) else model.optimizer.variables
        return [*weights(model), *values, *[to_numpy(ops.cast(v, "float32")) for v in optimizer]]

    before = state()
    probe = CurvatureProbe(model, X[:32], Y[:32], microbatches=4)
    first = probe()
    assert_all_close(state(), before, 0)
    assert probe() == pytest.approx(first, rel=1e-4)  # no dropout
    fit(model, epochs=1)
    assert probe().lipschitz != pytest.approx(first.lipschitz, rel=1e-3)  # at the present weights


def test_sample_weights_count():
    model, heavy = compiled(small_model()), np.ones(32, "float32")
    plain = CurvatureProbe(model, X[:32], Y[:32])()
    doubled = CurvatureProbe(model, X[:32], Y[:32], 2 * heavy)()
    assert doubled.lipschitz == pytest.approx(2 * plain.lipschitz, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_weights_without_gradient_add_nothing():
    models = [compiled(Lazy()), compiled(PartlyUsed())]
    for model in models:
        fit(model, epochs=1)
    used, partly = (CurvatureProbe(model, X[:32], Y[:32], microbatches=4)() for model in models)
    assert len(models[1].trainable_variables) == len(models[0].trainable_variables) + 2
    assert partly == pytest.approx(used, rel=1e-4)


def test_microbatches_must_divide_the_batch():
    with pytest.raises(ValueError, match=r"must divide the batch\. Received: microbatches=5, a batch of 32 examples"):
        CurvatureProbe(compiled(small_model()), X[:32], Y[:32], microbatches=5)
    with pytest.raises(ValueError, match="`microbatches` must be a whole number >= 1"):
        CurvatureProbe(compiled(small_model()), X[:32], Y[:32], microbatches=0)


@tensorflow_only("tf.function")
def test_a_second_measurement_traces_nothing(monkeypatch):
    model = compiled(small_model())
    calls, compute = [], model.compute_loss
    monkeypatch.setattr(model, "compute_loss", lambda *a, **k: calls.append(1) or compute(*a, **k))
    probe = CurvatureProbe(model, X[:32], Y[:32], microbatches=8)
    probe()
    traced = len(calls)
    assert traced > 0
    probe()
    assert len(calls) == traced
