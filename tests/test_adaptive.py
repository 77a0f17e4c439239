"""The batch size that follows the noise scale: its size, the learning rate with it, the gain of appendix D."""

import math

import numpy as np
import pytest

from keras_lsb.scaling import AdaptiveGain, CriticalBatch, adaptive_batch_size, adaptive_gain, learning_rate_factor
from tests.support import assert_close

PROGRESS = (np.arange(2000) + 0.5) / 2000  # s, from 0 to 1
GROWING = 900 * np.sqrt(PROGRESS)  # N = sqrt(s), in some unit


def test_adaptive_batch_size():
    assert adaptive_batch_size(400, 100) == 200
    assert adaptive_batch_size(0, 100) == 0
    assert adaptive_batch_size(4 * 70, 30) == pytest.approx(2 * adaptive_batch_size(70, 30), rel=1e-12)
    assert adaptive_batch_size(500, 500) == 500  # the natural rate of a constant noise scale


def test_adaptive_batch_size_is_where_steps_and_examples_trade_at_the_exchange_rate():
    best = adaptive_batch_size(300, 70)

    def cost(batch_size):
        """Of one step of progress under noise 300: its examples, and its steps at 70 examples each."""
        return 300 + batch_size + 70 * (1 + 300 / batch_size)

    assert cost(best) < min(cost(0.99 * best), cost(1.01 * best))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_scale", -1),
        ("noise_scale", math.inf),
        ("noise_scale", None),
        ("exchange_rate", 0),
        ("exchange_rate", ""),
    ],
)
def test_bad_argument_of_the_batch_size(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}={value!r}"):
        adaptive_batch_size(**{"noise_scale": 400, "exchange_rate": 100, name: value})


@pytest.mark.parametrize(
    ("follow", "expected"), [("noise", (1 + 300 / 100) / (1 + 300 / 400)), ("linear", 4), ("sqrt", 2), ("none", 1)]
)
def test_learning_rate_factor(follow, expected):
    assert learning_rate_factor(400, 100, 300, follow) == pytest.approx(expected, rel=1e-12)
    assert learning_rate_factor(100, 400, 300, follow) == pytest.approx(1 / expected, rel=1e-12)
    assert learning_rate_factor(400, 400, 300, follow) == 1


def test_factor_of_the_noise_is_linear_below_it_and_flat_above_it():
    assert learning_rate_factor(800, 100, 1e9) == pytest.approx(8, rel=1e-5)
    assert learning_rate_factor(800, 100, 1e-6) == pytest.approx(1, abs=1e-6)
    assert learning_rate_factor(1e12, 100, 300) == pytest.approx(4, rel=1e-6)  # 1 + N / base is the most it gives


def test_factors_of_the_noise_compose():
    there = learning_rate_factor(800, 100, 300) * learning_rate_factor(3000, 800, 300)
    assert there == pytest.approx(learning_rate_factor(3000, 100, 300), rel=1e-12)


@pytest.mark.parametrize("follow", ["noise", "linear", "sqrt", "none"])
@pytest.mark.parametrize("name", ["batch_size", "base_batch_size"])
@pytest.mark.parametrize("value", [0, -8, math.nan, "big", None])
def test_bad_batch_size_of_the_factor(follow, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}={value!r}"):
        learning_rate_factor(**{"batch_size": 8, "base_batch_size": 4, "noise_scale": 9, "follow": follow, name: value})


def test_bad_noise_and_follow_of_the_factor():
    for value in (-1, math.nan, math.inf, None):
        with pytest.raises(ValueError, match=f"`noise_scale` must be .*Received: noise_scale={value!r}"):
            learning_rate_factor(8, 4, value)
    with pytest.raises(ValueError, match=r"`follow` must be one of .*'noise'.*Received: follow='square'"):
        learning_rate_factor(8, 4, 9, "square")


def test_gain_of_a_noise_scale_that_grows_as_the_root_of_the_progress():
    gain = adaptive_gain(GROWING, GROWING)  # half a step of progress each
    assert gain.gamma == pytest.approx(24 / 25, rel=1e-4)
    assert gain.min_steps == pytest.approx(1000, rel=1e-12)
    assert gain.min_examples == pytest.approx(1000 * 900 * 2 / 3, rel=1e-4)


