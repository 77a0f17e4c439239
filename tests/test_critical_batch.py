"""The critical batch size and the plan: facts of the paper, the fit against another fit, warnings, plots, bad input."""

import math
import warnings

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from keras_lsb.scaling import CriticalBatch, Plan, PlanRow, legw, plan
from tests.reference import noise_scale as reference
from tests.support import assert_close

OCTAVES = 2.0 ** np.arange(5, 13)
NOISY_STEPS = [17477, 8383, 5158, 2809, 2078, 1416, 1308, 1067]
EXACT = CriticalBatch(min_steps=1000, min_examples=500_000, critical_batch=500)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_fact_6_exact_steps_give_the_law_back():
    law = CriticalBatch.fit(OCTAVES, 1000 * (1 + 500 / OCTAVES))
    assert (law.min_steps, law.min_examples, law.critical_batch) == pytest.approx((1000, 500_000, 500), rel=1e-7)
    assert law.stderr < 1e-6
    assert law.log_residual < 1e-8
    assert law.speedup(125, 2000) == pytest.approx(4, rel=1e-7)
    assert law.examples(2000) / law.examples(125) == pytest.approx(4, rel=1e-7)


def test_fact_7_noisy_steps():
    law = CriticalBatch.fit(OCTAVES, NOISY_STEPS)
    assert law.min_steps == pytest.approx(982.841, abs=1e-3)
    assert law.min_examples == pytest.approx(507_020, abs=1)
    assert law.critical_batch == pytest.approx(515.872, abs=1e-3)
    assert law.stderr == pytest.approx(34.809, abs=1e-3)
    fitted = 982.841 * (1 + 515.872 / OCTAVES)
    assert law.log_residual == pytest.approx(np.sqrt(np.mean(np.log(NOISY_STEPS / fitted) ** 2)), rel=1e-4)
    assert law.batch_sizes == tuple(OCTAVES)
    assert law.measured_steps == tuple(NOISY_STEPS)


@pytest.mark.parametrize(
    ("excess_examples", "excess_steps"), [(1.1, 11), (1.5, 3), (2, 2), (3, 1.5), (11, 1.1)], ids=str
)
def test_fact_8_examples_pair_with_steps(excess_examples, excess_steps):
    batch_size = 500 * (excess_examples - 1)
    assert EXACT.examples(batch_size) / EXACT.min_examples == pytest.approx(excess_examples, rel=1e-12)
    assert EXACT.steps(batch_size) / EXACT.min_steps == pytest.approx(excess_steps, rel=1e-12)


@pytest.mark.parametrize("critical", [40, 500, 9000])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_fit_agrees_with_one_of_both_unknowns(critical, noise):
    sizes = np.repeat(OCTAVES, 2)
    steps = 700 * (1 + critical / sizes) * np.exp(noise * np.random.default_rng(1).standard_normal(16))
    law = CriticalBatch.fit(sizes, steps)
    expected = reference.critical_batch(sizes, steps)
    assert (law.min_steps, law.critical_batch, law.stderr) == pytest.approx(expected, rel=1e-4)


def test_order_and_scale_of_the_runs_do_not_matter():
    law = CriticalBatch.fit(OCTAVES, NOISY_STEPS)
    turned = CriticalBatch.fit(list(OCTAVES[::-1]), NOISY_STEPS[::-1])
    assert turned.critical_batch == pytest.approx(law.critical_batch, rel=1e-6)
    scaled = CriticalBatch.fit(10 * OCTAVES, 3 * np.array(NOISY_STEPS))
    assert scaled.critical_batch == pytest.approx(10 * law.critical_batch, rel=1e-6)
    assert (scaled.min_steps, scaled.stderr) == pytest.approx((3 * law.min_steps, 10 * law.stderr), rel=1e-5)


def test_two_runs_are_solved_exactly_without_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = CriticalBatch.fit([100, 1000], [6000, 1500])
    assert (law.min_steps, law.critical_batch) == pytest.approx((1000, 500), rel=1e-7)
    assert math.isnan(law.stderr)
    assert_close(law.steps(law.batch_sizes), (6000, 1500), 1e-3)


@pytest.mark.parametrize(
    ("steps", "limit"),
    [
        ([1000, 1000, 1000], 0.01),
        ([1000, 1100, 1300], 0.01),
        ([1000, 500, 250], 1e6),
        ([1000, 400, 160], 1e6),
    ],
    ids=["flat", "rising", "as 1/B", "faster than 1/B"],
)
@pytest.mark.parametrize("count", [2, 3])
def test_steps_without_a_trade_warn_and_leave_it_open(steps, limit, count):
    with pytest.warns(UserWarning, match=r"not resolved: .* standard error of inf .*both sides") as caught:
        law = CriticalBatch.fit([100, 200, 400][:count], steps[:count])
    assert caught[0].filename == __file__
    assert law.stderr == math.inf
    assert law.critical_batch < limit if limit < 1 else law.critical_batch > limit
    assert law.steps(200) == pytest.approx(steps[1], rel=0.35)


