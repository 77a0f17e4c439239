"""The Gaussian process of AutoWU: likelihood, features of the kernel, posteriors and the fit against dense matrices."""

import json
import math

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from keras_lsb.scaling import gaussian_process as process
from keras_lsb.scaling.gaussian_process import Conditioned, Hyperparameters, Spectrum
from tests.reference import autowu as reference
from tests.support import assert_close

PARAMETERS = [(1.7, 0.0, -7.0), (0.3, -3.0, -12.0), (2.5, 6.0, 1.0), (-1.0, 40.0, -15.0)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Dense matrices of this size are slow on more than one thread."""
    with threadpool_limits(1, "blas"):
        yield


def data(points, seed=4, spread=0.1):
    """Places at random, and losses there: a valley with noise of this standard deviation."""
    random = np.random.default_rng(seed)
    x = np.sort(random.choice(3 * points, points, replace=False)) / (3 * points)
    return x, 2.3 - 3 * x + 3 * x**2 + spread * random.standard_normal(points)


def at(mean, amplitude, noise):
    """Hyperparameters of these values."""
    raw_amplitude, raw_noise = (float(value + np.log(-np.expm1(-value))) for value in (amplitude, noise - 1e-4))
    return Hyperparameters(mean, raw_amplitude, raw_noise)


def test_starts_as_the_authors_do():
    start = Hyperparameters()
    assert start.amplitude == math.log(2)
    assert start.noise == pytest.approx(1e-3, rel=1e-12)
    assert Hyperparameters(raw_noise=-80.0).noise == 1e-4
    assert Hyperparameters(raw_amplitude=800.0, raw_noise=-800.0).amplitude == 800


@pytest.mark.parametrize("length_scale", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_likelihood_agrees_with_a_dense_one(parameters, length_scale):
    x, y = data(60)
    loss, gradient = reference.likelihood(np.array(parameters), x, y, length_scale)
    spectrum = Spectrum.of(x, y, length_scale)
    assert spectrum.loss(*parameters) == pytest.approx(loss, rel=1e-9)
    assert spectrum.gradient(*parameters) == pytest.approx(gradient, rel=1e-8, abs=2e-9)


@pytest.mark.parametrize("parameters", PARAMETERS[:3], ids=str)
@pytest.mark.parametrize("which", range(3))
def test_gradient_is_that_of_the_loss(parameters, which):
    spectrum = Spectrum.of(*data(40), 0.2)
    step = 1e-5 * np.eye(3)[which]
    rise = spectrum.loss(*(parameters + step)) - spectrum.loss(*(parameters - step))
    assert spectrum.gradient(*parameters)[which] == pytest.approx(rise / 2e-5, rel=1e-5, abs=1e-9)


def test_eigenvalues_are_not_negative():
    assert Spectrum.of(*data(100), 1.0).eigenvalues.min() == 0


@pytest.mark.parametrize("length_scale", [0.04, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0])
def test_features_span_the_kernel(length_scale):
    x, z = np.linspace(0, 1, 301), data(40)[0]
    products = process.features(x, length_scale) @ process.features(z, length_scale).T
    assert_close(products, reference.kernel(x, z, length_scale), 1e-12)


@pytest.mark.filterwarnings("ignore:.*encountered in divide:RuntimeWarning")
@pytest.mark.parametrize("length_scale", [0.19, 0.107])
def test_features_at_one_half(length_scale):
    x = np.array([0.25, 0.5])
    features = process.features(x, length_scale)
    assert_close(features @ features.T, reference.kernel(x, x, length_scale), 1e-12)


def test_rank_does_not_grow_with_the_points():
    assert {process.features(np.arange(n) / n, 0.2).shape[1] for n in (1, 10, 3000)} == {19}


@pytest.mark.parametrize(("points", "first_missing"), [(10, 1.0), (90, 1.0), (90, 0.7), (500, 1.0)])
@pytest.mark.parametrize(("amplitude", "noise"), [(0.05, 1.1e-4), (0.7, 1e-3), (50.0, 1.001e-4), (1e-3, 0.5)])
def test_posterior_agrees_with_a_dense_one(amplitude, noise, points, first_missing):
    """The bounds are those of the specification; where places are few or missing, an amplitude of 50 costs digits."""
    x, y = data(points, spread=0.01)
    x, y = x[x < first_missing], y[x < first_missing]
    hyperparameters = at(1.9, amplitude, noise)
    given = Conditioned.on(x, y, hyperparameters, 0.2)
    found, deviation = given.posterior(200), given.deviation(200)
    grid = np.linspace(0, 1, 200)
    mean, covariance = reference.posterior(parameters_of(hyperparameters), x, y, grid, 0.2)
    bridged = amplitude == 50 and (points == 10 or first_missing < 1)
    assert_close(found.mean, mean, 3e-8 if bridged else 3e-9)
    assert_close(deviation**2, np.diag(covariance), 1e-9 * amplitude if bridged else 3e-12)
    assert found.probability == pytest.approx(reference.probability_of_rise(mean, covariance), abs=1e-7)


def parameters_of(hyperparameters):
    return np.array([hyperparameters.mean, hyperparameters.raw_amplitude, hyperparameters.raw_noise])


def test_posterior_of_another_length_scale():
    x, y = data(50)
    grid = np.linspace(0, 1, 77)
    for length_scale in (0.05, 0.7):
        found = Conditioned.on(x, y, at(1.9, 0.3, 2e-3), length_scale).posterior(77)
        mean, covariance = reference.posterior(parameters_of(at(1.9, 0.3, 2e-3)), x, y, grid, length_scale)
        assert_close(found.mean, mean, 3e-9)
        assert found.probability == pytest.approx(reference.probability_of_rise(mean, covariance), abs=1e-9)


def test_far_from_the_losses_the_process_knows_nothing():
    given = Conditioned.on(np.array([0.0, 0.01]), np.array([5.0, 5.0]), at(1.9, 0.3, 2e-3), 0.1)
    assert given.posterior(11).mean[-1] == pytest.approx(1.9, abs=1e-9)
    assert given.deviation(11)[-1] == pytest.approx(math.sqrt(0.3), rel=1e-9)
    assert given.deviation(11)[0] < 0.05


def plain_adam(parameters, x, y, steps, first=0.0, second=0.0, done=0):
    """Adam as it is written in its paper, on the dense likelihood: (parameters, first moments, second moments)."""
    for t in range(done + 1, done + steps + 1):
        gradient = reference.likelihood(parameters, x, y, 0.2)[1]
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        parameters = parameters - 0.01 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return parameters, first, second


def test_fit_is_a_hundred_steps_of_adam_that_go_on():
    (x, y), (more_x, more_y) = data(30), data(50, seed=5)
    fitted, start = Hyperparameters(), parameters_of(Hyperparameters())
    fitted.fit(x, y, 1.5, 0.2)
    expected, first, second = plain_adam(np.array([1.5, *start[1:]]), x, y, 100)
    assert parameters_of(fitted) == pytest.approx(expected, rel=1e-9)
    assert fitted.steps == 100

    fitted.fit(more_x, more_y, 2.5, 0.2)
    expected, first, second = plain_adam(np.array([2.5, *expected[1:]]), more_x, more_y, 100, first, second, 100)
    assert parameters_of(fitted) == pytest.approx(expected, rel=1e-9)
    assert fitted.first_moments == pytest.approx(first, rel=1e-6, abs=1e-12)
    assert fitted.second_moments == pytest.approx(second, rel=1e-6)
    assert fitted.steps == 200

    anew = Hyperparameters()
    anew.fit(more_x, more_y, 2.5, 0.2)
    assert np.all(np.abs(parameters_of(anew) - parameters_of(fitted)) > 1e-3)


def test_number_of_steps():
    x, y = data(30)
    fitted = Hyperparameters()
    fitted.fit(x, y, 1.5, 0.2, steps=7)
    expected, *_ = plain_adam(np.array([1.5, *parameters_of(Hyperparameters())[1:]]), x, y, 7)
    assert parameters_of(fitted) == pytest.approx(expected, rel=1e-12)


def test_state_goes_through_json():
    fitted = Hyperparameters()
    fitted.fit(*data(30), 1.5, 0.2)
    state = json.dumps(fitted.state_dict())
    copy = Hyperparameters(**json.loads(state))
    assert copy == fitted
    fitted.fit(*data(30), 1.5, 0.2)
    assert json.dumps(copy.state_dict()) == state
    copy.fit(*data(30), 1.5, 0.2)
    assert copy == fitted


def test_one_thread_of_blas_within_the_context():
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    with threadpool_limits(2, "blas"):
        before = threads()
        if not before:
            pytest.skip("needs a BLAS whose threads threadpoolctl can count")
        with process.one_thread():
            assert set(threads()) == {1}
        assert threads() == before
        assert set(before) == {2}
