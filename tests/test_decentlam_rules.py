"""The rules of DecentLaM and DmSGD: one step by hand, facts of the algebra, and what rounding must not do."""

import numpy as np
import pytest

from keras_lsb import rules, topology
from tests import support
from tests.reference import decentlam as reference
from tests.support import assert_close, to_numpy, to_tensor

RANDOM = np.random.default_rng(11)
X, G, V = RANDOM.normal(size=(3, 8, 5))
W = topology.grid(8).matrix()
RULES = {"DecentLaM": (rules.decentlam_message, rules.decentlam), "DmSGD": (rules.dmsgd_message, rules.dmsgd)}
PRECISIONS = {"float32": 1e-6, **({"float64": 1e-14} if support.TENSORFLOW else {})}


def disagreement_of(messages, w):
    """Sum over j of w_ij (z_i - z_j)."""
    return np.einsum("ij,ijp->ip", w.astype(messages.dtype), messages[:, None] - messages[None])


def step(name, x, g, v, w, rate, momentum):
    """Weights and displacements of all nodes after one step."""
    message, finish = RULES[name]
    messages = message(x, g, v, learning_rate=rate, momentum=momentum)
    update, v = finish(g, v, disagreement_of(messages, w), learning_rate=rate, momentum=momentum)
    return x - update, v


def run(name, gradients, start, w, rates, momentum):
    """Weights after each step; `gradients` is a function of the weights."""
    x, v, history = start, np.zeros_like(start), []
    for rate in rates:
        x, v = step(name, x, gradients(x), v, w, rate, momentum)
        history.append(x)
    return history


def test_one_step_by_hand():
    settings = {"learning_rate": 0.1, "momentum": 0.5}
    assert rules.decentlam_message(3.0, 2.0, 7.0, **settings) == 2.8
    assert rules.decentlam(2.0, 7.0, 0.25, **settings) == (3.95, 3.95)
    assert rules.dmsgd_message(3.0, 2.0, 7.0, **settings) == pytest.approx(-0.7, abs=1e-15)
    assert rules.dmsgd(2.0, 7.0, 0.25, **settings) == (3.95, 3.7)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", RULES)
def test_tensors_give_the_numbers_of_numpy(name, dtype):
    message, finish = RULES[name]
    settings = {"learning_rate": 0.03, "momentum": 0.9}
    tensors = {"learning_rate": to_tensor(0.03, dtype), "momentum": 0.9}
    x, g, v = (to_tensor(array, dtype) for array in (X, G, V))
    assert_close(to_numpy(message(x, g, v, **tensors)), message(X, G, V, **settings), PRECISIONS[dtype])
    for actual, expected in zip(finish(g, v, x, **tensors), finish(G, V, X, **settings), strict=True):
        assert_close(to_numpy(actual), expected, PRECISIONS[dtype])


def test_bracket_is_the_corrected_gradient_of_the_paper():
    corrected = (X - W @ (X - 0.03 * G)) / 0.03
    x, v = step("DecentLaM", X, G, V, W, 0.03, 0.9)
    assert_close(v, 0.9 * V + 0.03 * corrected, 1e-14)
    assert_close(x, X - v, 0)
    # The form of the specification: each node's own part, and differences to what it receives.
    z = X - 0.03 * G
    own = np.diag(W)[:, None] * 0.03 * G
    others = sum(np.where(j == np.arange(8), 0, W[:, j])[:, None] * (X - z[j]) for j in range(8))
    assert_close(v, 0.9 * V + own + others, 1e-14)


def test_dmsgd_averages_what_each_node_would_do():
    x, v = step("DmSGD", X, G, V, W, 0.03, 0.9)
    assert_close(v, 0.9 * V + 0.03 * G, 0)
    assert_close(x, W @ (X - v), 1e-14)


@pytest.mark.parametrize("name", RULES)
def test_fact_1_without_momentum_it_is_adapt_then_combine(name):
    assert_close(step(name, X, G, V, W, 0.03, 0.0)[0], W @ (X - 0.03 * G), 1e-14)


@pytest.mark.parametrize("name", RULES)
def test_fact_2_the_average_follows_the_mean_gradient(name):
    for graph in (topology.path(8), topology.exponential(8), topology.one_peer_exponential(8)):
        x, v = step(name, X, G, V, graph.matrix(1), 0.03, 0.9)
        assert_close(v.mean(0), 0.9 * V.mean(0) + 0.03 * G.mean(0), 1e-14)
        assert_close(x.mean(0), X.mean(0) - v.mean(0), 1e-14)


