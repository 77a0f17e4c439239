"""The pure rules: published oracle numbers, properties of the papers, and edge cases."""

import itertools

import numpy as np
import pytest

from keras_lsb import rules
from keras_lsb.rules.projection import from_channels, project, to_channels
from tests import support
from tests.reference import adamp as adamp_reference
from tests.support import assert_close, ops, to_numpy, to_tensor
from tests.test_reference import B_GRADIENTS, W_GRADIENTS, B, W

MOMENTS = {"beta_1": 0.9, "beta_2": 0.999, "weight_decay": 0.0, "adapt": True}
DEFAULTS = {
    rules.lamb: {**MOMENTS, "learning_rate": 0.01, "epsilon": 1e-6},
    rules.adamp: {
        **MOMENTS,
        "learning_rate": 0.1,
        "epsilon": 1e-8,
        "delta": 0.1,
        "weight_decay_ratio": 0.1,
        "nesterov": False,
    },
    rules.lars: {
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "trust_coefficient": 0.001,
        "epsilon": 0.0,
        "nesterov": False,
        "adapt": True,
    },
}
# float64 reaches the printed digits of the oracles; JAX computes in float32 unless told otherwise.
PRECISIONS = {"float32": 1e-6, **({"float64": 2e-9} if support.TENSORFLOW else {})}
EXACT = "float64" if support.TENSORFLOW else "float32"
TINY = PRECISIONS[EXACT]


def run(rule, weight, gradients, dtype=EXACT, **settings):
    """Weights before the first and after every update."""
    settings = {**DEFAULTS[rule], **settings}
    rates = settings.pop("learning_rate")
    rates = rates if isinstance(rates, list) else [rates] * len(gradients)
    weight = to_tensor(weight, dtype)
    slots = [ops.zeros_like(weight)] * (1 if rule is rules.lars else 2)
    history = [weight]
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        extra = {} if rule is rules.lars else {"step": to_tensor(float(number), dtype)}
        step, *slots = rule(
            weight, to_tensor(gradient, dtype), *slots, learning_rate=to_tensor(rate, dtype), **extra, **settings
        )
        weight = weight - step
        history.append(weight)
    return [to_numpy(weight) for weight in history]