def test_a_wide_error_warns():
    sizes = [5000, 10_000, 20_000, 40_000]
    with pytest.warns(UserWarning, match="not resolved"):
        law = CriticalBatch.fit(sizes, [1060, 1000, 1050, 1010])
    assert 0.5 * law.critical_batch < law.stderr < math.inf


def test_a_good_fit_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CriticalBatch.fit(OCTAVES, NOISY_STEPS)


@pytest.mark.parametrize("value", [0, -5, math.nan, math.inf, None])
@pytest.mark.parametrize("name", ["batch_sizes", "steps"])
def test_bad_entry(name, value):
    runs = {"batch_sizes": [32, 64, 128], "steps": [300, 200, 150], name: [32, value, 128]}
    with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: {name}=\[32, {value!r}, 128\]"):
        CriticalBatch.fit(**runs)


def test_bad_runs():
    with pytest.raises(ValueError, match=r"`batch_sizes` and `steps` must have.*Received: 3 batch sizes and 2 steps"):
        CriticalBatch.fit([1, 2, 3], [5, 4])
    for sizes in ([32, 32], [32], []):
        with pytest.raises(ValueError, match=rf"`batch_sizes` must hold.*Received: batch_sizes=\[{str(sizes)[1:-1]}\]"):
            CriticalBatch.fit(sizes, [300.0] * len(sizes))
    with pytest.raises(ValueError, match=r"`steps` must be a list.*Received: steps=5"):
        CriticalBatch.fit([1, 2], 5)


def test_law_of_arrays():
    sizes = np.array([[125, 500], [2000, 1e9]])
    assert_close(EXACT.steps(sizes), [[5000, 2000], [1250, 1000.0005]], 1e-9)
    assert_close(EXACT.examples(sizes), sizes * EXACT.steps(sizes), 1e-3)
    assert_close(EXACT.speedup(125, sizes), [[1, 2.5], [4, 5000 / 1000.0005]], 1e-12)
    assert_close(EXACT.speedup([125, 500], 2000), [4, 1.6], 1e-12)
    assert type(EXACT.steps(500)) is float


def test_at_the_critical_batch_both_cost_twice_their_minimum():
    assert (EXACT.steps(500), EXACT.examples(500)) == (2000, 1_000_000)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "many", None])
def test_bad_batch_size_of_the_law(value):
    for call, name in [
        (EXACT.steps, "batch_size"),
        (EXACT.examples, "batch_size"),
        (lambda size: EXACT.speedup(size, 8), "from_batch"),
        (lambda size: EXACT.speedup(8, size), "to_batch"),
    ]:
        with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}={value!r}"):
            call(value)
    with pytest.raises(ValueError, match=r"`batch_size` must be .*Received: batch_size=.*\[ ?8, -2\]"):
        EXACT.steps([8, -2])


def test_plot_draws_the_hyperbola_the_runs_and_the_critical_point():
    law = CriticalBatch.fit(OCTAVES, NOISY_STEPS)
    axes = law.plot(label="goal")
    curve, runs, star = axes.lines
    examples, steps = curve.get_data()
    assert_close((steps / law.min_steps - 1) * (examples / law.min_examples - 1), np.ones(len(steps)), 1e-9)
    assert_close(runs.get_data(), [OCTAVES * NOISY_STEPS, NOISY_STEPS], 0)
    assert_close(np.ravel(star.get_data()), [2 * law.min_examples, 2 * law.min_steps], 0)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["goal: B_crit 516 ± 35"]


def test_plot_of_known_values_on_given_axes():
    axes = plt.figure().add_subplot()
    assert EXACT.plot(axes) is axes
    assert len(axes.lines) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["B_crit 500"]


def test_plan_by_hand():
    # 1100 steps at batch 100 and noise 1000: 100 steps at least, S(B) = 100 + 100,000 / B.
    rows = plan(1000, 100, 1100, [10, 1, 0.5, 100], step_seconds=0.1)
    assert [row.devices for row in rows] == [10, 1, 0.5, 100]
    assert [row.batch_size for row in rows] == [1000, 100, 50, 10_000]
    assert_close([row.steps for row in rows], [200, 1100, 2100, 110], 1e-9)
    assert_close([row.examples for row in rows], [200_000, 110_000, 105_000, 1_100_000], 1e-6)
    assert_close([row.seconds for row in rows], [20, 110, 210, 11], 1e-9)
    assert_close([row.speedup for row in rows], [5.5, 1, 11 / 21, 10], 1e-12)
    assert_close([row.cost for row in rows], [20 / 11, 1, 10.5 / 11, 10], 1e-12)
    assert all(math.isnan(row.learning_rate) and math.isnan(row.warmup_epochs) for row in rows)
    assert isinstance(rows, Plan)
    assert isinstance(rows[0], PlanRow)


