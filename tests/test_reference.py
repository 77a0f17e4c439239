"""The NumPy references reproduce the published oracles and the golden files of other implementations.

Neither keras nor keras_lsb is imported: an oracle that shares code with what it checks proves nothing.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.reference.adamp import adamp_step, project
from tests.reference.lamb import lamb_step
from tests.reference.lars import lars_step
from tests.reference.legw import legw, legw_rate

W = [[0.5, -1, 2], [1.5, 0.25, -0.75]]
W_GRADIENTS = [
    [[0.1, -0.2, 0.3], [-0.4, 0.5, -0.6]],
    [[-0.05, 0.4, 0.02], [0.3, -0.1, 0.9]],
    [[0.7, 0.1, -0.35], [-0.2, 0.6, 0.15]],
]
B = [0.1, -0.2, 0.3]
B_GRADIENTS = [[0.3, -0.1, 0.2], [-0.6, 0.05, 0.4], [0.1, 0.2, -0.9]]


def rates_of(learning_rate, gradients):
    """One learning rate for every step, from a list of them or from a number."""
    return learning_rate if isinstance(learning_rate, list) else [learning_rate] * len(gradients)


def run_moments(step_function, weight, gradients, learning_rate, **settings):
    """Weights after every step of LAMB or AdamP."""
    m = v = np.zeros_like(np.asarray(weight, np.float64))
    history = []
    for step, (gradient, rate) in enumerate(zip(gradients, rates_of(learning_rate, gradients), strict=True), start=1):
        weight, m, v = step_function(weight, gradient, m, v, step, learning_rate=rate, **settings)
        history.append(weight)
    return history


def run_lars(weight, gradients, learning_rate, **settings):
    """Weights after every step of LARS."""
    velocity = np.zeros_like(np.asarray(weight, np.float64))
    history = []
    for gradient, rate in zip(gradients, rates_of(learning_rate, gradients), strict=True):
        weight, velocity = lars_step(weight, gradient, velocity, learning_rate=rate, **settings)
        history.append(weight)
    return history


def assert_close(actual, expected, tolerance=1e-9):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


# LAMB: lr 0.01, wd 0.1, after steps 1 and 3; keras.optimizers.Lamb has epsilon 1e-7.
LAMB_ORACLES = {
    "matrix": (
        (W, W_GRADIENTS, {}),
        [[0.4884210368, -0.9878695972, 1.9867668099], [1.5093735081, 0.2386966408, -0.7381452527]],
        [[0.4628090141, -1.0023811228, 1.9623985155], [1.5116451136, 0.2063321598, -0.7475228439]],
    ),
    "bias_excluded_from_both": (
        (B, B_GRADIENTS, {"decay_excluded": True, "adaptation_excluded": True}),
        [0.0900000333, -0.1900001, 0.29000005],
        [0.0955176482, -0.1919100466, 0.2827512732],
    ),
    "bias_excluded_from_nothing": (
        (B, B_GRADIENTS, {}),
        [0.0978609948, -0.1978398305, 0.2978186416],
        [0.1003186345, -0.1999869105, 0.2959512107],
    ),
    "keras": (
        (W, W_GRADIENTS, {"decay": "outside", "epsilon": 1e-7}),
        [[0.487874777, -0.9873747712, 1.9863747693], [1.5101252317, 0.2381247677, -0.7376247674]],
        [[0.4634328623, -1.0056049272, 1.9655785975], [1.5168979196, 0.20550004, -0.7497285601]],
    ),
}


@pytest.mark.parametrize("name", LAMB_ORACLES)
def test_lamb_oracles(name):
    (weight, gradients, settings), first, third = LAMB_ORACLES[name]
    history = run_moments(lamb_step, weight, gradients, learning_rate=0.01, weight_decay=0.1, **settings)
    assert_close(history[0], first)
    assert_close(history[2], third)


@pytest.mark.parametrize(
    ("denominator", "ratio", "first", "third"),
    [
        (
            "sum",
            0.00290137632,
            [[0.4999695355, -0.9999390711, 1.999907156], [1.500111703, 0.2498542058, -0.7498237414]],
            [[0.4997490988, -1.0000577447, 1.9998175569], [1.500192613, 0.249491075, -0.750015136]],
        ),
        (
            "joint",
            0.00296004714,
            [[0.4999689195, -0.999937839, 1.9999052785], [1.5001139618, 0.2498512576, -0.7498201771]],
            [[0.4997415822, -1.0000618489, 1.9998148856], [1.5001951382, 0.2494790876, -0.7500219152]],
        ),
    ],
    ids=["sum", "joint"],
)
def test_lars_oracles(denominator, ratio, first, third):
    history = run_lars(W, W_GRADIENTS, 0.1, weight_decay=0.01, denominator=denominator)
    assert_close(history[0], first)
    assert_close(history[2], third)
    direction = np.add(W_GRADIENTS[0], 0.01 * np.array(W))
    assert_close((W - history[0]) / (0.1 * direction), np.full((2, 3), ratio), 5e-12)


def test_lars_rate_inside_and_outside_the_momentum():
    inside, outside = (
        run_lars(W, W_GRADIENTS, [0.1, 0.1, 0.01], weight_decay=0.01, rate=rate) for rate in ("inside", "outside")
    )
    assert_close(inside[2][0, 0], 0.4999212, 5e-8)
    assert_close(outside[2][0, 0], 0.4999337, 5e-8)
    constant = [run_lars(W, W_GRADIENTS, 0.1, rate=rate, nesterov=True) for rate in ("inside", "outside")]
    assert_close(*constant, 1e-15)


def test_lamb_options_by_hand():
    gradient = np.array(W_GRADIENTS[0])
    weight_norm = math.sqrt(0.25 + 1 + 4 + 2.25 + 0.0625 + 0.5625)
    zeros = np.zeros((2, 3))

    def first_step(**settings):
        return W - lamb_step(W, gradient, zeros, zeros, 1, learning_rate=0.01, epsilon=0.0, **settings)[0]

    # With epsilon 0 the first update is the sign of the gradient, of norm sqrt(6).
    assert_close(first_step(adaptation_excluded=True), 0.01 * np.sign(gradient), 1e-15)
    # Uncorrected, it is 0.1 / sqrt(0.001) times that, unless the ratio takes the factor out again.
    uncorrected = first_step(bias_correction=False, adaptation_excluded=True)
    assert_close(uncorrected, 0.01 * math.sqrt(10) * np.sign(gradient), 1e-15)
    assert_close(first_step(bias_correction=False), first_step(), 1e-15)
    for settings, length in [
        ({}, weight_norm),
        ({"weight_norm_bounds": (0.5, 2.0)}, 2.0),
        ({"weight_norm_bounds": (5.0, 9.0)}, 5.0),
        ({"weight_norm_bounds": (0.5, 9.0)}, weight_norm),
        ({"max_trust_ratio": 0.75}, 0.75 * math.sqrt(6)),
        ({"max_trust_ratio": 10.0}, weight_norm),
    ]:
        assert_close(np.linalg.norm(first_step(**settings)), 0.01 * length, 1e-15)


def test_lars_zero_norms():
    weight, gradient, zeros = np.array([3.0, 4.0]), np.array([0.5, -0.25]), np.zeros(2)
    assert_close(lars_step(zeros, gradient, zeros, learning_rate=2.0)[0], [-1.0, 0.5], 0)
    # No gradient: ratio 1, so the decay acts at the full learning rate.
    assert_close(lars_step(weight, zeros, zeros, learning_rate=2.0, weight_decay=0.125)[0], 0.75 * weight, 0)


ADAMP_ORACLES = {
    "channel": (
        ([[1, 2], [3, 4]], [[2, -1], [4, -3]], {"channel_axes": (0,)}),
        [[0.879000001, 2.058], [2.885, 4.08]],
    ),
    "keras_channel": (
        ([[1, 3], [2, 4]], [[2, 4], [-1, -3]], {}),
        [[0.879000001, 2.885], [2.058, 4.08]],
    ),
    "wrong_axis": (
        ([[1, 3], [2, 4]], [[2, 4], [-1, -3]], {"channel_axes": (0,)}),
        [[0.8923333339, 2.8770000005], [2.0846666659, 4.0693333334]],
    ),
    "nesterov": (
        ([[1, 2], [3, 4]], [[2, -1], [4, -3]], {"channel_axes": (0,), "nesterov": True}),
        [[0.7710000019, 2.1119999999], [2.7842000007, 4.1555999997]],
    ),
    "layer": (
        ([[1, 2], [3, 4]], [[2, 1], [-4, 2]], {"channel_axes": (0,)}),
        [[0.9123333337, 1.9246666673], [3.1369999992, 3.9493333331]],
    ),
    "nothing": (
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]], {"channel_axes": (0,)}),
        [[0.890000001, 1.8800000005], [2.8700000003, 3.8600000002]],
    ),
    "vector": (([1, 2], [2, -1], {}), [0.89, 2.079999999]),
}


@pytest.mark.parametrize("name", ADAMP_ORACLES)
def test_adamp_oracles(name):
    (weight, gradient, settings), expected = ADAMP_ORACLES[name]
    history = run_moments(adamp_step, weight, [gradient], learning_rate=0.1, weight_decay=0.1, **settings)
    assert_close(history[0], expected)


def test_adamp_channel_axes_are_layouts_of_one_rule():
    generator = np.random.default_rng(7)
    depthwise = generator.normal(size=(3, 3, 4, 2))
    rows = depthwise.reshape(9, 8)
    # Gradients orthogonal to every column, so that the channel view fires.
    gradients = generator.normal(size=(4, 9, 8)) * np.reshape([1, -3, 0.1, 2], (4, 1, 1))
    gradients -= rows * np.sum(gradients * rows, axis=1, keepdims=True) / np.sum(rows**2, axis=0)
    settings = {"learning_rate": 1e-4, "weight_decay": 0.1}
    matrix = run_moments(adamp_step, rows, gradients, **settings)
    transposed = run_moments(adamp_step, rows.T, gradients.transpose(0, 2, 1), channel_axes=(0,), **settings)
    kernel = run_moments(adamp_step, depthwise, gradients.reshape(4, 3, 3, 4, 2), channel_axes=(-2, -1), **settings)
    for step in range(4):
        assert_close(transposed[step].T, matrix[step], 1e-14)
        assert_close(kernel[step].reshape(9, 8), matrix[step], 1e-14)

    perturbation = generator.normal(size=(9, 8))
    projected, view = project(perturbation, gradients[0], rows, delta=0.1, epsilon=1e-8, channel_axes=(-1,))
    assert view == "channel"
    assert_close(np.sum(projected * rows, axis=0), np.zeros(8), 1e-6)
    gradients[0, :, 5] = rows[:, 5]  # one aligned channel vetoes the view
    assert project(perturbation, gradients[0], rows, delta=0.1, epsilon=1e-8, channel_axes=(-1,))[1] != "channel"


@pytest.mark.parametrize(
    ("cosine", "delta", "view"),
    [(0.049, 0.1, "channel"), (0.051, 0.1, "layer"), (0.11, 0.1, "layer"), (0.113, 0.1, None), (0.0, 0.0, None)],
)
def test_adamp_threshold(cosine, delta, view):
    """A channel of 4 entries fires below delta / 2, the layer of 8 below delta / sqrt(8); delta = 0 never projects."""
    weight = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0]]).T
    gradient = np.array([[cosine, 0.0, math.sqrt(1 - cosine**2), 0.0], [0.0, cosine, 0.0, math.sqrt(1 - cosine**2)]]).T
    perturbation = np.arange(8.0).reshape(4, 2)
    # The layer's cosine is -cosine / sqrt(10): it fires below delta * sqrt(10 / 8) = 1.118 delta.
    projected, fired = project(perturbation, gradient, weight, delta=delta, epsilon=1e-8, channel_axes=(-1,))
    assert fired == view
    if view == "channel":
        assert_close(projected, [[0, 1], [2, 0], [4, 5], [6, 7]], 1e-7)


def test_adamp_zero_rows_fire_and_project_nothing():
    zeros = np.zeros((3, 2))
    perturbation = np.arange(6.0).reshape(3, 2)
    for weight, gradient in [(zeros, perturbation), (perturbation, zeros)]:
        projected, view = project(perturbation, gradient, weight, delta=0.1, epsilon=1e-8, channel_axes=(-1,))
        assert view == "channel"
        if not weight.any():
            assert_close(projected, perturbation, 0)


# ImageNet rows that follow LEGW: batch, peak learning rate, warm-up epochs; the first row is the base.
LEGW_TABLES = {
    "lars": (
        390.981,
        [
            (512, 4.0, 0.15625),
            (1024, 5.6568542, 0.3125),
            (4096, 11.3137085, 1.25),
            (8192, 16.0, 2.5),
            (16384, 22.627417, 5.0),
        ],
    ),
    "lamb": (781.962, [(512, 0.005, 0.3125), (4096, 0.0141421, 2.5), (8192, 0.02, 5.0)]),
}


@pytest.mark.parametrize("table", LEGW_TABLES)
def test_legw_published_rows(table):
    warmup_steps, rows = LEGW_TABLES[table]
    base_batch_size, base_rate, base_warmup = rows[0]
    for batch_size, peak, warmup in rows:
        steps_per_epoch = 1_281_167 / batch_size
        rate, epochs = legw(base_rate, base_warmup, batch_size / base_batch_size)
        assert rate == pytest.approx(peak, rel=5e-6)
        assert epochs == warmup
        assert epochs * steps_per_epoch == pytest.approx(warmup_steps, abs=5e-4)

        def rate_at(step, steps_per_epoch=steps_per_epoch, batch_size=batch_size):
            return legw_rate(step, base_rate, base_batch_size, batch_size, steps_per_epoch, base_warmup)

        assert rate_at(100) == pytest.approx(rate * 100 / warmup_steps, rel=1e-5)
        assert rate_at(math.floor(warmup_steps)) < rate == rate_at(math.ceil(warmup_steps))


def test_legw_warmup_steps_do_not_depend_on_the_batch_size():
    for batch_size, peak in [(4096, 0.4), (256, 0.1)]:
        rates = [legw_rate(step, 0.1, 256, batch_size, 65_536 / batch_size, 2) for step in (0, 256, 511, 512, 10**6)]
        assert_close(rates, [0, peak / 2, peak * 511 / 512, peak, peak], 1e-15)
    assert legw_rate(0, 0.1, 256, 4096, 16, 0) == pytest.approx(0.4, rel=1e-15)


def test_legw_schedule_is_read_in_epochs():
    def halved(epoch):
        return 0.1 if epoch <= 40 else 0.05

    for batch_size, peak, boundary in [(4096, 0.4, 640), (256, 0.1, 10_240)]:
        steps = (256, 512, boundary, boundary + 1)
        rates = [legw_rate(step, halved, 256, batch_size, 65_536 / batch_size, 2) for step in steps]
        assert_close(rates, [peak / 2, peak, peak, peak / 2], 1e-15)


@pytest.mark.parametrize(("warmup_epochs", "peak"), [(5, 0.892), (10, 0.790)])
def test_legw_multiplies_ramp_and_decay(warmup_epochs, peak):
    rates = [legw_rate(step, lambda epoch: (1 - epoch / 90) ** 2, 1, 1, 10, warmup_epochs) for step in range(900)]
    assert int(np.argmax(rates)) == warmup_epochs * 10
    assert max(rates) == pytest.approx(peak, abs=5e-4)


def test_legw_composes():
    assert legw(0.1, 2, 1) == (0.1, 2)
    assert legw(*legw(0.1, 2, 3), 5) == pytest.approx(legw(0.1, 2, 15), rel=1e-15)
    assert legw(*legw(0.1, 2, 3), 1 / 3) == pytest.approx((0.1, 2), rel=1e-15)


GOLDENS = {
    name: json.loads((Path(__file__).parent / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("lamb_tensorflow_addons", "lars_lamb_optax", "lamb_keras")
}
INPUTS = GOLDENS["lars_lamb_optax"]["inputs"]
RUNS = [(run["optimizer"], run["name"]) for golden in GOLDENS.values() for run in golden["runs"]]
ARGUMENTS = {"b1": "beta_1", "b2": "beta_2", "eps": "epsilon"}  # optax' names


def find_run(optimizer, name):
    runs = [run for golden in GOLDENS.values() for run in golden["runs"]]
    (run,) = [run for run in runs if (run["optimizer"], run["name"]) == (optimizer, name)]
    return run


def replay(run, variable, **dialect):
    """Weights of one variable after every step, by the reference in the dialect of the run's optimizer."""
    optimizer = run["optimizer"]
    settings = {ARGUMENTS.get(key, key): value for key, value in run["settings"].items()}
    settings["weight_decay"] = settings["weight_decay"] or 0.0
    no_decay = settings.pop("exclude_from_weight_decay", None) or []
    no_adaptation = settings.pop("exclude_from_layer_adaptation", None) or []
    if optimizer == "tfa.optimizers.LAMB":  # without a list of its own, the other one counts
        no_adaptation = no_adaptation or no_decay
    excluded = {"decay_excluded": variable in no_decay, "adaptation_excluded": variable in no_adaptation}

    weight, gradients = INPUTS["weights"][variable], INPUTS["gradients"][variable]
    if optimizer == "optax.lars":
        return run_lars(weight, gradients, **{"denominator": "joint", **excluded, **settings, **dialect})
    if optimizer == "optax.adamw":
        return run_moments(adamp_step, weight, gradients, delta=0.0, **settings)
    decay = "outside" if optimizer == "keras.optimizers.Lamb" else "inside"
    return run_moments(lamb_step, weight, gradients, decay=decay, **excluded, **settings)