DECAYED = {"weight_decay": 0.1}
OUTSIDE = {**DECAYED, "decay": "outside", "epsilon": 1e-7}
# name: rule, weight, gradients, settings, weights after step 1, weights after step 3 (None: not published)
ORACLES = {
    "lamb": (
        (rules.lamb, W, W_GRADIENTS, DECAYED),
        [[0.4884210368, -0.9878695972, 1.9867668099], [1.5093735081, 0.2386966408, -0.7381452527]],
        [[0.4628090141, -1.0023811228, 1.9623985155], [1.5116451136, 0.2063321598, -0.7475228439]],
    ),
    "lamb_bias_excluded_from_both": (
        (rules.lamb, B, B_GRADIENTS, {"adapt": False}),
        [0.0900000333, -0.1900001, 0.29000005],
        [0.0955176482, -0.1919100466, 0.2827512732],
    ),
    "lamb_bias_excluded_from_nothing": (
        (rules.lamb, B, B_GRADIENTS, DECAYED),
        [0.0978609948, -0.1978398305, 0.2978186416],
        [0.1003186345, -0.1999869105, 0.2959512107],
    ),
    "lamb_keras_dialect": (
        (rules.lamb, W, W_GRADIENTS, OUTSIDE),
        [[0.487874777, -0.9873747712, 1.9863747693], [1.5101252317, 0.2381247677, -0.7376247674]],
        [[0.4634328623, -1.0056049272, 1.9655785975], [1.5168979196, 0.20550004, -0.7497285601]],
    ),
    "lars": (
        (rules.lars, W, W_GRADIENTS, {"weight_decay": 0.01}),
        [[0.4999695355, -0.9999390711, 1.999907156], [1.500111703, 0.2498542058, -0.7498237414]],
        [[0.4997490988, -1.0000577447, 1.9998175569], [1.500192613, 0.249491075, -0.750015136]],
    ),
    "lars_joint_norm_dialect": (
        (rules.lars, W, W_GRADIENTS, {"weight_decay": 0.01, "denominator": "joint"}),
        [[0.4999689195, -0.999937839, 1.9999052785], [1.5001139618, 0.2498512576, -0.7498201771]],
        [[0.4997415822, -1.0000618489, 1.9998148856], [1.5001951382, 0.2494790876, -0.7500219152]],
    ),
    "adamp_pytorch_layout": (
        (rules.adamp, [[1, 2], [3, 4]], [[[2, -1], [4, -3]]], {**DECAYED, "channel_axes": (0,)}),
        [[0.879000001, 2.058], [2.885, 4.08]],
        None,
    ),
    "adamp_keras_layout": (
        (rules.adamp, [[1, 3], [2, 4]], [[[2, 4], [-1, -3]]], DECAYED),
        [[0.879000001, 2.885], [2.058, 4.08]],
        None,
    ),
    "adamp_wrong_axis": (
        (rules.adamp, [[1, 3], [2, 4]], [[[2, 4], [-1, -3]]], {**DECAYED, "channel_axes": (0,)}),
        [[0.8923333339, 2.8770000005], [2.0846666659, 4.0693333334]],
        None,
    ),
    "adamp_nesterov": (
        (rules.adamp, [[1, 2], [3, 4]], [[[2, -1], [4, -3]]], {**DECAYED, "channel_axes": (0,), "nesterov": True}),
        [[0.7710000019, 2.1119999999], [2.7842000007, 4.1555999997]],
        None,
    ),
    "adamp_channels_vetoed": (
        (rules.adamp, [[1, 2], [3, 4]], [[[2, 1], [-4, 2]]], {**DECAYED, "channel_axes": (0,)}),
        [[0.9123333337, 1.9246666673], [3.1369999992, 3.9493333331]],
        None,
    ),
    "adamp_gradient_along_the_weight": (
        (rules.adamp, [[1, 2], [3, 4]], [[[1, 2], [3, 4]]], {**DECAYED, "channel_axes": (0,)}),
        [[0.890000001, 1.8800000005], [2.8700000003, 3.8600000002]],
        None,
    ),
    "adamp_vector": ((rules.adamp, [1, 2], [[2, -1]], DECAYED), [0.89, 2.079999999], None),
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ORACLES)
def test_oracle(name, dtype):
    (rule, weight, gradients, settings), first, third = ORACLES[name]
    history = run(rule, weight, gradients, dtype, **settings)
    assert_close(history[1], first, PRECISIONS[dtype])
    if third is not None:
        assert_close(history[3], third, PRECISIONS[dtype])


@pytest.mark.parametrize(
    ("ours", "other", "gap"), [("lamb", "lamb_keras_dialect", 4e-3), ("lars", "lars_joint_norm_dialect", 1e-5)]
)
def test_other_dialect_is_not_the_default(ours, other, gap):
    (rule, weight, gradients, settings), _, _ = ORACLES[ours]
    assert np.abs(run(rule, weight, gradients, **settings)[3] - ORACLES[other][2]).max() > gap


@pytest.mark.parametrize(("rate", "expected"), [("inside", 0.4999212), ("outside", 0.4999337)])
def test_lars_rate_inside_or_outside_the_momentum(rate, expected):
    final = run(rules.lars, W, W_GRADIENTS, learning_rate=[0.1, 0.1, 0.01], weight_decay=0.01, rate=rate)[3]
    assert_close(final[0, 0], expected, 5e-7)


def test_lars_ratios_of_both_denominators():
    weight, gradient = np.linalg.norm(W), np.linalg.norm(W_GRADIENTS[0])
    joint = np.linalg.norm(np.add(W_GRADIENTS[0], np.multiply(0.01, W)))
    ratio = rules.trust_ratio(to_tensor(weight), to_tensor(gradient), coefficient=0.001, weight_decay=0.01)
    assert_close(to_numpy(ratio), 0.00290137632, 1e-9)
    assert_close(
        to_numpy(rules.trust_ratio(to_tensor(weight), to_tensor(joint), coefficient=0.001)), 0.00296004714, 1e-9
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 10.0])
@pytest.mark.parametrize(("weight", "gradients"), [(W, W_GRADIENTS), (B, B_GRADIENTS)])
def test_lamb_moves_by_the_norm_of_the_weight(weight, gradients, weight_decay):
    history = run(rules.lamb, weight, gradients, weight_decay=weight_decay)
    for before, after in itertools.pairwise(history):
        assert_close(np.linalg.norm(after - before) / np.linalg.norm(before), 0.01, 3e-7)


