"""AutoWU: arguments that are refused, epochs that are short, losses that are no numbers, runs without a decision."""

import json
import math
import warnings

import numpy as np
import pytest

from keras_lsb.scaling.gaussian_process import Hyperparameters
from tests.autowu_curves import VALLEY, U, controller_of, exact, gap, process_of, replayed, votes
from tests.reference import autowu as reference

BAD = {
    "total_steps": (0, -3, 2.5, math.nan, "many", True, None),
    "steps_per_epoch": (0, -1, 1.5),
    "warmup_fraction": (-0.1, 1, 1.5, math.nan),
    "min_learning_rate": (0, -1e-3, math.inf),
    "max_learning_rate": (0, math.inf),
    "warmup": ("cubic", None),
    "decay": ("step", None),
    "cosine_fraction": (0, 1, -0.2),
    "confidence": (0, 1, -0.5, 95),
    "patience": (0, 1.5),
    "posteriors": (0, -5),
    "fit_points": (1, 0),
    "posterior_points": (1, 0),
    "grid_points": (1, 0),
    "length_scale": (0, -0.2),
    "loss_factor": (0, -1, math.inf),
    "seed": (-1, 0.5, "a"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}={value!r}"):
        controller_of(**{name: value})


@pytest.mark.parametrize("largest", [1e-5, 1e-6])
def test_rates_in_the_wrong_order(largest):
    message = f"`max_learning_rate` must exceed `min_learning_rate`.*={largest}, min_learning_rate=1e-05"
    with pytest.raises(ValueError, match=message):
        controller_of(max_learning_rate=largest)


def test_final_cosine_may_not_begin_during_the_warmup():
    settings = {"warmup_fraction": 0.7, "cosine_fraction": 0.4}
    with pytest.raises(ValueError, match=r"`warmup_fraction` \+ `cosine_fraction`.*Received: 0.7 \+ 0.4"):
        controller_of(decay="constant-cosine", **settings)
    controller_of(decay="cosine", **settings)
    controller_of(decay="constant-cosine", warmup_fraction=0.7, cosine_fraction=0.3)


@pytest.mark.parametrize(("fraction", "total_steps"), [(0.0, 200), (0.5, 1), (0.004, 200)])
def test_no_warmup(fraction, total_steps):
    controller = controller_of(warmup_fraction=fraction, total_steps=total_steps, max_learning_rate=0.3)
    assert (controller.phase, controller.switch_step, controller.reason) == ("decay", 0, "no warm-up")
    assert controller.peak == controller.learning_rate() == controller.learning_rate(0) == 0.3
    decision = controller.update(VALLEY[: min(10, total_steps)])
    assert decision.phase == "decay"
    assert decision.learning_rate == pytest.approx(0.15 * (1 + math.cos(math.pi * min(10 / total_steps, 1))), abs=1e-15)
    assert math.isnan(decision.probability)
    assert controller.tests == []


@pytest.mark.parametrize(("total_steps", "patience"), [(61, 3), (101, 5)])
def test_too_few_epochs_for_the_votes(total_steps, patience):
    """The warning comes exactly when no losses could end the warm-up: these would, as early as possible."""
    message = rf"before its limit: {patience} votes take {10 * patience} steps, the limit is {10 * patience}\..*"
    with pytest.warns(UserWarning, match=message + f"total_steps={total_steps}, steps_per_epoch=10"):
        controller = controller_of(total_steps=total_steps, patience=patience)
    rising = 0.5 + 0.1 * np.arange(60)
    controller.replay(rising)
    assert (controller.switch_step, controller.reason) == (10 * patience, "limit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller = controller_of(total_steps=total_steps + 1, patience=patience)
    controller.replay(rising)
    assert (controller.switch_step, controller.reason) == (10 * patience, "gaussian process")
    assert controller.peak == 1e-5


def test_last_epoch_may_be_shorter():
    controller = replayed(np.full(200, 0.7), total_steps=205)
    assert controller.steps == 200
    for count in (4, 6, 0):
        with pytest.raises(ValueError, match=f"the 10 losses .*Received: {count} losses after 200 of 205 steps"):
            controller.update([0.7] * count)
    assert controller.update([0.7] * 5) == ("decay", 0.0, pytest.approx(math.nan, nan_ok=True))
    assert controller.steps == 205


@pytest.mark.parametrize("count", [0, 1, 9, 11, 20])
def test_wrong_number_of_losses(count):
    controller = replayed(VALLEY[:20])
    before = json.dumps(controller.state_dict())
    with pytest.raises(ValueError, match=f"`epoch_losses` must hold the 10 .*Received: {count} losses after 20 of 200"):
        controller.update([0.7] * count)
    assert json.dumps(controller.state_dict()) == before


def test_epoch_longer_than_the_warmup_is_not_tested():
    with pytest.warns(UserWarning, match="before its limit"):
        controller = controller_of(steps_per_epoch=110)
    decision = controller.update(np.concatenate([VALLEY, VALLEY[:10]]))
    assert (controller.switch_step, controller.reason, controller.tests) == (100, "limit", [])
    assert decision.learning_rate == pytest.approx(reference.decay_rate(110, 100, 0.8912509, 200))


def test_limit_in_the_middle_of_an_epoch():
    """The decay has begun at the limit, so that the next step is some way down."""
    controller = controller_of(total_steps=211)
    decisions = controller.replay(2.3 * np.exp(-np.arange(110) / 60))
    peak = 1e-5 * 1e5 ** (104 / 105)
    assert (controller.switch_step, controller.reason) == (105, "limit")
    assert controller.peak == pytest.approx(peak)
    assert decisions[-2].phase == "warmup"
    assert decisions[-1].learning_rate == pytest.approx(reference.decay_rate(110, 105, peak, 211))
    assert math.isnan(decisions[-1].probability)
    assert [controller.learning_rate(t) for t in (104, 105, 106)] == pytest.approx(
        [peak, peak, reference.decay_rate(106, 105, peak, 211)]
    )


@pytest.mark.parametrize("losses", [[math.nan] * 10, [math.inf] * 5 + [-math.inf] * 5, [math.nan] * 9 + [0.7]])
@pytest.mark.parametrize("guard", [True, False])
def test_fewer_than_two_finite_losses(losses, guard):
    controller = controller_of(guard=guard)
    decision = controller.update(losses)
    assert decision.phase == "warmup"
    assert exact(controller.tests[0]) == exact((10, math.nan, False, math.nan, False))
    assert math.isnan(decision.probability)
    assert controller.non_finite == np.count_nonzero(~np.isfinite(losses))
    assert process_of(controller) == Hyperparameters()
    controller.update(VALLEY[10:20])
    assert np.isfinite(controller.tests[1].probability)


@pytest.mark.parametrize("guard", [True, False])
def test_only_losses_that_are_nan(guard):
    controller = replayed([math.nan] * 100, guard=guard)
    assert (controller.switch_step, controller.reason, controller.non_finite) == (100, "limit", 100)


def test_guard_searches_up_to_the_last_finite_loss():
    """A fall that ends in NaN has its minimum beyond the last loss, or at the last grid point before it."""
    losses = np.where(U < 0.375, 2 - 3 * U, np.nan)
    controller = replayed(losses, patience=1)
    assert (controller.switch_step, controller.reason) == (50, "guard")
    last = math.floor(499 * 37 / 50) / 499
    assert controller.peak == pytest.approx(1e-5 * 1e5 ** (49 / 100 * last))
    free = replayed(losses, guard=False, patience=1)
    assert free.tests[4].learning_rate > 1.05 * controller.peak


def test_one_finite_loss_in_an_epoch_keeps_the_guard_out():
    losses = gap(35, 0.05, 9)
    losses[55] = 0.7
    assert not replayed(losses).tests[5].guarded


def test_constant_losses_never_vote():
    controller = replayed(np.full(100, 1.7))
    assert votes(controller) == []
    assert (controller.switch_step, controller.reason) == (100, "limit")
    assert [test.probability for test in controller.tests] == pytest.approx([0.5] * 9, abs=2e-3)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e39, math.inf, math.nan])
