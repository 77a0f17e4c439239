"""The learning rates of AutoWU: warm-ups, decays, the graph, the last step, and those that decisions report."""

import math

import numpy as np
import pytest

from keras_lsb.scaling import AutoWURates
from tests.autowu_curves import DECAYS, ETA, FALL, LINEAR, VALLEY, controller_of, quadratic, replayed, votes
from tests.reference import autowu as reference
from tests.support import TENSORFLOW, assert_close, ops, to_numpy, to_tensor


@pytest.mark.parametrize("warmup", ["exponential", "linear"])
def test_warmup(warmup):
    rates = AutoWURates(200, 0.5, 1e-4, 2.0, warmup)
    steps = np.arange(100)
    expected = [reference.between(t / 100, 1e-4, 2.0, warmup) for t in steps]
    assert rates.limit == 100
    np.testing.assert_allclose(rates.during_warmup(steps), expected, rtol=1e-12)
    assert rates.during_warmup(0) == pytest.approx(1e-4, rel=1e-15)
    assert rates.during_warmup(100) == pytest.approx(2.0, rel=1e-15)
    assert rates.limit_peak == rates.during_warmup(99) < 2.0
    assert [rates.reached(rate) for rate in expected] == pytest.approx(steps, abs=1e-9)
    assert rates.during_warmup(rates.reached(0.037)) == pytest.approx(0.037, rel=1e-12)
    controller = controller_of(warmup=warmup, min_learning_rate=1e-4, max_learning_rate=2.0)
    assert [controller.learning_rate(int(t)) for t in steps] == pytest.approx(expected, rel=1e-12)
    assert type(controller.learning_rate(3)) is float


def test_linear_warmup_decays_from_the_rate_between():
    controller = replayed(VALLEY, warmup="linear")
    low, high = 1e-5, 1e-5 + (1 - 1e-5) * 0.79
    assert (controller.switch_step, votes(controller)) == (80, [60, 70, 80])
    assert controller.peak == pytest.approx(low + (high - low) * 312 / 499)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("switch_step", [0, 80, 100, 180])
def test_decays(decay, switch_step):
    rates = AutoWURates(200, decay=decay)
    steps = np.arange(switch_step, 201)
    found = rates.during_decay(steps, switch_step, 0.3)
    assert_close(found, [reference.decay_rate(t, switch_step, 0.3, 200, decay) for t in steps], 1e-15)
    assert found[0] == pytest.approx(0.15 if decay == "half-cosine" else 0.3, rel=1e-12)
    assert found[-2] > 1e-5 * found[0]
    assert found[-1] == 0
    assert rates.during_decay(1000, switch_step, 0.3) == 0
    assert np.all(np.diff(found) <= 0)


def test_decays_of_oracle_a():
    flat = replayed(VALLEY, decay="constant-cosine")
    assert {flat.learning_rate(step) for step in range(80, 161)} == {flat.peak}
    assert flat.peak == pytest.approx(ETA, rel=3e-7)
    assert flat.learning_rate(161) == pytest.approx(ETA / 2 * (1 + math.cos(math.pi / 40)), rel=3e-7)
    assert flat.learning_rate(161) < flat.peak
    short = replayed(VALLEY, decay="constant-cosine", cosine_fraction=0.5)
    assert short.learning_rate(100) == short.peak > short.learning_rate(101)
    half = replayed(VALLEY, decay="half-cosine")
    assert half.peak == flat.peak
    assert half.learning_rate(80) == pytest.approx(ETA / 2, rel=3e-7)


def test_decay_by_a_function():
    controller = replayed(VALLEY, decay=quadratic)
    found = [controller.learning_rate(step) for step in (80, 110, 199, 200)]
    assert found == pytest.approx([ETA, ETA * 0.75**2, ETA / 120**2, 0], rel=3e-7)
    assert controller.settings()["decay"] == "quadratic"
    controller = replayed(VALLEY, decay=LINEAR)
    found = [controller.learning_rate(step) for step in (80, 110, 199, 200)]
    assert found == pytest.approx([ETA, ETA * 0.75, ETA / 120, 0], rel=1e-5)
    assert controller.settings()["decay"] == "PolynomialDecay"


def compiled(function):
    if TENSORFLOW:
        import tensorflow as tf

        return tf.function(function)
    import jax

    return jax.jit(function)


@pytest.mark.parametrize("decay", [*DECAYS, quadratic])
@pytest.mark.parametrize("switch_step", [30, 100])
def test_rates_in_a_graph(decay, switch_step):
    rates, steps = AutoWURates(200, decay=decay), np.arange(switch_step, 201)
    decayed = compiled(lambda *arguments: rates.during_decay(*arguments, xp=ops))
    found = to_numpy(decayed(to_tensor(steps), to_tensor(switch_step), to_tensor(0.3)))
    assert_close(found, rates.during_decay(steps, switch_step, 0.3), 1e-7)
    assert found[-1] == 0
    warmed = to_numpy(compiled(rates.during_warmup)(to_tensor(np.arange(100))))
    np.testing.assert_allclose(warmed, rates.during_warmup(np.arange(100)), rtol=3e-6)


@pytest.mark.parametrize("losses", [VALLEY, FALL], ids=["valley", "fall"])
def test_rate_of_the_decision_is_that_of_the_next_step(losses):
    controller = controller_of()
    rates = []
    for start in range(0, 200, 10):
        decision = controller.update(losses[start : start + 10] if start < 100 else np.full(10, 0.5))
        assert decision.learning_rate == controller.learning_rate() == controller.learning_rate(start + 10)
        assert decision.phase == controller.phase
        rates.append(decision.learning_rate)
    switch_step, peak = controller.switch_step, controller.peak
    steps = np.arange(10, 201, 10)
    warmup, decay = steps[steps < switch_step], steps[steps >= switch_step]
    expected = [reference.between(t / 100, 1e-5, 1.0, "exponential") for t in warmup]
    expected += [reference.decay_rate(t, switch_step, peak, 200) for t in decay]
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-18)
    assert controller.learning_rate(199) > 0
    assert controller.learning_rate(200) == 0


def test_rates_beyond_the_limit_during_the_warmup():
    """The schedule expects the limit as long as nothing else is known, and so should the controller."""
    controller = controller_of()
    assert controller.learning_rate(150) == pytest.approx(reference.decay_rate(150, 100, 0.8912509, 200))
