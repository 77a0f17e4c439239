"""The noise scale: facts of the paper, unbiased parts, running averages, the interval and its coverage, bad input."""

import math

import numpy as np
import pytest

from keras_lsb.scaling import estimate, noise_scale, update_averages
from keras_lsb.scaling.noise_scale import COLUMNS, noise_to_signal, signal_and_noise
from tests.reference import noise_scale as reference
from tests.support import assert_close, ops, to_numpy, to_tensor

GRADIENT = np.array([1.2, -0.7, 0.4, 0.0, 0.3])
MIXING = np.array([[3, 0, 0, 0, 0], [1, 2, 0, 0, 0], [0, -1, 1, 0, 0], [0, 0, 2, 4, 0], [1, 0, 0, 0, 0.5]])
SIGNAL, NOISE = GRADIENT @ GRADIENT, np.sum(MIXING**2)  # |G|^2 and tr(Sigma), Sigma = MIXING MIXING'
DRAWS = 100_000
UNEQUAL = np.array([2, 6, 4])


def draw(sizes, draws=DRAWS, gradient=GRADIENT, mixing=MIXING):
    """Small gradients of `sizes` examples each, for every draw: shape (draws, sizes, parameters)."""
    noise = np.random.default_rng(3).standard_normal((draws, len(sizes), len(gradient))) @ mixing.T
    return gradient + noise / np.sqrt(sizes)[:, None]


def norms(gradients, sizes):
    """Mean squared norm of the small gradients, squared norm of the big one."""
    big = np.average(gradients, axis=-2, weights=sizes)
    return np.sum(gradients**2, -1).mean(-1), np.sum(big**2, -1)


def measure(gradients, sizes):
    """`noise_scale` of small gradients, the last two axes; the small batch is the harmonic mean of the sizes."""
    sizes = np.asarray(sizes)
    return noise_scale(*norms(np.asarray(gradients), sizes), 1 / np.mean(1 / sizes), sizes.sum())


def is_unbiased(values, truth):
    """Whether the mean of `values` is within two standard errors of `truth`."""
    return bool(abs(np.mean(values) - truth) < 2 * np.std(values, ddof=1) / math.sqrt(len(values)))


def test_fact_1_three_small_gradients():
    found = measure([(1, 0), (3, 0), (2, 3)], [4, 4, 4])
    assert found == pytest.approx((11 / 3, 16, 48 / 11), rel=1e-14)
    assert found == noise_scale(23 / 3, 5.0, 4, 12)
    assert found.trace == pytest.approx(4 * np.trace(np.cov([(1, 0), (3, 0), (2, 3)], rowvar=False)), rel=1e-14)


@pytest.mark.parametrize("size", [1, 4])
def test_fact_2_opposite_gradients_are_not_an_error(size):
    assert measure([(1, 0), (-1, 0)], [size, size]) == (-1, 2 * size, math.inf)


def test_fact_3_equal_gradients_have_no_noise():
    assert measure([(3, 4)] * 4, [5] * 4) == (25, 0, 0)