def test_losses_beyond_float32_are_left_out_as_infinite_ones_are(value):
    losses, expected = VALLEY.copy(), VALLEY.copy()
    losses[[3, 37, 38, 79]], expected[[3, 37, 38, 79]] = value, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller = replayed(losses)
    assert exact(controller.tests) == exact(replayed(expected).tests)
    assert (controller.switch_step, controller.non_finite) == (80, 4)


@pytest.mark.parametrize("value", [1e30, 3e38])
def test_large_losses_are_losses(value):
    losses = VALLEY.copy()
    losses[37] = value
    controller = replayed(losses)
    assert controller.non_finite == 0
    assert all(math.isfinite(number) for test in controller.tests for number in test)


def setbacks(losses, **settings) -> list:
    """What `setback` says after each epoch."""
    controller, said = controller_of(**settings), []
    for epoch in np.reshape(losses, (20, 10)):
        controller.update(epoch)
        said.append(controller.setback(epoch))
    return said


def valley_and(after):
    """Oracle A, whose decay begins after 80 steps, and then equal losses."""
    return np.concatenate([VALLEY[:80], np.full(120, after)])


FIRST = VALLEY[:10].mean()
LOWEST = min(VALLEY[40:50].mean(), VALLEY[50:60].mean())
MIDDLE = math.sqrt(FIRST * LOWEST)