def test_gain_weighs_steps_by_their_progress():
    # At a fixed batch of 300, later steps get less far: reading N at equal steps is not reading it at equal progress.
    progress, noise = 0.0, []
    while progress < 2000:
        noise.append(900 * math.sqrt((progress + 0.1) / 2000))
        progress += 1 / (1 + noise[-1] / 300)
    assert len(noise) > 5000
    gain = adaptive_gain(noise, [300] * len(noise))
    assert gain.gamma == pytest.approx(24 / 25, rel=1e-3)
    assert gain.min_steps == pytest.approx(2000, rel=1e-3)
    assert gain.min_examples == pytest.approx(2000 * 600, rel=1e-3)


def test_constant_noise_gains_nothing():
    gain = adaptive_gain([500] * 40, np.geomspace(10, 9000, 40))
    assert gain.gamma == pytest.approx(1, rel=1e-12)
    assert gain.min_examples / gain.min_steps == pytest.approx(500, rel=1e-12)
    assert gain.steps_ratio(3 * gain.min_examples) == pytest.approx(1, rel=1e-12)


def test_steps_ratio():
    gain = AdaptiveGain(gamma=0.6, min_steps=100, min_examples=5000)
    assert gain.steps_ratio(10_000) == pytest.approx(1.6 / 2, rel=1e-12)
    assert gain.steps_ratio(7500) == pytest.approx(2.2 / 3, rel=1e-12)
    assert gain.steps_ratio(5000 * (1 + 1e-9)) == pytest.approx(0.6, rel=1e-6)
    assert gain.steps_ratio(1e15) == pytest.approx(1, rel=1e-9)


def test_steps_ratio_agrees_with_the_batches_of_appendix_d():
    """Batches sqrt(r N) spend 1 + sqrt(gamma) of both minima at the natural r, and fewer steps than a fixed batch."""
    gain = adaptive_gain(GROWING, GROWING)
    law = CriticalBatch(gain.min_steps, gain.min_examples, gain.min_examples / gain.min_steps)
    sizes = np.array([adaptive_batch_size(noise, law.critical_batch) for noise in GROWING])
    share = gain.min_steps / len(GROWING)  # progress that each noise scale stands for
    steps, examples = np.sum(1 + GROWING / sizes) * share, np.sum(GROWING + sizes) * share
    ratios = (steps / gain.min_steps, examples / gain.min_examples)
    assert_close(ratios, [1 + math.sqrt(gain.gamma)] * 2, 1e-9)
    assert_close(ratios, [1.98, 1.98], 1e-3)
    fixed = (examples / law.min_examples - 1) * law.critical_batch
    assert steps / law.steps(fixed) == pytest.approx(gain.steps_ratio(examples), rel=1e-9)


@pytest.mark.parametrize("value", [0, math.nan, "all", None])
def test_bad_examples(value):
    with pytest.raises(ValueError, match=f"`examples` must be .*Received: examples={value!r}"):
        AdaptiveGain(0.6, 100, 5000).steps_ratio(value)


@pytest.mark.parametrize("value", [5000, 4000.0])
def test_examples_below_the_minimum(value):
    with pytest.raises(ValueError, match=f"`examples` must exceed 5000. Received: examples={value!r}"):
        AdaptiveGain(0.6, 100, 5000).steps_ratio(value)


@pytest.mark.parametrize(
    ("noise", "sizes", "shapes"),
    [([1, 2], [1], r"\(2,\) and \(1,\)"), ([], [], r"\(0,\) and \(0,\)"), (3, 4, r"\(\) and \(\)")],
)
def test_bad_shapes_of_the_gain(noise, sizes, shapes):
    with pytest.raises(ValueError, match=f"`noise_scales` and `batch_sizes` must be .*Received: shapes {shapes}"):
        adaptive_gain(noise, sizes)


@pytest.mark.parametrize("value", [0, -3, math.nan, math.inf])
def test_bad_entry_of_the_gain(value):
    with pytest.raises(ValueError, match=r"`noise_scales` must hold .*Received: noise_scales=\[ ?2\. "):
        adaptive_gain([2, value], [4, 8])
    with pytest.raises(ValueError, match=r"`batch_sizes` must hold .*Received: batch_sizes=\[ ?2\. "):
        adaptive_gain([4, 8], [2, value])


def test_without_noise_the_rate_does_not_follow():
    assert learning_rate_factor(640, 64, 0, "noise") == 1