def test_decay_changes_the_direction_of_lamb_and_not_its_length():
    plain, decayed = (run(rules.lamb, W, W_GRADIENTS, weight_decay=decay)[1] - W for decay in (0.0, 1.0))
    assert_close(np.linalg.norm(plain), np.linalg.norm(decayed), 1e-6)
    assert np.sum(plain * decayed) < 0.99 * np.linalg.norm(plain) * np.linalg.norm(decayed)
    outside = run(rules.lamb, W, W_GRADIENTS, weight_decay=1.0, decay="outside")[1] - W
    assert abs(np.linalg.norm(outside) / np.linalg.norm(plain) - 1) > 0.01


def test_first_step_of_lars_has_the_length_of_the_trust_coefficient():
    before, after, *_ = run(rules.lars, W, W_GRADIENTS, learning_rate=10.0, trust_coefficient=0.02)
    assert_close(np.linalg.norm(after - before), 10.0 * 0.02 * np.linalg.norm(W), 1e-6)


@pytest.mark.parametrize(("rule", "tolerance"), [(rules.lars, 1e-7), (rules.lamb, 1e-6)])
def test_scale_of_the_gradients_does_not_matter(rule, tolerance):
    scaled = [np.multiply(37.0, gradient) for gradient in W_GRADIENTS]
    assert_close(run(rule, W, W_GRADIENTS)[3], run(rule, W, scaled)[3], tolerance)


def test_adamp_step_is_orthogonal_to_every_channel():
    weight, gradients = np.array([[1.0, 3.0], [2.0, 4.0]]), [[[2.0, 4.0], [-1.0, -3.0]]]
    before, after = run(rules.adamp, weight, gradients)
    step = after - before
    assert np.abs(step).min() > 0.01
    for channel in range(2):
        norms = np.linalg.norm(step[:, channel]) * np.linalg.norm(weight[:, channel])
        assert abs(step[:, channel] @ weight[:, channel]) / norms < 1e-6
    assert (np.linalg.norm(after, axis=0) > np.linalg.norm(before, axis=0)).all()


def adam(weight, gradients, learning_rate, epsilon=1e-12, weight_decay=0.0):
    """Adam with epsilon added to the corrected root, and AdamW's decay, in float64."""
    weight, m, v = np.asarray(weight, "float64"), 0.0, 0.0
    for number, gradient in enumerate(np.asarray(gradients), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        direction = m / (1 - 0.9**number) / (np.sqrt(v / (1 - 0.999**number)) + epsilon)
        weight = weight - learning_rate * (weight_decay * weight + direction)
    return weight


def test_lamb_excluded_from_everything_is_adam():
    ours = run(rules.lamb, W, W_GRADIENTS, adapt=False, epsilon=1e-12)[3]
    assert_close(ours, adam(W, W_GRADIENTS, 0.01), PRECISIONS[EXACT])


def test_adamp_that_never_projects_is_adamw():
    settings = {"epsilon": 1e-12, "weight_decay": 0.1}
    expected = adam(W, W_GRADIENTS, 0.1, weight_decay=0.1)
    assert_close(run(rules.adamp, W, W_GRADIENTS, delta=0.0, **settings)[3], expected, TINY)
    assert_close(run(rules.adamp, W, W_GRADIENTS, delta=100.0, adapt=False, **settings)[3], expected, TINY)


def test_lars_excluded_from_everything_is_momentum():
    weight, velocity = np.asarray(W), 0.0
    for gradient in np.asarray(W_GRADIENTS):
        velocity = 0.9 * velocity + 0.1 * gradient
        weight = weight - velocity
    assert_close(run(rules.lars, W, W_GRADIENTS, adapt=False)[3], weight, TINY)


@pytest.mark.parametrize(
    ("weight_norm", "update_norm", "expected"),
    [(3.0, 2.0, 1.5), (0.0, 2.0, 1.0), (3.0, 0.0, 1.0), (0.0, 0.0, 1.0), (3.0, np.inf, 0.0)],
)
def test_trust_ratio(weight_norm, update_norm, expected):
    assert to_numpy(rules.trust_ratio(to_tensor(weight_norm), to_tensor(update_norm))) == expected


def test_trust_ratio_takes_coefficient_decay_and_epsilon():
    ratio = rules.trust_ratio(to_tensor(3.0), to_tensor(2.0), coefficient=0.5, weight_decay=0.1, epsilon=0.2)
    assert_close(to_numpy(ratio), 1.5 / 2.5, 1e-7)
    # The tests are on the norms themselves: epsilon or decay must not turn a zero gradient into a huge ratio.
    assert to_numpy(rules.trust_ratio(to_tensor(3.0), to_tensor(0.0), weight_decay=1e-8, epsilon=1e-8)) == 1


@pytest.mark.parametrize("rule", DEFAULTS)
def test_nan_gradient_is_not_hidden(rule):
    final = run(rule, W, [np.full((2, 3), np.nan)])[1]
    assert np.isnan(final).all()


@pytest.mark.parametrize("rule", DEFAULTS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 2, 2, 3)])
def test_zero_weight_and_zero_gradient_stay_finite(rule, shape):
    zero, one = np.zeros(shape), np.ones(shape)
    assert_close(run(rule, one, [zero])[1], one, 0)
    step = run(rule, zero, [one], learning_rate=0.1)[1]
    assert_close(step, -0.1 * one, 1e-6)