@pytest.mark.parametrize("after", [MIDDLE + 1e-3, 2.3, 1e5])
def test_setback_is_found_once_when_a_tenth_of_the_decay_is_over(after):
    """The decay has 120 steps. Twelve of them are over in the tenth epoch, from step 90 to 100."""
    said = setbacks(valley_and(after))
    assert [epoch for epoch, one in enumerate(said, start=1) if one is not None] == [10]
    assert said[9] == pytest.approx((after, FIRST, LOWEST))


@pytest.mark.parametrize("after", [MIDDLE - 1e-3, 0.1, -5.0, math.nan, math.inf])
def test_no_setback(after):
    assert setbacks(valley_and(after)) == [None] * 20


@pytest.mark.parametrize(("after", "found"), [(-0.2, True), (-0.3, False)])
def test_setback_of_a_loss_below_zero_is_measured_by_difference(after, found):
    lower = np.where(np.arange(200) < 80, valley_and(0.0) - 2.1, after)  # the middle is -0.24
    assert any(setbacks(lower)) == found


@pytest.mark.parametrize(("after", "found"), [(0.7, True), (0.6, False)])
def test_setback_of_a_loss_that_had_fallen_far_is_measured_by_ratio(after, found):
    """From 1.8 to 0.23: the middle is 0.64; by difference it would be 1.02."""
    step = np.arange(200)
    assert any(setbacks(np.where(step < 80, 0.05 + 1.95 * np.abs(step - 50) / 50, after))) == found


@pytest.mark.parametrize(("lowest", "found"), [(0.91, False), (0.89, True)])
@pytest.mark.parametrize("first", [2.3, -2.3])
def test_setback_needs_progress(first, lowest, found):
    losses = first - (1 - lowest) * abs(first) * (np.arange(200) // 10 == 4)
    losses[100:] = 5.0
    assert any(setbacks(losses, patience=9)) == found


def test_setback_leaves_out_losses_that_are_not_finite():
    losses = valley_and(2.0)
    losses[[3, 55, 97]] = math.nan, math.inf, -math.inf
    loss, first, lowest = setbacks(losses)[9]
    assert (loss, first) == pytest.approx((2.0, np.mean(np.delete(VALLEY[:10], 3))))
    assert lowest == pytest.approx(min(VALLEY[40:50].mean(), np.mean(np.delete(VALLEY[50:60], 5))))


def test_no_setback_without_a_warmup_or_a_finite_first_epoch():
    assert setbacks(np.full(200, 3.0), warmup_fraction=0.0) == [None] * 20
    losses = valley_and(2.0)
    losses[:10] = math.nan
    assert setbacks(losses) == [None] * 20