@pytest.mark.parametrize(("optimizer", "name"), RUNS, ids="-".join)
def test_goldens(optimizer, name):
    run = find_run(optimizer, name)
    tolerance = {"float64": 1e-12, "float32": 1e-6}[run["dtype"]]
    assert run["weights"].keys() == INPUTS["weights"].keys()
    for variable, expected in run["weights"].items():
        assert_close(replay(run, variable), expected, tolerance)


def test_goldens_can_fail():
    """The inputs are shared, change sign and size, and tell the dialects apart."""
    for golden in GOLDENS.values():
        assert golden["inputs"] == INPUTS
    for gradients in INPUTS["gradients"].values():
        assert np.all(np.max(gradients, axis=0) > 0)
        assert np.all(np.min(gradients, axis=0) < 0)
        sizes = np.sort(np.abs(gradients), axis=0)
        assert np.all(sizes[-1] > 4 * sizes[1])
    assert not np.any(INPUTS["weights"]["zero"])
    assert not np.any(INPUTS["gradients"]["idle"][0])

    ours = find_run("tfa.optimizers.LAMB", "decay")["weights"]["matrix"]
    keras = find_run("keras.optimizers.Lamb", "decay")["weights"]["matrix"]
    assert np.max(np.abs(np.subtract(ours, keras))) > 1e-3
    fallback = find_run("tfa.optimizers.LAMB", "adaptation_list_empty")["weights"]
    assert fallback == find_run("tfa.optimizers.LAMB", "excluded_from_both")["weights"]


@pytest.mark.parametrize("name", ["plain", "schedule", "nesterov", "epsilon_coefficient"])
def test_lars_denominators_agree_without_decay(name):
    run = find_run("optax.lars", name)
    assert run["settings"]["weight_decay"] == 0
    for variable, expected in run["weights"].items():
        assert_close(replay(run, variable, denominator="sum"), expected, 1e-12)