def test_fact_3_scaling_the_gradients_leaves_the_noise_scale():
    gradients = np.array([(1, 0), (3, 0), (2, 3)])
    plain, scaled = measure(gradients, [4, 4, 4]), measure(-7.0 * gradients, [4, 4, 4])
    assert scaled == pytest.approx((49 * plain.grad_sq_norm, 49 * plain.trace, plain.simple), rel=1e-13)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_fact_4_every_cut_of_the_same_data_agrees(count):
    examples = draw([1] * 8, DRAWS // 2)
    small = examples.reshape(len(examples), count, 8 // count, -1).mean(2)
    found = measure(small, [8 // count] * count)
    assert is_unbiased(found.grad_sq_norm, SIGNAL)
    assert is_unbiased(found.trace, NOISE)


def test_fact_4_single_examples_give_the_sample_covariance():
    for examples in draw([1] * 8, 5):
        found, covariance = measure(examples, [1] * 8), np.cov(examples, rowvar=False)
        assert found.trace == pytest.approx(np.trace(covariance), rel=1e-12)
        mean = examples.mean(0)
        assert found.grad_sq_norm == pytest.approx(mean @ mean - np.trace(covariance) / 8, rel=1e-12)


def test_the_mean_of_ratios_is_biased_even_where_no_signal_is_negative():
    sizes = [64] * 4
    found = measure(draw(sizes), sizes)
    assert found.grad_sq_norm.min() > 0
    assert is_unbiased(found.trace - NOISE / SIGNAL * found.grad_sq_norm, 0)
    assert not is_unbiased(found.simple, NOISE / SIGNAL)


@pytest.mark.parametrize(("size", "count"), [(32, 2), (8, 8)])
def test_fact_5_ratio_of_averages_is_right_where_the_average_ratio_is_not(size, count):
    width = 80
    gradient, mixing = np.full(width, width**-0.5), np.eye(width) * math.sqrt(174 / width)
    found = measure(draw([size] * count, 20_000, gradient, mixing), [size] * count)
    assert is_unbiased(found.trace - 174 * found.grad_sq_norm, 0)
    assert np.mean(found.trace) / np.mean(found.grad_sq_norm) == pytest.approx(174, rel=0.02)
    ratios = found.trace / found.grad_sq_norm
    assert abs(np.mean(ratios) / 174 - 1) > 0.1
    assert 0.01 < np.mean(ratios < 0) < 0.12


@pytest.mark.parametrize("sizes", [[4] * 4, [16, 16], UNEQUAL], ids=str)
def test_both_parts_are_unbiased(sizes):
    found = measure(draw(sizes), sizes)
    assert is_unbiased(found.grad_sq_norm, SIGNAL)
    assert is_unbiased(found.trace, NOISE)


def test_a_biased_estimator_does_not_pass():
    sizes = [4] * 4
    small, big = norms(draw(sizes), sizes)
    found = noise_scale(small, big, 4, 16)
    assert is_unbiased(found.grad_sq_norm, SIGNAL)
    assert not is_unbiased(np.maximum(found.grad_sq_norm, 0), SIGNAL)
    swapped = signal_and_noise(small, big, 16, 4)
    assert not is_unbiased(swapped[0], SIGNAL)
    assert not is_unbiased(swapped[1], NOISE)


def test_unequal_sizes_need_the_harmonic_mean_and_the_weighted_gradient():
    gradients = draw(UNEQUAL)
    arithmetic = noise_scale(*norms(gradients, UNEQUAL), UNEQUAL.mean(), UNEQUAL.sum())
    assert not is_unbiased(arithmetic.trace, NOISE)
    assert not is_unbiased(arithmetic.grad_sq_norm, SIGNAL)
    unweighted = noise_scale(*norms(gradients, [1, 1, 1]), 1 / np.mean(1 / UNEQUAL), UNEQUAL.sum())
    assert not is_unbiased(unweighted.trace, NOISE)


@pytest.mark.parametrize("sizes", [[4] * 4, [1, 1], UNEQUAL], ids=str)
def test_agrees_with_the_transcription(sizes):
    for gradients in draw(sizes, 20):
        expected = reference.measurement(gradients, sizes)
        assert measure(gradients, sizes)[:2] == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_arrays_of_norms_are_many_measurements():
    small, big = norms(draw([4] * 4, 6).reshape(2, 3, 4, -1), [4] * 4)
    many, one = noise_scale(small, big, 4, 16), noise_scale(small[1, 2], big[1, 2], 4, 16)
    assert many.simple.shape == (2, 3)
    assert tuple(part[1, 2] for part in many) == one
    assert all(type(part) is float for part in one)


@pytest.mark.parametrize(
    ("noise", "signal", "expected"),
    [
        (8.0, 2.0, 4.0),
        (0.0, 2.0, 0.0),
        (8.0, 0.0, math.inf),
        (8.0, -2.0, math.inf),
        (0.0, -2.0, math.inf),
        (-1.0, -2.0, math.inf),
        (0.0, 0.0, math.nan),
        (math.nan, 2.0, math.nan),
        (math.nan, -2.0, math.nan),
        (2.0, math.nan, math.nan),
    ],
)
def test_noise_to_signal(noise, signal, expected):
    assert_close(noise_to_signal(np.float64(noise), np.float64(signal)), expected, 0)
    assert_close(to_numpy(noise_to_signal(to_tensor(noise), to_tensor(signal), ops.where)), expected, 0)


@pytest.mark.parametrize(("name", "at"), [("small_batch", 0), ("big_batch", 1)])
@pytest.mark.parametrize("value", [0, -4, math.nan, math.inf, "many", None, True])
def test_bad_batch_size(name, at, value):
    sizes = [4, 8]
    sizes[at] = value
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}={value!r}"):
        noise_scale(2.0, 1.0, *sizes)


def test_equal_batch_sizes_name_the_way_out():
    with pytest.raises(ValueError, match=r"must differ.*microbatches.*Received: small_batch=8, big_batch=8"):
        noise_scale(2.0, 1.0, 8, 8)


def test_batch_sizes_in_the_wrong_order():
    with pytest.raises(ValueError, match=r"less than `big_batch`.*Received: small_batch=9, big_batch=8"):
        noise_scale(2.0, 1.0, 9, 8)


def test_negative_norm():
    with pytest.raises(ValueError, match=r"`small_sq_norm` must be >= 0.*Received: small_sq_norm=-2"):
        noise_scale(-2.0, 1.0, 4, 8)
    with pytest.raises(ValueError, match=r"`big_sq_norm` must be >= 0.*Received: big_sq_norm=\[ 1\. +-3\.\]"):
        noise_scale([2.0, 2.0], [1.0, -3.0], 4, 8)


def correlated(signal, noise, count=40, signal_spread=1.0, noise_spread=1.0):
    """Measurements (grad_sq_norm, trace) with exactly these means, and a correlation of about -0.6."""
    first, second = np.random.default_rng(5).standard_normal((2, count))
    first, second = first - first.mean(), second - second.mean()
    return np.stack([signal + signal_spread * first, noise + noise_spread * (0.8 * second - 0.6 * first)], -1)


def accumulate(measurements, decay):
    """`update_averages` over measurements of shape (steps, ..., 2)."""
    averages = to_tensor(np.zeros((*np.shape(measurements)[1:-1], len(COLUMNS))))
    for now in np.asarray(measurements):
        averages = update_averages(averages, to_tensor(now[..., 0]), to_tensor(now[..., 1]), decay)
    return to_numpy(averages)


def as_row(averages):
    return np.array([averages[column] for column in COLUMNS])


def assert_row(actual, measurements, decay):
    """To 1e-5 of each column, or of the scale of the scatters, which rounding in float32 reaches."""
    expected = as_row(reference.averages(measurements, decay))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [0.9, 1])
def test_measurements_weigh_what_they_are_given(decay):
    measurements = correlated(0.5, 30.0, 30, noise_spread=5.0)
    sizes = np.random.default_rng(2).integers(1, 65, 30).astype("float64")
    measurements[7] = np.nan
    averages = to_tensor(np.zeros(len(COLUMNS)))
    for (signal, trace), size in zip(measurements, sizes, strict=True):
        averages = update_averages(averages, to_tensor(signal), to_tensor(trace), decay, weight=float(size))
    expected = as_row(reference.averages(np.column_stack([measurements, sizes]), decay))
    np.testing.assert_allclose(to_numpy(averages), expected, rtol=2e-5, atol=2e-5)
    found, alike = estimate(to_numpy(averages)), estimate(to_numpy(averages) / [64, 64**2, 1, 1, 64, 64, 64, 1, 1])
    assert found.low == pytest.approx(alike.low), "the unit of the weights does not matter"
    assert found.high == pytest.approx(alike.high)


@pytest.mark.parametrize("decay", [0.9, 0.99, 1])
def test_averages_agree_with_explicit_weights(decay):
    measurements = correlated(0.5, 30.0, 60, noise_spread=5.0)
    for count in (1, 2, 60):
        assert_row(accumulate(measurements[:count], decay), measurements[:count], decay)


@pytest.mark.parametrize("decay", [0.9, 0.99, 1])
def test_measurements_that_are_not_finite_are_counted_and_left_out(decay):
    measurements = correlated(0.5, 30.0)
    measurements[0, 0] = measurements[7, 1] = math.nan
    measurements[3], measurements[-1] = (math.inf, math.inf), (-math.inf, 2.0)
    averages = accumulate(measurements, decay)
    assert_row(averages, measurements, decay)
    assert averages[COLUMNS.index("skipped")] == 4
    assert averages[COLUMNS.index("measurements")] == 36


def test_groups_are_averaged_each_on_its_own():
    groups = np.stack([correlated(0.5, 30.0), correlated(-2.0, 4.0)[::-1], correlated(1.0, 0.1)], 1)
    groups[5, 1] = math.nan
    averages = accumulate(groups, 0.9)
    for group in range(3):
        assert_row(averages[group], groups[:, group], 0.9)
    assert_close(averages[:, -1], [0, 1, 0], 0)


def test_constant_measurements_are_their_own_average_from_the_start():
    averages = accumulate([(2.0, 8.0)] * 3, 0.99)
    assert_close(averages[2:7], [2, 8, 0, 0, 0], 1e-6)


def test_a_negative_measurement_keeps_its_sign():
    found = estimate(accumulate([(-3.0, 8.0), (5.0, 4.0)], 1))
    assert (found.grad_sq_norm, found.trace, found.simple) == (1, 6, 6)


def test_estimate_is_the_ratio_of_the_averages():
    measurements = correlated(2.0, 30.0)
    finite, weights = reference.weights_of(measurements, 0.9)
    found = estimate(accumulate(measurements, 0.9))
    assert found.simple == pytest.approx((weights @ finite[:, 1]) / (weights @ finite[:, 0]), rel=1e-5)
    assert found.simple == found.trace / found.grad_sq_norm
    assert found.low < found.simple < found.high
    assert found.resolved
    assert (found.measurements, found.skipped) == (40, 0)
    assert str(found) == f"{found.simple:.4g} examples [{found.low:.4g}, {found.high:.4g}]"


def test_nothing_measured_yet():
    found = estimate(accumulate([(math.nan, 1.0)] * 2, 0.99))
    assert np.isnan(found[:5]).all()
    assert (found.measurements, found.skipped) == (0, 2)
    assert not found.resolved
    assert str(found) == "not measured yet"


@pytest.mark.parametrize("confidence", [0, 1, 90, math.nan, "high", None])
@pytest.mark.parametrize("count", [0, 3])
def test_bad_confidence(confidence, count):
    averages = as_row(reference.averages(correlated(2.0, 3.0)[:count].reshape(count, 2), 1))
    with pytest.raises(ValueError, match=rf"`confidence` must be .*Received: confidence={confidence!r}"):
        estimate(averages, confidence)


@pytest.mark.parametrize("signal", [0.0, -1.0])
def test_average_signal_that_is_not_positive_gives_inf(signal):
    found = estimate(accumulate([(signal - 1, 2.0), (signal + 1, 6.0)], 1))
    assert (found.simple, found.high, found.grad_sq_norm, found.trace) == (math.inf, math.inf, signal, 4.0)
    assert not found.resolved


def test_both_averages_zero_give_nan():
    found = estimate(accumulate([(0.0, 0.0)] * 3, 1))
    assert np.isnan([found.simple, found.low, found.high]).all()
    assert (found.grad_sq_norm, found.trace, found.measurements) == (0, 0, 3)


def test_no_noise_and_no_scatter():
    assert estimate(accumulate([(25.0, 0.0)] * 3, 1))[:3] == (0, 0, 0)
    assert estimate(accumulate([(2.0, 8.0)] * 3, 1))[:3] == (4, 4, 4)


def test_one_measurement_has_no_error_bar():
    found = estimate(accumulate([(2.0, 8.0)], 0.99))
    assert found[:3] == (4, 0, math.inf)
    assert not found.resolved


# Each name says which ends of the interval exist.
INTERVALS = {
    "both": (correlated(2.0, 30.0), (True, True)),
    "both, narrow": (correlated(2.0, 30.0, 40, 0.1, 3.0), (True, True)),
    "three measurements": (correlated(9.0, 30.0, 3), (True, True)),
    "upper": (correlated(2.0, 0.05), (False, True)),
    "noise below zero": (correlated(2.0, -0.1), (False, True)),
    "lower": (correlated(0.05, 30.0), (True, False)),
    "lower, signal below zero": (correlated(-0.05, 30.0), (True, False)),
    "none": (correlated(0.05, 0.05), (False, False)),
    "signal far below zero": (correlated(-9.0, 30.0), (False, False)),
}


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize(("decay", "confidence"), [(1, 0.9), (0.99, 0.5), (0.9, 0.9)])
def test_interval_agrees_with_the_test_it_inverts(name, decay, confidence):
    measurements, ends = INTERVALS[name]
    found = estimate(as_row(reference.averages(measurements, decay)), confidence)
    expected = reference.interval(measurements, decay, confidence)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert (found.low > 0, math.isfinite(found.high)) == ends


def simulate(size, decay, runs=1500, steps=50):
    """Estimates of `runs` runs, each from `steps` measurements of four small gradients of `size` examples."""
    found = measure(draw([size] * 4, runs * steps).reshape(steps, runs, 4, -1), [size] * 4)
    return [estimate(row) for row in accumulate(np.stack([found.grad_sq_norm, found.trace], -1), decay)]


@pytest.mark.parametrize("decay", [1, 0.9])
def test_the_interval_covers_the_noise_scale(decay):
    found = simulate(32, decay)
    covered = np.mean([one.low <= NOISE / SIGNAL <= one.high for one in found])
    assert np.mean([one.resolved for one in found]) > 0.99
    assert 0.87 < covered < 0.93  # standard error of the share: 0.008


def test_the_interval_of_an_unresolved_noise_scale_covers_it():
    found = simulate(1, 1)
    assert np.mean([one.resolved for one in found]) < 0.5
    assert np.mean([one.low <= NOISE / SIGNAL <= one.high for one in found]) > 0.87
    assert np.mean([one.low > 0 for one in found]) > 0.9  # still something is known