def test_lars_decays_at_the_full_rate_without_a_gradient():
    assert_close(run(rules.lars, W, [np.zeros((2, 3))], weight_decay=0.5)[1], np.multiply(W, 1 - 0.1 * 0.5), 1e-7)


@pytest.mark.parametrize("shape", [(4095,), (4096,), (4104,), (64, 65, 3), (5000, 1)])
def test_norm_of_a_large_array(shape):
    array = np.random.default_rng(2).normal(size=shape)
    assert to_numpy(rules.euclidean_norm(to_tensor(array))) == pytest.approx(np.linalg.norm(array), rel=1e-6)


def test_norm_of_a_scalar_is_its_absolute_value():
    assert to_numpy(rules.euclidean_norm(to_tensor(-3.0))) == 3


@pytest.mark.parametrize(
    ("shape", "channel_axes"), [((3, 3, 4, 2), (-2, -1)), ((5, 3), (0,)), ((3, 3, 2, 4), (-1,)), ((4, 6), (-1,))]
)
@pytest.mark.parametrize("case", ["channel", "layer", "nothing"])
def test_projection_by_layout(shape, channel_axes, case):
    random = np.random.default_rng(5)
    weight, gradient, step = (random.normal(size=shape) for _ in range(3))
    rows = list(adamp_reference.rows_of(shape, channel_axes))
    along = [np.sum(gradient[row] * weight[row]) / np.sum(weight[row] ** 2) for row in rows]
    for row, multiple in zip(rows, along, strict=True):
        gradient[row] -= multiple * weight[row]
    if case == "layer":
        # Two channels pull against each other: each is aligned with its weight, their sum is not.
        first, second = rows[:2]
        gradient[first] += weight[first] * np.sum(weight[second] ** 2)
        gradient[second] -= weight[second] * np.sum(weight[first] ** 2)
    elif case == "nothing":
        gradient = gradient + 5 * weight
    settings = {"delta": 0.1, "epsilon": 1e-8}
    expected, view = adamp_reference.project(step, gradient, weight, channel_axes=channel_axes, **settings)
    assert (view or "nothing") == case
    matrices = (to_channels(to_tensor(array, EXACT), channel_axes) for array in (weight, gradient, step))
    actual, fired = project(*matrices, **settings)
    actual = from_channels(actual, shape, channel_axes)
    assert bool(ops.convert_to_numpy(fired)) == (case != "nothing")
    assert_close(to_numpy(actual), expected, 1e-10 if support.TENSORFLOW else 1e-5)
