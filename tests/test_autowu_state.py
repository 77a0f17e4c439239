"""AutoWU: resumption to the last bit, states that are refused, replay and plot."""

import json
import math
import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.autowu_curves import (
    FALL,
    LINEAR,
    SCATTERED,
    VALLEY,
    U,
    controller_of,
    curve,
    exact,
    gap,
    quadratic,
    replayed,
)
from tests.support import assert_close


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


RESUMED = {
    "valley": (VALLEY, {}),
    "missing": (SCATTERED, {"warmup": "linear", "decay": "half-cosine"}),
    "guard": (gap(35, 0.05, 9), {}),
    "samples": (curve(1), {"fit_points": 20, "posterior_points": 25, "grid_points": 70, "seed": 3}),
    "no warm-up": (VALLEY, {"warmup_fraction": 0}),
    "partial epoch": (FALL, {"total_steps": 205, "decay": quadratic}),
}


def epochs(losses, total_steps):
    """Losses of a whole run, cut into epochs."""
    losses = np.concatenate([losses, np.full(total_steps - 100, 0.9)])
    return [losses[start : start + 10] for start in range(0, total_steps, 10)]


@pytest.mark.parametrize(("losses", "settings"), RESUMED.values(), ids=RESUMED.keys())
def test_resumes_bit_for_bit(losses, settings):
    parts = epochs(losses, settings.get("total_steps", 200))
    never_stopped, states, decisions = controller_of(**settings), [], []
    for part in parts:
        states.append(json.dumps(never_stopped.state_dict()))
        decisions.append(never_stopped.update(part))
    end = json.dumps(never_stopped.state_dict())
    for at, state in enumerate(states):
        resumed = controller_of(**settings)
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        assert exact(resumed.update(part) for part in parts[at:]) == exact(decisions[at:])
        assert json.dumps(resumed.state_dict()) == end
    assert exact(map(resumed.learning_rate, range(200))) == exact(map(never_stopped.learning_rate, range(200)))


def test_state_is_a_copy():
    """Neither does a state change with the controller it is of, nor with one that has loaded it."""
    settings = {"fit_points": 20, "posterior_points": 25}
    controller, resumed = replayed(curve(1)[:50], **settings), controller_of(**settings)
    state = controller.state_dict()
    before = json.dumps(state)
    resumed.load_state_dict(state)
    for each in (controller, resumed):
        each.update(curve(1)[50:60])
        assert json.dumps(state) == before


OTHER_SETTINGS = {
    "total_steps": 400,
    "steps_per_epoch": 5,
    "warmup_fraction": 0.4,
    "min_learning_rate": 1e-4,
    "max_learning_rate": 2.0,
    "warmup": "linear",
    "decay": quadratic,
    "cosine_fraction": 0.1,
    "confidence": 0.9,
    "patience": 2,
    "posteriors": 3,
    "fit_points": 50,
    "posterior_points": 300,
    "grid_points": 100,
    "length_scale": 0.3,
    "guard": False,
    "loss_factor": 10.0,
    "seed": 1,
}


def assert_refuses(state, message):
    """The state is refused, and the controller goes on as if it had not been offered."""
    controller, untouched = replayed(FALL[:30]), replayed(FALL[:30])
    with pytest.raises(ValueError, match=message):
        controller.load_state_dict(state)
    assert json.dumps(controller.state_dict()) == json.dumps(untouched.state_dict())
    assert controller.curves.keys() == untouched.curves.keys()


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_state_of_other_settings(name):
    assert OTHER_SETTINGS.keys() == controller_of().settings().keys()
    value = OTHER_SETTINGS[name]
    here, there = (repr(getattr(part, "__name__", part)) for part in (controller_of().settings()[name], value))
    assert_refuses(controller_of(**{name: value}).state_dict(), f"`{name}` differs .*{here} here, {there} there")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_state_of_another_version(version):
    state = replayed(VALLEY).state_dict()
    assert_refuses({**state, "version": version}, f"version 1.*Received: version={version!r}")


@pytest.mark.parametrize("name", controller_of().state_dict())
def test_state_that_lacks_something(name):
    state = replayed(VALLEY).state_dict()
    del state[name]
    assert_refuses(state, name)


def test_state_that_is_spoiled():
    state = replayed(VALLEY).state_dict()
    state["random"]["bit_generator"] = "MT19937"
    assert_refuses(state, "PCG64")


def test_curves_are_not_saved():
    controller = replayed(VALLEY[:50])
    assert list(controller.curves) == [10, 20, 30, 40, 50]
    resumed = replayed(FALL[:20])
    resumed.load_state_dict(controller.state_dict())
    assert resumed.curves == {}