@pytest.mark.parametrize("name", RULES)
def test_fact_3_complete_graph_is_momentum_sgd_on_the_mean_gradient(name):
    problem = reference.LeastSquares(nodes=6, rows=9, columns=4)
    rates = [1e-3, 2e-3, 4e-3, 4e-3, 1e-3, 1e-4] * 5
    ours = run(name, problem.gradients, problem.start, topology.complete(6).matrix(), rates, 0.9)
    x, v = problem.start, np.zeros_like(problem.start)
    for rate, found in zip(rates, ours, strict=True):
        if name == "DmSGD":
            found = found.mean(0)  # its displacements stay apart, the weights do not
        v = 0.9 * v + rate * problem.gradients(x).mean(0)
        x = x - v
        assert_close(found, x if name == "DecentLaM" else x[0], 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", RULES)
def test_fact_3_one_node_is_momentum_sgd_bit_for_bit(name, dtype):
    x, expected = X[:1].astype(dtype), X[0].astype(dtype)
    v, velocity = np.zeros_like(x), np.zeros_like(expected)
    for number in range(100):
        rate = np.asarray([0.0, 0.01, 0.3, 0.007][number % 4], dtype)
        x, v = step(name, x, np.sin(3 * x), v, np.eye(1), rate, 0.9)
        velocity = 0.9 * velocity - rate * np.sin(3 * expected)  # Keras' SGD
        expected = expected + velocity
        assert np.array_equal(x[0], expected)
        assert x.dtype == dtype


def test_fact_5_heavy_ball_on_the_penalized_loss():
    w = topology.grid(8).lazy().matrix()
    values, vectors = np.linalg.eigh(w)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    problem = reference.LeastSquares(rows=12, columns=3)
    rate, s = 2e-3, RANDOM.normal(size=(8, 3))
    ours = run("DecentLaM", problem.gradients, root @ s, w, [rate] * 200, 0.9)
    velocity = np.zeros_like(s)
    for found in ours:
        slope = root @ problem.gradients(root @ s) + (np.eye(8) - w) @ s / rate
        velocity = 0.9 * velocity + rate * slope
        s = s - velocity
        assert_close(found, root @ s, 1e-10)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("graph", [topology.ring(8), topology.exponential(8), topology.path(7)], ids=str)
def test_fact_6_agreement_without_gradients_changes_no_bit(name, graph):
    start = np.tile(RANDOM.normal(size=3).astype("float32"), (graph.nodes, 1))
    x, v, zero = start, np.zeros_like(start), np.zeros_like(start)
    w = graph.matrix().astype("float32")
    for _ in range(10_000):
        x, v = step(name, x, zero, v, w, np.float32(0.1), 0.9)
    assert np.array_equal(x, start)
    assert not v.any()


@pytest.mark.parametrize("name", RULES)
def test_fact_6_a_rate_of_zero(name):
    agreed = np.tile(X[0], (8, 1))
    x, v = step(name, agreed, G, np.zeros_like(X), W, 0.0, 0.9)
    assert np.array_equal(x, agreed)
    assert not v.any()
    x, v = step(name, X, G, V, W, 0.0, 0.9)
    assert np.isfinite(x).all()
    assert_close(x.mean(0), X.mean(0) - 0.9 * V.mean(0), 1e-14)


@pytest.mark.parametrize("order", [[3, 0, 6, 1, 7, 2, 5, 4], [7, 6, 5, 4, 3, 2, 1, 0]])
@pytest.mark.parametrize("name", RULES)
def test_fact_8_relabelling_the_nodes_permutes_the_result(name, order):
    moved = topology.grid(8).relabelled(order).matrix()
    place = np.argsort(order)
    for expected, found in zip(
        step(name, X, G, V, W, 0.03, 0.9), step(name, X[place], G[place], V[place], moved, 0.03, 0.9), strict=True
    ):
        assert_close(found[order], expected, 1e-15)


def test_fact_9_rescaled_displacement_is_the_paper_under_any_schedule():
    problem = reference.LeastSquares(rows=12, columns=3)
    rates = [0, 1e-3, 2e-3, 4e-3, *[5e-3] * 20, *[5e-4] * 20]
    x = agreed = np.tile(RANDOM.normal(size=3), (8, 1))
    v, before = np.zeros_like(x), 0
    for rate in rates:
        factor = rate / before if before else 1
        x, v = step("DecentLaM", x, problem.gradients(x), v, W, rate, 0.9 * factor)
        before = rate
    # The paper divides by the rate, so that it begins after the step at rate 0, which moves nothing.
    expected = reference.run(
        "DecentLaM", problem.gradients, agreed, [W], lambda number: rates[number + 1], 0.9, len(rates) - 1
    )
    assert_close(x, expected, 1e-12)
    other = run("DecentLaM", problem.gradients, agreed, W, rates, 0.9)[-1]
    assert np.abs(other - x).max() > 1e-4


def test_rounded_messages_do_not_move_the_mean():
    message, finish = RULES["DecentLaM"]
    settings = {"learning_rate": 0.03, "momentum": 0.9}
    messages = message(X, G, V, **settings).astype("float16").astype("float64")
    update, _ = finish(G, V, disagreement_of(messages, W), **settings)
    assert_close((X - update).mean(0), X.mean(0) - (0.9 * V + 0.03 * G).mean(0), 1e-14)
