"""The integers of a depthwise convolution: exact outputs on each of LiteRT's kernels, and on the interpreters."""

from fractions import Fraction

import numpy as np
import pytest

from keras_lsb.fixedpoint import Int8Affine, solve_depthwise
from tests.depthwise_file import converter_integers, depthwise_file, run_file
from tests.reference.fixedpoint import target

KERNELS = ("xnnpack", "builtin", "reference")
INPUTS = np.arange(-128, 128)


def batch_norms(count, seed, relu=False):
    """Random batch normalizations of int8 tensors, one in ten with a negative gamma."""
    random = np.random.default_rng(seed)
    gamma = random.normal(1, 0.4, count) * random.choice([1] * 9 + [-1], count)
    scale = gamma / random.uniform(0.3, 3, count)
    offset = random.normal(0, 0.5, count) - random.normal(0, 1, count) * scale
    points = random.integers(-60, 60, 2)
    output = (4.3 / 255, -128) if relu else (9.7 / 255, int(points[1]))
    return Int8Affine(scale, offset, 6.1 / 255, output[0], int(points[0]), output[1]).checked()


def extremes(seed, output_range):
    """Slopes of nineteen decades and of both signs, flat channels, ties, and channels that saturate."""
    random = np.random.default_rng(seed)
    scale = random.choice([-1, 1], 60) * 10 ** random.uniform(-12, 2, 60)
    offset = random.normal(0, 2, 60) * 10 ** random.uniform(-3, 2, 60)
    scale[:4], offset[4:9] = 0, [0.05, 0.025, 0, 0.15, 0.05]
    scale[4:9] = [0.5, -0.5, 1, 2, 0.25]
    scale[9:12] = [1e7, -1e7, 3e4]
    points = [int(random.integers(-128, 127)), int(random.integers(output_range[0], output_range[1] + 1))]
    return Int8Affine(scale, offset, 0.1, 0.05, *points, output_range).checked()


def exact_outputs(affine):
    """The same by rational arithmetic, one output at a time."""
    slopes = affine.scale * affine.input_scale / affine.output_scale
    offsets = affine.offset / affine.output_scale + affine.output_zero_point
    half, x = Fraction(1, 2), (INPUTS - affine.input_zero_point).tolist()
    columns = [
        [target(slope, offset, one, *affine.output_range, half) for one in x]
        for slope, offset in zip(slopes.tolist(), offsets.tolist(), strict=True)
    ]
    return np.array(columns).T


@pytest.mark.parametrize("output_range", [(-128, 127), (-5, 120), (7, 7), (-128, -127)])
def test_exact_outputs_and_extreme_channels(output_range):
    affine = extremes(5, output_range)
    np.testing.assert_array_equal(affine.outputs(), exact_outputs(affine))
    for kernel in KERNELS:
        found = solve_depthwise(affine, kernel=kernel)
        outputs = affine.run(found.weight, found.bias, found.kernel_scale, kernel)
        np.testing.assert_array_equal((outputs != affine.outputs()).sum(axis=0), found.wrong)
        assert found.exact.mean() >= 0.95, kernel
        assert np.abs(found.weight.astype(int)).min() >= 1
        assert ((found.kernel_scale > 0) & np.isfinite(found.kernel_scale)).all()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("kernel", "goal"), [("xnnpack", 0.998), ("builtin", 0.998), ("reference", 0.95)])
def test_share_of_exact_channels(kernel, goal, relu):
    affine = batch_norms(2048, 3, relu)
    found = solve_depthwise(affine, kernel=kernel)
    outputs = affine.run(found.weight, found.bias, found.kernel_scale, kernel)
    np.testing.assert_array_equal((outputs != affine.outputs()).sum(axis=0), found.wrong)
    assert found.exact.mean() >= goal
    assert np.abs(outputs - affine.outputs()).max() <= 1


def test_a_constant_just_below_a_half():
    affine = Int8Affine([0.0], [0.49999999999999994], 1.0, 1.0).checked()  # with 1/2, the sum in float64 is 1
    assert (affine.outputs() == 0).all()
    assert solve_depthwise(affine).exact.all()


def test_sample_against_rational_arithmetic():
    affine = batch_norms(24, 8)
    np.testing.assert_array_equal(affine.outputs(), exact_outputs(affine))


@pytest.mark.parametrize("channels", [3, 8, 13, 2048])  # the built-in kernel takes eight together, and the rest apart
@pytest.mark.parametrize("kernel", KERNELS)
def test_interpreter(kernel, channels):
    for relu in (False, True):
        affine = batch_norms(channels, 11, relu)
        found = solve_depthwise(affine, kernel=kernel)
        outputs = run_file(depthwise_file(affine, found.weight, found.bias, found.kernel_scale, relu), kernel)
        np.testing.assert_array_equal((outputs != affine.outputs()).sum(axis=0), found.wrong)
        integers = converter_integers(affine)
        outputs = run_file(depthwise_file(affine, *integers, relu), kernel)
        np.testing.assert_array_equal(outputs, affine.run(*integers, kernel))
        if channels == 2048:
            assert found.exact.mean() >= (0.97 if kernel == "reference" else 0.998)
            assert (outputs == affine.outputs()).all(axis=0).mean() < 0.9, "the converter's integers are as good"


def test_each_kernel_needs_integers_of_its_own():
    affine = batch_norms(256, 12)
    found = solve_depthwise(affine, kernel="xnnpack")
    other = affine.run(found.weight, found.bias, found.kernel_scale, "builtin")
    assert (other != affine.outputs()).any(axis=0).mean() > 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": [np.nan]}, "`scale` must hold one finite number"),
        ({"offset": [np.inf]}, "`offset` must hold one finite number"),
        ({"input_scale": 0.0}, "`input_scale` must be a finite number > 0"),
        ({"output_zero_point": 128}, "must lie within int8"),
        ({"output_range": (5, 4)}, "must lie within int8"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=rf"{message}.*Received"):
        solve_depthwise(Int8Affine(**{"scale": [1.0], "offset": [0.0], "input_scale": 1, "output_scale": 1} | change))


def test_unknown_kernel():
    with pytest.raises(ValueError, match=r"`kernel`.*'reference_dense'"):
        solve_depthwise(Int8Affine([1.0], [0.0], 1.0, 1.0), kernel="reference_dense")