def test_replay_leaves_a_rest():
    controller, by_hand = controller_of(), controller_of()
    decisions = controller.replay(list(VALLEY[:47]))
    assert controller.steps == 40
    assert exact(decisions) == exact(by_hand.update(VALLEY[start : start + 10]) for start in (0, 10, 20, 30))
    assert controller.replay(VALLEY[40:49]) == []
    assert_close(controller.losses, VALLEY[:40], 0)
    assert [decision.phase for decision in controller.replay(VALLEY[40:])] == ["warmup"] * 3 + ["decay"] * 3


def test_losses_are_those_of_the_warmup_and_a_copy():
    controller = replayed(VALLEY)
    assert_close(controller.losses, VALLEY[:80], 0)
    controller.losses[:] = 0
    assert controller.losses[0] == VALLEY[0]


def lines(axes):
    """The lines of an axes by their labels; those of Matplotlib's own names by their place."""
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_plot(factor):
    controller = replayed(VALLEY[:80] / factor, loss_factor=factor)
    loss, probability, rate = controller.plot()
    drawn = lines(loss)
    assert_close(drawn["loss of a step"], np.stack([np.arange(80), VALLEY[:80] / factor], -1), 1e-12)
    grid, curve = np.linspace(0, 80, 500), controller.curves[80]
    mean, deviation = curve.posterior(500).mean / factor, curve.deviation(500) / factor
    assert np.max(np.abs(mean - (2.3 - 3 * grid / 100 + 3 * (grid / 100) ** 2) / factor)) < 0.02 / factor
    assert_close(drawn["Gaussian process after 80 steps"], np.stack([grid, mean], -1), 1e-12)
    (chosen,) = drawn["rate of the decay"]
    assert controller.learning_rates(chosen[0]) == pytest.approx(controller.peak)
    assert chosen[1] == pytest.approx(mean.min(), rel=1e-3)
    (band,) = loss.collections
    corners = band.get_paths()[0].vertices
    edges = [(mean - 1.96 * deviation).min(), (mean + 1.96 * deviation).max()]
    assert [corners[:, 1].min(), corners[:, 1].max()] == pytest.approx(edges, rel=1e-9)

    drawn = lines(probability)
    tests = np.array([(test.step, test.probability) for test in controller.tests])
    assert_close(drawn["vote"], tests[5:], 0)
    assert_close(drawn["no vote"], tests[:5], 0)
    assert any(np.array_equal(line, tests) for line in drawn.values())
    assert any(np.all(line[:, 1] == 0.95) for line in drawn.values())

    steps, rates = rate.get_lines()[0].get_xydata().T
    assert_close(steps, np.arange(80), 0)
    assert_close(rates, [controller.learning_rate(int(step)) for step in steps], 1e-15)
    assert rate.get_yscale() == "log"
    assert rate.get_title() == "decay from 0.00295 after 80 steps: gaussian process"
    assert [axes.get_ylabel() for axes in (loss, probability, rate)] == ["loss", "P(loss has risen)", "learning rate"]
    for axes in (loss, probability, rate):
        assert any(np.all(line[:, 0] == 80) and len(line) == 2 for line in lines(axes).values()), "end of the warm-up"
    plt.gcf().canvas.draw()


def test_plot_of_a_whole_run_on_given_axes():
    controller = replayed(np.concatenate([VALLEY, np.full(100, 0.9)]))
    given = plt.subplots(3, 1)[1]
    losses = np.concatenate([VALLEY, np.linspace(1, 0.5, 100)])
    assert controller.plot(given, losses) is given
    assert_close(lines(given[0])["loss of a step"][:, 1], losses, 0)
    rates = given[2].get_lines()[0].get_xydata()[:, 1]
    assert_close(rates, [controller.learning_rate(step) for step in range(200)], 1e-15)


@pytest.mark.parametrize(
    ("losses", "settings"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param([math.nan] * 10, {}, id="no number"),
        pytest.param(np.where(U < 0.3, 1e300, VALLEY)[:40], {}, id="huge"),
        pytest.param(SCATTERED[:50], {}, id="warm-up"),
        pytest.param([], {"warmup_fraction": 0}, id="no warm-up"),
        pytest.param(VALLEY, {"warmup_fraction": 0}, id="decay only"),
        pytest.param(FALL, {}, id="limit"),
        pytest.param(VALLEY, {"decay": LINEAR}, id="Keras schedule"),
    ],
)
def test_plot_of_other_runs(losses, settings):
    controller = replayed(losses, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, _, rate = controller.plot()
        plt.gcf().canvas.draw()
    assert_close(lines(loss)["loss of a step"][:, 1], controller.losses, 0)
    assert len(rate.get_lines()[0].get_xydata()) == max(len(losses), 1)
    assert any("Gaussian process" in label for label in lines(loss)) == bool(controller.curves)
    assert bool(rate.get_title()) == (controller.phase == "decay")
