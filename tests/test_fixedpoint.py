"""Integers that stand for an affine of two floats: the same outputs for every input, at the least shift."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from keras_lsb import fixedpoint
from tests import fixedpoint_brute_force as brute_force
from tests.reference.fixedpoint import least_shift, slopes, target

INT8 = (-128, 127)
HALVES = {"half_up": Fraction(1, 2), "floor": Fraction(0)}


def expected(scale, offset, low, high, least, largest, rounding="half_up"):
    return [target(scale, offset, x, least, largest, HALVES[rounding]) for x in range(low, high + 1)]


def random_problem(seed):
    """Three channels, an input range of up to 60 values, an output range of up to 40."""
    random = np.random.default_rng(seed)
    scale = random.normal(size=3) * 10 ** random.uniform(-3, 2)
    offset = random.normal(size=3) * 10 ** random.uniform(-1, 3)
    if seed % 5 == 0:  # ties
        scale, offset = np.round(scale * 8) / 8, np.round(offset * 8) / 8
    if seed % 11 == 0:
        scale[0] = 0
    low, least = int(random.integers(-40, 20)), int(random.integers(-20, 5))
    return scale, offset, (low, low + int(random.integers(0, 60))), (least, least + int(random.integers(0, 40)))


@pytest.mark.parametrize("rounding", HALVES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_output_of_random_channels(rounding, per_channel):
    for seed in range(300):
        scale, offset, inputs, outputs = random_problem(seed)
        found = fixedpoint.solve(scale, offset, inputs, outputs, rounding=rounding, per_channel=per_channel)
        x = np.arange(inputs[0], inputs[1] + 1)[:, None] + np.zeros(3, int)
        wanted = [expected(*pair, *inputs, *outputs, rounding) for pair in zip(scale, offset, strict=True)]
        np.testing.assert_array_equal(found(x).T, wanted, err_msg=str(seed))


def test_shift_is_the_least():
    for seed in range(60):
        scale, offset, inputs, outputs = random_problem(seed)
        inputs = inputs[0], min(inputs[1], inputs[0] + 16)
        scale = np.clip(scale, -2, 2)
        found = fixedpoint.solve(scale, offset, inputs, outputs, per_channel=True)
        for channel in range(3):
            wanted = expected(scale[channel], offset[channel], *inputs, *outputs)
            assert found.shift[channel] == least_shift(wanted, inputs[0], *outputs), (seed, channel)


@pytest.mark.parametrize(
    ("scale", "offset", "inputs", "outputs", "solution"),
    [
        (Fraction(1, 3), 0, (-8, 8), INT8, (11, 16, 5)),
        (Fraction(2, 3), 0, INT8, INT8, (171, 128, 8)),
        (Fraction(-2, 3), 0, INT8, INT8, (-171, 127, 8)),
        (Fraction(1, 10), 0, INT8, INT8, (51, 281, 9)),
        (Fraction(7, 5), 0, INT8, (0, 127), (179, 69, 7)),
        (255 / 256, 0, INT8, INT8, (255, 128, 8)),
        (0.5, 0.25, INT8, INT8, (1, 1, 1)),
        (0.001, 0, INT8, INT8, (0, 0, 0)),
        (300, 0, INT8, INT8, (300, 0, 0)),
        (Fraction(4, 9), Fraction(-3, 2), (-2, 2), (-2, 0), (1, -4, 2)),
        (0.1, 0, INT8, INT8, (103, 512, 10)),  # a little more than 1 / 10: its ties at negative x go down
    ],
)
def test_known_solutions(scale, offset, inputs, outputs, solution):
    found = fixedpoint.solve(scale, offset, inputs, outputs)
    assert found.shift == solution[2]
    x = np.arange(inputs[0], inputs[1] + 1)
    wanted = expected(scale, offset, *inputs, *outputs)
    np.testing.assert_array_equal(found(x[:, None])[:, 0], wanted)
    multiplier, added, shift = solution
    np.testing.assert_array_equal(np.clip((multiplier * x + added) >> shift, *outputs), wanted)


def staircases(steps):
    """All functions floor(slope x + intercept) on 0..steps up to whole slopes and offsets, as tuples."""
    breaks = sorted({Fraction(p, q) for q in range(1, steps + 1) for p in range(q + 1)})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(breaks)]
    return {
        tuple(math.floor(slope * x + Fraction(2 * number + 1, 4 * steps * steps * 8)) for x in range(steps + 1))
        for slope in middles
        for number in range(2 * steps * steps * 8)
    }


@pytest.mark.parametrize(("steps", "worst", "count"), [(1, 0, 2), (2, 1, 4), (3, 2, 8), (4, 3, 14), (5, 3, 24)])
def test_worst_shift_over_all_staircases(steps, worst, count):
    found, shifts = {function for function in staircases(steps) if function[0] == 0}, []
    for function in found:
        lower, upper = slopes(function, 0)
        middle = (lower + upper) / 2
        start = max(Fraction(t) - middle * x for x, t in enumerate(function))
        end = min(Fraction(t) + 1 - middle * x for x, t in enumerate(function))
        offset = (start + end) / 2
        solved = fixedpoint.solve(middle, offset, (0, steps), (-1, steps + 1), rounding="floor")
        assert [*solved(np.arange(steps + 1)[:, None])[:, 0]] == [*function]
        shifts.append(solved.shift)
    assert (max(shifts), len(found)) == (worst, count)


def test_int8_needs_at_most_fifteen_bits_and_all_inputs_are_exact():
    random = np.random.default_rng(3)
    scale, offset = random.normal(size=10_000) * 0.8, random.normal(size=10_000) * 30
    found = fixedpoint.solve(scale, offset, INT8, INT8, per_channel=True)
    assert found.shift.max() <= 15
    x = np.arange(-128, 128)[:, None]
    wanted = np.clip(np.floor(scale * x + offset + 0.5), *INT8)  # no sum of these is near a whole number
    np.testing.assert_array_equal(found(x + np.zeros(10_000, int)), wanted)


@pytest.mark.parametrize("setting", brute_force.SETTINGS[::9], ids=lambda setting: "-".join(map(str, setting)))
def test_outputs_and_least_shifts_in_whole_numbers(setting):
    assert brute_force.check(setting, 6, np.random.default_rng(5), minimal=2) > 6 * 4


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_accumulators_at_every_threshold(bits):
    random = np.random.default_rng(bits)
    low, high = -(2**20), 2**20
    least, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = random.normal(size=40) * 2.0**bits / 2**17
    offset = random.normal(size=40) * 2.0**bits / 8
    for rounding in HALVES:
        found = fixedpoint.solve(scale, offset, (low, high), (least, largest), rounding=rounding)
        for channel in range(40):
            crossings = (np.arange(least, largest + 2) - float(HALVES[rounding]) - offset[channel]) / scale[channel]
            near = np.clip(np.concatenate([np.floor(crossings), np.ceil(crossings)]), low, high).astype(int)
            x = np.unique(np.concatenate([near[:: max(1, len(near) // 500)], [low, high]]))
            total = [int(found.multiplier[channel]) * int(value) + int(found.offset[channel]) for value in x]
            outputs = [min(max(value >> found.shift, least), largest) for value in total]
            half = HALVES[rounding]
            assert outputs == [target(scale[channel], offset[channel], int(v), least, largest, half) for v in x]


def test_shared_shift():
    scale, offset = [0.1, 0.25, 2 / 3], [3.3, -1.0, 0.2]
    own = fixedpoint.solve(scale, offset, INT8, INT8, per_channel=True)
    shared = fixedpoint.solve(scale, offset, INT8, INT8)
    assert shared.shift == own.shift.max()
    x = np.arange(-128, 128)[:, None] + np.zeros(3, int)
    for more in range(4):
        longer = fixedpoint.solve(scale, offset, INT8, INT8, shift=shared.shift + more)
        assert longer.shift == shared.shift + more
        np.testing.assert_array_equal(longer(x), shared(x))
    needs = int(own.shift.argmax())
    with pytest.raises(ValueError, match=f"at least {shared.shift}, which channel {needs} needs.*{shared.shift - 1}"):
        fixedpoint.solve(scale, offset, INT8, INT8, shift=shared.shift - 1)


def test_widths():
    found = fixedpoint.solve([0.3, 250.0], [0.0, 1.0], INT8, INT8)
    assert [*found.bits()["multiplier"]] == [int(a).bit_length() + 1 for a in found.multiplier]
    with pytest.raises(
        ValueError, match=r"multiplier of channel 1 takes \d+ bits.*per_channel=True.*multiplier_bits=8"
    ):
        fixedpoint.solve([0.3, 250.0], [0.0, 1.0], INT8, INT8, multiplier_bits=8)
    fixedpoint.solve([0.3, 250.0], [0.0, 1.0], INT8, INT8, multiplier_bits=32, offset_bits=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": math.nan}, "`scale` must be finite"),
        ({"offset": [0.0, math.inf]}, "`offset` must be finite.*channel 1"),
        ({"input_range": (3, 2)}, r"`input_range`.*\(3, 2\)"),
        ({"input_range": (0.5, 2)}, "`input_range`.*0.5"),
        ({"output_range": (3, 2)}, r"`output_range`.*\(3, 2\)"),
        ({"output_range": (0, 1.5)}, "`output_range`.*1.5"),
        ({"rounding": "even"}, "`rounding`.*'even'"),
        ({"shift": -1}, "`shift`.*-1"),
        ({"scale": [[1.0]]}, "`scale`.*shape"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"scale": [0.5], "offset": [0.0], "input_range": INT8, "output_range": INT8}
    with pytest.raises(ValueError, match=message):
        fixedpoint.solve(**(arguments | change))


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize("zero_points", [(0, 0), (-128, -128), (127, 5)])
def test_batch_norm(activation, zero_points):
    random = np.random.default_rng(7)
    gamma, beta, mean = random.normal(size=(3, 6))
    gamma[1], variance = 0.0, random.uniform(0.1, 2, size=6)
    variance[2] = 1e-8
    scales, epsilon = (0.05, 0.04), 1e-3
    found = fixedpoint.from_batch_norm(
        gamma,
        beta,
        mean,
        variance,
        epsilon,
        input_scale=scales[0],
        output_scale=scales[1],
        input_zero_point=zero_points[0],
        output_zero_point=zero_points[1],
        activation=activation,
    )
    x = np.arange(-128, 128)[:, None] - zero_points[0]
    real = gamma * (x * scales[0] - mean) / np.sqrt(variance + epsilon) + beta
    least = -128 if activation is None else max(-128, zero_points[1])
    largest = min(127, round(6 / scales[1]) + zero_points[1]) if activation == "relu6" else 127
    wanted = np.clip(np.floor(real / scales[1] + zero_points[1] + 0.5), least, largest)
    # Where the real value lies on the edge of two outputs, float64 decides either way.
    edge = np.abs(real / scales[1] + 0.5 - np.rint(real / scales[1] + 0.5)) < 1e-9
    assert ((found(x + np.zeros(6, int)) == wanted) | edge).all()
    assert edge.mean() < 0.01


def test_batch_norm_after_a_convolution():
    random = np.random.default_rng(8)
    kernel_scale, bias = random.uniform(0.001, 0.01, size=4), random.normal(size=4)
    statistics = {
        "gamma": None,
        "beta": None,
        "mean": random.normal(size=4),
        "variance": random.uniform(0.5, 2, size=4),
    }
    found = fixedpoint.from_batch_norm(
        **statistics,
        input_scale=0.02,
        output_scale=0.05,
        kernel_scale=kernel_scale,
        bias=bias,
        input_range=(-60_000, 60_000),
    )
    x = random.integers(-60_000, 60_000, size=(5_000, 4))
    real = (x * 0.02 * kernel_scale + bias - statistics["mean"]) / np.sqrt(statistics["variance"] + 1e-3)
    np.testing.assert_array_equal(found(x), np.clip(np.floor(real / 0.05 + 0.5), *INT8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variance": [1.0, -0.5]}, "`variance`.*-0.5 in channel 1"),
        ({"variance": [0.0, 1.0], "epsilon": 0.0}, "`variance`.*channel 0, epsilon=0.0"),
        ({"gamma": [1.0, math.nan]}, "`gamma` must be finite.*channel 1"),
        ({"output_scale": 0.0}, "`output_scale`.*0.0"),
        ({"kernel_scale": 0.1}, "`input_range`"),
        ({"activation": "tanh"}, "`activation`.*'tanh'"),
    ],
)
def test_wrong_batch_norms(change, message):
    arguments = {"gamma": [1.0, 1.0], "beta": [0.0, 0.0], "mean": [0.0, 0.0], "variance": [1.0, 1.0]}
    arguments |= {"input_scale": 0.1, "output_scale": 0.1}
    with pytest.raises(ValueError, match=message):
        fixedpoint.from_batch_norm(**(arguments | change))
