"""Simulated runs: the published table, its fixed points, other settings against a transcription, and bad input."""

import math

import numpy as np
import pytest

from keras_lsb import topology
from keras_lsb.topology import consensus_distance, simulate
from tests.reference import decentlam as reference
from tests.support import assert_close

PROBLEM = reference.LeastSquares()
GRAPHS = {"grid": (topology.grid(8), reference.grid(2, 4)), "ring": (topology.ring(8), reference.ring(8))}
METHODS = ["DSGD", "DmSGD", "DecentLaM"]
# Mean squared distance from the optimum, relative to it, after training with rate 1e-3 and momentum 0.8.
TABLE = {
    "grid": {
        "DSGD": 1.0675e-6,
        "DmSGD": 9.7561e-6,
        "AWC-DmSGD": 1.7444e-5,
        "DA-DmSGD": 3.9660e-6,
        "QG-DmSGD": 1.0675e-6,
        "SlowMo": 6.4602e-6,
        "DecentLaM": 1.0675e-6,
    },
    "ring": {
        "DSGD": 1.2792e-6,
        "DmSGD": 1.2656e-5,
        "AWC-DmSGD": 2.0461e-5,
        "DA-DmSGD": 4.4038e-6,
        "QG-DmSGD": 1.2792e-6,
        "SlowMo": 9.0730e-6,
        "DecentLaM": 1.2792e-6,
    },
}
ROWS = [(graph, method) for graph in TABLE for method in TABLE[graph]]


def trained(graph, method, steps=2000, rate=1e-3, momentum=0.8, problem=PROBLEM, **settings):
    """Weights at the end of a simulated run on the least squares."""
    settings = {"learning_rate": rate, "momentum": momentum, "record_every": steps, **settings}
    return simulate(graph, problem.gradients, problem.start[0], method=method, steps=steps, **settings).weights


def test_data_of_the_problem():
    assert PROBLEM.a[0, 0, 0] == pytest.approx(-1.0096181835, abs=1e-10)
    assert PROBLEM.b[0, 0] == pytest.approx(-8.4969240471, abs=1e-10)
    assert PROBLEM.b[7, 49] == pytest.approx(6.0442658791, abs=1e-10)
    assert np.linalg.eigvalsh(PROBLEM.hessians).max() == pytest.approx(168.949, abs=1e-3)
    at_optimum = PROBLEM.gradients(np.tile(PROBLEM.optimum, (8, 1)))
    assert np.mean(np.sum(at_optimum**2, 1)) == pytest.approx(9.09025, abs=1e-5)


@pytest.mark.parametrize(("graph", "method"), ROWS)
def test_transcription_gives_the_table(graph, method):
    x = reference.run(method, PROBLEM.gradients, PROBLEM.start, [GRAPHS[graph][1]], 1e-3, 0.8, 2000)
    assert f"{PROBLEM.error(x):.4e}" == f"{TABLE[graph][method]:.4e}"
    if method != "SlowMo":
        rest = PROBLEM.fixed_point(method, GRAPHS[graph][1], 1e-3, 0.8)
        assert PROBLEM.error(rest) == pytest.approx(PROBLEM.error(x), rel=1e-7)