def test_plan_with_steps_that_take_longer_on_more_devices():
    rows = plan(1000, 100, 1100, [4, 10], step_seconds=lambda devices: 0.1 + 0.01 * devices)
    assert_close([row.seconds for row in rows], [350 * 0.14, 200 * 0.2], 1e-9)
    assert_close([row.speedup for row in rows], [121 / 49, 121 / 40], 1e-12)
    assert_close([row.cost for row in rows], [4 * 49 / 121, 10 * 40 / 121], 1e-12)


def test_plan_carries_the_recipe_of_legw():
    for row in plan(1000, 100, 1100, [1, 4, 10], learning_rate=0.3, warmup_epochs=0.5):
        assert (row.learning_rate, row.warmup_epochs) == legw(0.3, 0.5, row.devices)
        assert row.learning_rate == pytest.approx(0.3 * math.sqrt(row.devices), rel=1e-12)


def test_plan_without_noise_gains_nothing():
    for row in plan(0, 100, 1100, [1, 8]):
        assert (row.steps, row.examples, row.speedup, row.cost) == (1100, 110_000 * row.devices, 1, row.devices)


def test_plan_agrees_with_the_law():
    law = CriticalBatch.fit(OCTAVES, NOISY_STEPS)
    rows = plan(law.critical_batch, 64, law.steps(64), [1, 2, 32])
    assert_close([row.steps for row in rows], law.steps([64, 128, 2048]), 1e-8)
    assert_close([row.speedup for row in rows], law.speedup(64, [64, 128, 2048]), 1e-12)


def test_plan_prints_a_table():
    lines = str(plan(1000, 100, 1100, [1, 10], 0.1, learning_rate=0.1, warmup_epochs=0.5)).splitlines()
    heads = ["devices", "batch", "steps", "examples", "seconds", "speedup", "cost", "rate", "warm-up"]
    assert [line.split() for line in lines] == [
        heads,
        ["1", "100", "1100", "1.1e+05", "110", "1", "1", "0.1", "0.5"],
        ["10", "1000", "200", "2e+05", "20", "5.5", "1.818", "0.3162", "5"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_columns_of_large_numbers_stay_apart():
    lines = str(plan(12_345_678, 1_234_567, 123_456, [1, 64], 1.2345e-4)).splitlines()
    assert [len(line.split()) for line in lines] == [9, 9, 9]
    assert lines[1].split()[1:4] == ["1.235e+06", "1.235e+05", "1.524e+11"]
    assert [line.split()[-2:] for line in lines[1:]] == [["-", "-"]] * 2


def test_plan_plot():
    rows = plan(1000, 100, 1100, [1, 4, 10])
    axes = rows.plot()
    (line,) = axes.lines
    assert_close(line.get_data(), [[row.cost for row in rows], [row.speedup for row in rows]], 0)
    assert [text.get_text() for text in axes.texts] == ["1", "4", "10"]
    other = plt.figure().add_subplot()
    assert rows.plot(other) is other


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "much"])
@pytest.mark.parametrize("name", ["noise_scale", "batch_size", "steps", "step_seconds", "learning_rate"])
def test_bad_argument_of_a_plan(name, value):
    arguments = {"noise_scale": 1000, "batch_size": 100, "steps": 1100, "devices": [1], "learning_rate": 0.1}
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}={value!r}"):
        plan(**{**arguments, name: value})


def test_values_that_are_no_numbers_are_named():
    with pytest.raises(ValueError, match=r"`batch_sizes` must be a list of finite numbers.*Received: .*'a'"):
        CriticalBatch.fit(["a", 2], [3, 2])
    with pytest.raises(ValueError, match=r"`devices` must be a list.*Received: devices=4"):
        plan(1000, 100, 1100, 4)
    with pytest.raises(ValueError, match=r"`warmup_epochs` must be.*Received: warmup_epochs=-1"):
        plan(1000, 100, 1100, [1], warmup_epochs=-1)


def test_bad_devices_and_seconds_of_a_plan():
    with pytest.raises(ValueError, match=r"`devices` must be a list.*Received: devices=\[\]"):
        plan(1000, 100, 1100, [])
    with pytest.raises(ValueError, match=r"`devices` must be .*Received: devices=0"):
        plan(1000, 100, 1100, [1, 0])
    with pytest.raises(ValueError, match=r"`step_seconds` must be .*Received: step_seconds=-2"):
        plan(1000, 100, 1100, [1, 4], lambda devices: 2 - devices)
    with pytest.raises(ValueError, match=r"`warmup_epochs` must be .*Received: warmup_epochs=-1"):
        plan(1000, 100, 1100, [1], learning_rate=0.1, warmup_epochs=-1)
