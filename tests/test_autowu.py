"""AutoWU: its oracles, agreement with the transcription, and what is sampled."""

import random

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from keras_lsb.scaling.gaussian_process import Conditioned
from tests.autowu_curves import ETA, FALL, VALLEY, U, controller_of, curve, exact, gap, process_of, replayed, votes
from tests.reference import autowu as reference


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The dense matrices of the reference are slow on more than one thread."""
    with threadpool_limits(1, "blas"):
        yield


ORACLE_A = {
    10: (0.515977, 0.305272, 4.3974, 2.175713),
    20: (0.492447, 0.162299, 1.9492, 2.062808),
    30: (0.490129, 0.100526, 1.3831, 1.976222),
    40: (0.496570, 0.073056, 1.2029, 1.915140),
    50: (0.575391, 0.060945, 1.1264, 1.881166),
    60: (0.977572, 0.055646, 1.0871, 1.873182),
    70: (1.0, 0.053591, 1.0640, 1.892351),
    80: (1.0, 0.054267, 1.0493, 1.936716),
}


def test_oracle_a():
    controller, decisions = controller_of(), {}
    for step, (probability, amplitude, noise, mean) in ORACLE_A.items():
        decisions[step] = controller.update(VALLEY[step - 10 : step])
        process = process_of(controller)
        found = (decisions[step].probability, process.amplitude, 1e4 * process.noise, process.mean)
        assert found == pytest.approx((probability, amplitude, noise, mean), rel=1e-4), f"after {step} steps"
        assert controller.tests[-1].probability == decisions[step].probability
    assert votes(controller) == [60, 70, 80]
    assert [decisions[step].phase for step in (70, 80)] == ["warmup", "decay"]
    assert (controller.switch_step, controller.reason) == (80, "gaussian process")
    assert controller.learning_rate(79) == pytest.approx(0.08912509, rel=1e-6)
    assert controller.peak == pytest.approx(1e-5 * 8912.509 ** (312 / 499), rel=1e-6)
    assert [controller.peak, *map(controller.learning_rate, (80, 81))] == pytest.approx([ETA, ETA, 0.002948934], 3e-7)


def test_the_transcription_meets_the_oracles():
    outcome = reference.run(VALLEY, 200, 10)
    found = [(each.probability, each.amplitude, 1e4 * each.noise, each.mean) for each in outcome.decisions]
    np.testing.assert_allclose(found, list(ORACLE_A.values()), rtol=1e-4)
    assert outcome[1:] == (80, pytest.approx(ETA, rel=3e-7))
    assert reference.run(gap(35, 0.05, 9), 200, 10, guard=False)[1:] == (100, pytest.approx(0.8912509))
    assert reference.run(gap(35, 0.05, 9), 200, 10)[1:] == (60, pytest.approx(0.000518118, rel=2e-6))


def test_oracle_b():
    controller = replayed(FALL)
    assert votes(controller) == []
    assert [test.step for test in controller.tests] == list(range(10, 100, 10))
    assert [controller.tests[at].probability for at in (0, -1)] == pytest.approx([0.520, 0.457], abs=5e-4)
    assert (controller.switch_step, controller.reason) == (100, "limit")
    assert [controller.learning_rate(t) for t in (99, 100, 101)] == pytest.approx([0.8912509, 0.8912509, 0.8910311])


@pytest.mark.parametrize(
    ("curve", "guard", "expected"),
    [
        ((55, 0.1, 9), True, (80, 0.00387683, "guard", [60, 70, 80])),
        ((55, 0.1, 9), False, (80, 0.00387683, "gaussian process", [60, 70, 80])),
        ((35, 0.05, 9), True, (60, 0.000518118, "guard", [40, 50, 60])),
        ((35, 0.05, 9), False, (100, 0.8912509, "limit", [40, 50])),
    ],
)
def test_oracle_gap(curve, guard, expected):
    controller = replayed(gap(*curve), guard=guard)
    switch_step, peak, reason, voted = expected
    assert (controller.switch_step, controller.reason, votes(controller)) == (switch_step, reason, voted)
    assert controller.peak == pytest.approx(peak, rel=2e-6)
    guarded = [test.step for test in controller.tests if test.guarded]
    assert guarded == ([switch_step] if guard else [])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("noise", "steps", "rates"), [(0.0707, (2050, 2250), (0.01 / 1.4, 0.014)), (0.2828, (2200, 2500), (0.0079, 0.0144))]
)
def test_noisy_valley(noise, steps, rates, seed):
    t = np.arange(3000)
    losses = 0.5 + 1.8 * ((t - 1800) / 1800) ** 2 + noise * np.sin(t.astype(float) ** 2)
    controller = replayed(losses, total_steps=6000, steps_per_epoch=50, seed=seed)
    assert controller.reason == "gaussian process"
    assert steps[0] <= controller.switch_step <= steps[1]
    assert rates[0] <= controller.peak <= rates[1]


def test_noisy_fall():
    t = np.arange(3000.0)
    losses = 2.3 * np.exp(-t / 1200) + 0.0707 * np.sin(t**2)
    controller = replayed(losses, total_steps=6000, steps_per_epoch=50)
    assert votes(controller) == []
    assert (controller.switch_step, controller.reason) == (3000, "limit")
    assert controller.peak == pytest.approx(0.99617, rel=1e-5)


@pytest.mark.parametrize(
    ("factor", "switch_step"), [(0.01, 100), (0.03, 100), (0.1, 100), (0.3, 90), (3, 80), (10, 80), (100, 70)]
)
def test_scale_of_the_losses(factor, switch_step):
    controller = replayed(factor * VALLEY)
    assert controller.switch_step == switch_step
    assert controller.tests[0].vote == (factor == 100), "a false vote"
    plain = replayed(VALLEY)
    if factor in (3, 10):
        assert controller.peak == pytest.approx(plain.peak, rel=0.02)
    scaled = replayed(factor * VALLEY, loss_factor=1 / factor)
    assert (scaled.switch_step, votes(scaled)) == (80, [60, 70, 80])
    assert scaled.peak == pytest.approx(plain.peak, rel=1e-9)


def test_grid_of_length_scales_on_oracle_a():
    assert replayed(VALLEY, length_scale=0.4).peak == pytest.approx(0.00305894, rel=1e-5)
    assert replayed(VALLEY, length_scale=1.0).peak == pytest.approx(0.00279249, rel=1e-5)


SETTINGS = {
    4: {"warmup": "linear", "min_learning_rate": 1e-3, "max_learning_rate": 10.0},
    5: {"patience": 1, "confidence": 0.7},
    6: {"length_scale": 0.08, "grid_points": 60},
    8: {"steps_per_epoch": 7},
    9: {"warmup_fraction": 0.37, "total_steps": 233, "steps_per_epoch": 9},
    14: {"guard": False},
}
NAMES = {"min_learning_rate": "low", "max_learning_rate": "high"}  # in the reference


def assert_agrees(losses, draw=None, **settings):
    """Votes and switch step are those of the reference, numbers nearly so."""
    settings = {"total_steps": 200, "steps_per_epoch": 10, **settings}
    losses = losses[: len(losses) // settings["steps_per_epoch"] * settings["steps_per_epoch"]]
    controller = replayed(losses, **settings)
    ours = {NAMES.get(name, name): value for name, value in settings.items() if name != "seed"}
    outcome = reference.run(losses, **ours, random=draw)
    assert [test.step for test in controller.tests] == [decision.step for decision in outcome.decisions]
    assert votes(controller) == [decision.step for decision in outcome.decisions if decision.vote]
    assert controller.switch_step == outcome.switch_step
    assert controller.peak == (outcome.eta and pytest.approx(outcome.eta, rel=1e-6))
    for test, decision in zip(controller.tests, outcome.decisions, strict=True):
        # Factors of ill-conditioned matrices: the last digits are those of the processor's linear algebra.
        assert test.probability == pytest.approx(decision.probability, abs=1e-4, nan_ok=True)
        assert test.learning_rate == pytest.approx(decision.rate, rel=1e-6, nan_ok=True)
    last, process = outcome.decisions[-1], process_of(controller)
    assert (process.mean, process.amplitude, process.noise) == pytest.approx((last.mean, last.amplitude, last.noise))
    return controller


@pytest.mark.parametrize("seed", range(16))
def test_agrees_with_the_transcription(seed):
    assert_agrees(curve(seed), **SETTINGS.get(seed, {}))


def test_the_curves_differ():
    """They end for all reasons, at many steps, with decisions against the end after votes for it."""
    runs = [replayed(curve(seed), **SETTINGS.get(seed, {})) for seed in range(16)]
    assert {run.reason for run in runs} == {"gaussian process", "guard", "limit"}
    assert len({run.switch_step for run in runs}) > 5
    assert any(sorted(flags := [test.vote for test in run.tests]) != flags for run in runs)


def test_votes_count_in_a_row():
    """Two rises: after the first there are two votes, and none when the loss falls further."""
    losses = np.interp(U, [0, 0.2, 0.35, 0.55, 0.75, 1], [2, 1, 1.5, 0.5, 1, 0.2])
    controller = assert_agrees(losses)
    assert votes(controller) == [30, 40, 60, 70, 80]
    assert controller.votes == 3
    assert (controller.switch_step, controller.reason) == (80, "gaussian process")
    assert replayed(losses[:50]).votes == 0


@pytest.mark.parametrize("posteriors", [4, 5])
@pytest.mark.parametrize("seed", [0, 2, 11])
def test_agrees_on_samples(seed, posteriors):
    """With the same random numbers the same losses are sampled; on curve 11 two of four posteriors vote once."""
    points = {"fit_points": 20, "posterior_points": 30, "grid_points": 80, "posteriors": posteriors}
    draw = np.random.Generator(np.random.PCG64(5))
    assert_agrees(curve(seed), draw, seed=5, **points)


@pytest.mark.parametrize("steps_per_epoch", [70, 300])
def test_samples_are_seeded_and_nothing_else_is_drawn(steps_per_epoch):
    """Two epochs of 70 are more losses than a fit takes, two of 300 more than a posterior takes."""
    t = np.arange(2 * steps_per_epoch)
    losses = 1 - t / len(t) + 0.3 * np.sin(t.astype(float) ** 2)
    before = exact(np.random.get_state()), random.getstate()  # noqa: NPY002
    settings = {"total_steps": 6000, "steps_per_epoch": steps_per_epoch}
    one, same, other = (exact(replayed(losses, seed=seed, **settings).tests) for seed in (1, 1, 2))
    assert (exact(np.random.get_state()), random.getstate()) == before  # noqa: NPY002
    assert one == same
    assert (one[0] == other[0]) == (steps_per_epoch == 70), "the first 70 losses are not sampled"
    assert one[1] != other[1]


def test_posteriors_of_all_losses_need_no_more_than_one():
    one, five = replayed(VALLEY, posteriors=1), replayed(VALLEY, posteriors=5)
    assert exact(one.tests) == exact(five.tests)


def test_one_thread_of_blas_decides(monkeypatch):
    seen, posterior = [], Conditioned.posterior

    def spy(*arguments):
        seen.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return posterior(*arguments)

    if not any(library["user_api"] == "blas" for library in threadpool_info()):
        pytest.skip("needs a BLAS whose threads threadpoolctl can count")
    monkeypatch.setattr(Conditioned, "posterior", spy)
    with threadpool_limits(2, "blas"):
        controller_of().update(VALLEY[:10])
    assert set(seen) == {1}