def test_transcription_of_d2():
    with np.errstate(all="ignore"):
        grid, ring = (
            reference.run("D2-DmSGD", PROBLEM.gradients, PROBLEM.start, [w], 1e-3, 0.8, 3000)
            for _, w in GRAPHS.values()
        )
    assert not PROBLEM.error(grid) < 1e100
    assert PROBLEM.error(ring) < 1e-20


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GRAPHS)
def test_fact_4_table(name, method):
    weights = trained(GRAPHS[name][0], method)
    assert f"{PROBLEM.error(weights):.4e}" == f"{TABLE[name][method]:.4e}"
    assert_close(weights, PROBLEM.fixed_point(method, GRAPHS[name][1], 1e-3, 0.8), 1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(
    "graph", [topology.complete(8), topology.exponential(8), topology.path(8), topology.ring(8).lazy()], ids=str
)
def test_other_graphs_and_momenta_agree_with_the_transcription(graph, momentum, method):
    for steps in (7, 1500):
        expected = reference.run(method, PROBLEM.gradients, PROBLEM.start, [graph.matrix()], 7e-4, momentum, steps)
        assert_close(trained(graph, method, steps, 7e-4, momentum), expected, 1e-11)
    rest = PROBLEM.fixed_point(method, graph.matrix(), 7e-4, momentum)
    assert_close(PROBLEM.error(trained(graph, method, 3000, 7e-4, momentum)), PROBLEM.error(rest), 1e-12)


@pytest.mark.parametrize("method", [*METHODS, "PmSGD"])
@pytest.mark.parametrize(
    "graph", [topology.ring_matchings(8), topology.one_peer_exponential(8, 0.4), topology.path_matchings(8)], ids=str
)
def test_schedules_agree_with_the_transcription(graph, method):
    expected = reference.run(method, PROBLEM.gradients, PROBLEM.start, graph.matrices(), 1e-3, 0.8, 300)
    assert_close(trained(graph, method, 300), expected, 1e-11)


def test_bias_grows_with_the_momentum_in_dmsgd_alone():
    ratios = []
    for momentum in (0.5, 0.8, 0.9):
        rate = 2e-5
        plain, biased, corrected = (
            PROBLEM.error(PROBLEM.fixed_point(method, reference.ring(8), rate, momentum)) for method in METHODS
        )
        assert corrected == plain
        ratios.append(biased / plain * (1 - momentum) ** 2)
    assert_close(ratios, 1, 0.1)


def test_weight_decay_and_schedule_enter_as_in_the_transcription():
    def decayed(x, step):
        return PROBLEM.gradients(x) + 0.5 * x

    def rate(step):
        return 1e-3 * (1 + step % 5)

    for method in METHODS:
        momentum = 0.0  # the transcription keeps gradients in its momentum, which differs under a schedule
        expected = reference.run(method, decayed, PROBLEM.start, [reference.ring(8)], rate, momentum, 200)
        found = trained(topology.ring(8), method, 200, rate, momentum, weight_decay=0.5)
        assert_close(found, expected, 1e-11)
    constant = reference.run("DecentLaM", decayed, PROBLEM.start, [reference.ring(8)], 1e-3, 0.9, 200)
    assert_close(trained(topology.ring(8), "DecentLaM", 200, 1e-3, 0.9, weight_decay=0.5), constant, 1e-11)


def test_warm_up_from_zero_and_one_node():
    run = simulate(
        topology.ring(1), lambda x, step: np.sin(x), [3.0, -1.0], learning_rate=lambda step: 0.01 * step, steps=50
    )
    x, v = np.array([3.0, -1.0]), np.zeros(2)
    for step in range(50):
        v = 0.9 * v + 0.01 * step * np.sin(x)
        x = x - v
    assert np.array_equal(run.weights, x[None])
    assert np.array_equal(run.displacement, v[None])
    assert not run.consensus_distance.any()


def test_records():
    start = np.random.default_rng(0).normal(size=(4, 3))
    seen = []

    def gradients(x, step):
        seen.append((step, consensus_distance(x)))
        return x

    run = simulate(topology.ring(4), gradients, start, learning_rate=0.1, steps=10, record_every=4)
    assert run.steps.tolist() == [4, 8, 10]
    assert [step for step, _ in seen] == list(range(10))
    assert run.consensus_distance[:2].tolist() == [seen[4][1], seen[8][1]]
    assert run.consensus_distance[2] == consensus_distance(run.weights)
    nothing = simulate(topology.ring(4), gradients, start, learning_rate=0.1, steps=0)
    assert np.array_equal(nothing.weights, start)
    assert nothing.steps.shape == nothing.consensus_distance.shape == (0,)


@pytest.mark.parametrize(
    ("start", "dtype"), [([1, 2], "float64"), (np.ones(2, "float32"), "float32"), (np.ones((3, 2)), "float64")]
)
def test_types_and_shapes_of_the_start(start, dtype):
    before = np.array(start)
    run = simulate(topology.ring(3), lambda x, step: (x + 0.5).astype("float64"), start, learning_rate=0.1, steps=3)
    assert run.weights.shape == run.displacement.shape == (3, 2)
    assert run.weights.dtype == run.displacement.dtype == dtype
    assert run.consensus_distance.dtype == "float64"
    assert np.array_equal(start, before)


def test_a_thousand_nodes_agree_on_the_mean():
    targets = np.random.default_rng(2).normal(size=(1024, 3))
    run = simulate(
        topology.exponential(1024),
        lambda x, step: x - targets,
        np.zeros(3),
        learning_rate=0.05,
        momentum=0.8,
        steps=150,
    )
    assert_close(run.weights.mean(0), targets.mean(0), 1e-2)
    assert np.abs(run.weights - run.weights.mean(0)).max() < 1


def test_unstable_schedule_diverges_and_is_not_refused():
    start = np.random.default_rng(0).normal(size=(8, 3))
    run = simulate(
        topology.one_peer_exponential(8), lambda x, step: 0 * x, start, learning_rate=0.1, steps=600, record_every=200
    )
    assert run.consensus_distance[-1] > 1e10


def test_consensus_distance_by_hand():
    assert consensus_distance([[1.0, 2.0], [3.0, 2.0]]) == 2 / (2 * 8)
    assert consensus_distance(np.ones((5, 3), "float16")) == 0
    assert consensus_distance([[1.0], [-1.0]]) == math.inf
    assert consensus_distance(np.zeros((4, 2))) == 0
    scaled = np.random.default_rng(0).normal(size=(6, 4))
    assert consensus_distance(3 * scaled) == pytest.approx(consensus_distance(scaled), rel=1e-12)
    single = np.tile(np.float32([1e8, 1]), (2, 1))
    assert consensus_distance(single + np.float32([[0, 1], [0, 0]])) == pytest.approx(0.5 / 2e16, rel=1e-6)


def good(**settings):
    """A run that works but for `settings`."""
    graph = topology.ring(4)
    settings = {"gradients": lambda x, step: x, "start": [1.0, 2.0], "learning_rate": 0.1, "steps": 5} | settings
    return simulate(graph, settings.pop("gradients"), settings.pop("start"), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1}, r"`momentum` must be a number in \[0, 1\). Received: momentum=1"),
        ({"momentum": -0.1}, "`momentum` must be .*Received: momentum=-0.1"),
        ({"learning_rate": -1}, "`learning_rate` must be .*Received: learning_rate=-1"),
        ({"learning_rate": lambda step: math.nan}, "`learning_rate` must be .*Received: learning_rate=nan"),
        ({"weight_decay": -1}, "`weight_decay` must be .*Received: weight_decay=-1"),
        ({"steps": -1}, "`steps` must be a whole number >= 0. Received: steps=-1"),
        ({"record_every": 0}, "`record_every` must be a whole number >= 1"),
        ({"method": "SlowMo"}, "`method` must be one of .*Received: method='SlowMo'"),
        ({"start": np.ones((3, 2))}, r"a row for each of 4 nodes. Received: start of shape \(3, 2\)"),
        ({"start": 1.0}, r"`start` must be of shape \(nodes, parameters\). Received: start of shape \(\)"),
        ({"start": []}, r"`start` must be of shape"),
        ({"start": [1.0, math.nan]}, r"`start` must be finite. Received: start=\[1.0, nan\]"),
        (
            {"gradients": lambda x, step: x[0]},
            r"`gradients` must return an array of shape \(4, 2\). Received: .*\(2,\)",
        ),
    ],
)
def test_bad_settings(settings, message):
    assert good().weights.shape == (4, 2)
    with pytest.raises(ValueError, match=message):
        good(**settings)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_names_node_and_step(value):
    def gradients(x, step):
        gradient = x.copy()
        if step == 3:
            gradient[2, 1] = value
        return gradient

    with pytest.raises(
        ValueError, match=r"message of node 2 is not finite at step 3.*steps=3 returns.*Received: 1 of 4 messages"
    ):
        good(gradients=gradients)
    assert np.isfinite(good(gradients=gradients, steps=3).weights).all()


@pytest.mark.parametrize("weights", [np.ones(3), np.ones((0, 3)), 1.0])
def test_bad_shape_of_weights(weights):
    with pytest.raises(ValueError, match=r"`weights` must be of shape \(nodes, parameters\)"):
        consensus_distance(weights)
