"""What a topology does to the disagreement of the nodes at a momentum: published numbers, laws, and refusals."""

import math
import re

import numpy as np
import pytest
from scipy import linalg

from keras_lsb import topology
from keras_lsb.topology import Topology, growth, require_stable
from tests.test_topology import directed_exponential

ROOT = math.sqrt(0.9)  # 0.9487, the least growth there is at momentum 0.9
IDLE = np.eye(2)


def by_blocks(matrices, momentum):
    """The growth by its definition: dense blocks between disagreements, one product, one spectral radius."""
    nodes = len(matrices[0])
    basis = linalg.null_space(np.ones((1, nodes)))
    total = np.eye(2 * (nodes - 1))
    for matrix in matrices:
        mixed, one = basis.T @ matrix @ basis, np.eye(nodes - 1)
        total = np.block([[momentum * one, one - mixed], [-momentum * one, mixed]]) @ total
    return np.max(np.abs(np.linalg.eigvals(total))) ** (1 / len(matrices))


def one_way_one_peer(nodes):
    """Matrices of nodes that hear from the one 1, 2, 4, ... further on, in turn."""
    shifts = [2**power for power in range(math.ceil(math.log2(nodes)))]
    return [(np.eye(nodes) + np.roll(np.eye(nodes), shift, 1)) / 2 for shift in shifts]


def matchings_in_turn(graph):
    """The matchings of a fixed graph as a schedule with weights 1/2."""
    weights = tuple((0.5,) * len(matching) for matching in graph.matchings)
    return Topology(f"{graph.name} in turn", graph.nodes, len(graph.matchings), graph.matchings, weights)


@pytest.mark.parametrize("nodes", [2, 4, 8, 16])
@pytest.mark.parametrize("make", [topology.ring_matchings, topology.path_matchings])
def test_two_matchings_in_turn(make, nodes):
    assert growth(make(nodes), 0.9) == pytest.approx(ROOT, abs=1e-7)


@pytest.mark.parametrize(("nodes", "expected"), [(4, ROOT), (8, 1.0524), (16, 1.2201)])
def test_one_peer_exponential(nodes, expected):
    assert growth(topology.one_peer_exponential(nodes), 0.9) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("nodes", "expected"), [(5, 1.0625), (7, 1.0572), (9, 1.0552)])
def test_three_matchings_of_an_odd_ring(nodes, expected):
    assert growth(matchings_in_turn(topology.ring(nodes)), 0.9) > 1
    in_order = [[(i, i + 1) for i in range(start, nodes - 1, 2)] for start in (0, 1)] + [[(0, nodes - 1)]]
    matchings = tuple(map(tuple, in_order))
    weights = tuple((0.5,) * len(matching) for matching in matchings)
    assert growth(Topology("odd", nodes, 3, matchings, weights), 0.9) == pytest.approx(expected, abs=5e-5)


def test_three_matchings_of_a_grid():
    assert growth(matchings_in_turn(topology.grid(8)), 0.9) == pytest.approx(1.0524, abs=5e-5)


@pytest.mark.parametrize(("nodes", "expected"), [(4, 1.00), (8, 1.06), (16, 1.08)])
def test_random_matchings(nodes, expected):
    long = [growth(topology.random_matching(nodes, seed=seed, period=2000), 0.9) for seed in range(3)]
    assert np.mean(long) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("nodes", "static", "in_turn"), [(4, 1.16, 1.08), (8, 1.24, 1.11), (16, 1.25, 1.20)])
def test_directed_exponential(nodes, static, in_turn):
    assert growth(directed_exponential(nodes), 0.9) == pytest.approx(static, abs=5e-3)
    assert growth(one_way_one_peer(nodes), 0.9) == pytest.approx(in_turn, abs=5e-3)


def test_fact_7_what_is_accepted_and_what_is_not():
    for graph in (topology.ring(8), topology.grid(8), topology.exponential(8), topology.ring_matchings(16)):
        assert growth(graph, 0.9) == pytest.approx(ROOT, abs=1e-7)
        require_stable(graph, 0.9)
    with pytest.raises(ValueError, match=r"multiplies the disagreement of the nodes by 1\.0524"):
        require_stable(topology.one_peer_exponential(8), 0.9)
    assert growth(topology.one_peer_exponential(8), 0.5) == pytest.approx(0.8859, abs=5e-5)
    require_stable(topology.one_peer_exponential(8), 0.5)
    assert growth(topology.one_peer_exponential(8, 0.4), 0.9) == pytest.approx(ROOT, abs=1e-7)
    require_stable(topology.one_peer_exponential(8, 0.4), 0.9)


@pytest.mark.parametrize(("nodes", "weight"), [(8, 0.48), (16, 0.285), (32, 0.195), (64, 0.14)])
def test_largest_partner_weight_of_one_peer_exponential(nodes, weight):
    assert growth(topology.one_peer_exponential(nodes, weight), 0.9) < 1
    assert growth(topology.one_peer_exponential(nodes, weight + 0.01), 0.9) >= 1


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.99])
def test_agrees_with_the_definition(momentum):
    graphs = [topology.grid(6), topology.ring_matchings(6), topology.path_matchings(7), topology.exponential(5)]
    graphs += [topology.one_peer_exponential(nodes) for nodes in (5, 8)]
    graphs += [topology.random_matching(nodes, period=8) for nodes in (6, 9)]
    for graph in graphs:
        expected = by_blocks(graph.matrices(), momentum)
        # Where eigenvalues meet, rounding moves them by its root or more.
        assert growth(graph, momentum) == pytest.approx(expected, abs=1e-4)
        assert growth(graph.matrices(), momentum) == pytest.approx(expected, abs=1e-4)
        assert growth(graph, momentum) >= math.sqrt(momentum) - 1e-12


@pytest.mark.parametrize("method", ["DecentLaM", "DmSGD"])
@pytest.mark.parametrize(
    "graph", [topology.ring(5), topology.one_peer_exponential(8, 0.4), topology.one_peer_exponential(8)], ids=str
)
def test_is_what_a_simulation_without_gradients_does(graph, method):
    start = np.random.default_rng(3).normal(size=(graph.nodes, 4))
    settings = {"method": method, "learning_rate": 1.0, "momentum": 0.9}
    sizes = []
    for steps in (300, 600):
        run = topology.simulate(graph, lambda x, step: 0 * x, start, steps=steps, **settings)
        state = np.concatenate([run.weights - run.weights.mean(0), run.displacement])
        sizes.append(np.linalg.norm(state))
    expected = growth(graph, 0.9, method)
    # DmSGD's displacement starts at 0 and stays there, so that only averaging is left.
    expected = 1 - graph.spectral_gap if method == "DmSGD" else expected
    assert (sizes[1] / sizes[0]) ** (1 / 300) == pytest.approx(expected, abs=5e-3) or max(sizes) < 1e-10


@pytest.mark.parametrize("seed", range(20))
def test_symmetric_fixed_graphs_are_always_stable(seed):
    random = np.random.default_rng(seed)
    nodes = int(random.integers(2, 20))
    edges = [(i, int(random.integers(i))) for i in range(1, nodes)]
    matrix = np.eye(nodes)
    for i, j in edges + random.integers(nodes, size=(nodes, 2)).tolist():
        weight = random.uniform(0, 0.5)
        pair = np.eye(nodes)
        pair[[i, j], [i, j]] -= weight
        pair[[i, j], [j, i]] += weight
        matrix = pair @ matrix @ pair
    for momentum in (0, 0.5, 0.9, 0.999):
        assert growth(topology.from_matrix(matrix), momentum) < 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.999])
def test_any_two_matchings_are_stable(seed, momentum):
    nodes, order = 2 * (seed + 1), np.random.default_rng(seed).permutation(2 * (seed + 1))
    assert growth(topology.ring_matchings(nodes).relabelled(order), momentum) < 1
    assert growth(topology.path_matchings(nodes + 1), momentum) < 1


def test_even_rings_up_to_64():
    for nodes in range(2, 65, 2):
        assert growth(topology.ring_matchings(nodes), 0.9) < 1


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_law_of_one_mode_that_is_mixed_once_in_a_period(period, momentum):
    bound = 2 * (1 - momentum) * (1 + momentum**period) / (1 - momentum**period)
    for strength, stable in ((0.99 * bound, True), (1.01 * bound, False)):
        mix = np.array([[1 - strength / 2, strength / 2], [strength / 2, 1 - strength / 2]])
        assert (growth([mix] + [IDLE] * (period - 1), momentum) < 1) == stable


@pytest.mark.parametrize("seed", range(40))
def test_law_of_complex_eigenvalues(seed):
    random = np.random.default_rng(seed)
    nodes, momentum = int(random.integers(3, 9)), random.uniform(0, 0.95)
    row = random.dirichlet(np.ones(nodes) / 3)
    eigenvalues = np.fft.fft(row)[1:]
    inside = ((momentum + eigenvalues.real) / (1 + momentum)) ** 2 + (eigenvalues.imag / (1 - momentum)) ** 2
    assert (growth(linalg.circulant(row), momentum) < 1) == (inside.max() < 1)


def test_growth_of_dmsgd_and_of_one_node():
    graph = topology.one_peer_exponential(8)
    assert growth(graph, 0.9, "DmSGD") == 0.9
    assert growth(topology.ring(32), 0.9, "DmSGD") == pytest.approx(1 - topology.ring(32).spectral_gap, abs=1e-12)
    for method in ("DecentLaM", "DmSGD"):
        assert growth(topology.ring(1), 0.9, method) == 0
    for graph in (topology.grid(6), topology.one_peer_exponential(5)):
        assert growth(graph, 0.0) == pytest.approx(1 - graph.spectral_gap, abs=1e-6)


def test_relabelling_changes_nothing():
    graph = topology.one_peer_exponential(8)
    order = np.random.default_rng(0).permutation(8)
    assert growth(graph.relabelled(order), 0.9) == pytest.approx(growth(graph, 0.9), abs=1e-6)


def test_long_schedules_neither_overflow_nor_vanish():
    assert growth(one_way_one_peer(8) * 2000, 0.9) == pytest.approx(growth(one_way_one_peer(8), 0.9), abs=1e-3)
    assert growth(topology.ring_matchings(4).matrices() * 5000, 0.9) == pytest.approx(ROOT, abs=1e-3)


def test_a_thousand_nodes():
    assert growth(topology.exponential(1024), 0.9) == pytest.approx(ROOT, abs=1e-7)


def message_of(graph, momentum, method="DecentLaM"):
    with pytest.raises(ValueError, match="is unstable on") as caught:
        require_stable(graph, momentum, method)
    return str(caught.value)


def test_refusal_names_what_works():
    assert message_of(topology.one_peer_exponential(8), 0.9) == (
        "DecentLaM is unstable on one_peer_exponential(8) at momentum 0.9: each step multiplies the disagreement of "
        "the nodes by 1.0524. What works instead: a momentum up to 0.7; a partner weight up to 0.48; a fixed graph, "
        "such as ring(8) or exponential(8); ring_matchings(8); DmSGD. Received: "
        "topology=Topology('one_peer_exponential(8)', nodes=8, period=3, matchings=3), momentum=0.9"
    )
    assert "; path_matchings(7); DmSGD. " in message_of(matchings_in_turn(topology.ring(7)), 0.9)


@pytest.mark.parametrize(
    ("graph", "momentum"),
    [
        (topology.one_peer_exponential(16), 0.9),
        (topology.one_peer_exponential(8, 0.49), 0.9),
        (topology.random_matching(9), 0.95),
        (matchings_in_turn(topology.ring(5)), 0.9),
    ],
    ids=str,
)
def test_what_a_refusal_names_is_stable_and_is_the_most(graph, momentum):
    message = message_of(graph, momentum)
    lower = float(re.search(r"a momentum up to ([\d.]+);", message)[1])
    assert all(growth(graph, value) < 1 for value in np.arange(0, lower + 0.001, 0.01))
    assert growth(graph, lower + 0.01) >= 1
    weight = float(re.search(r"a partner weight up to ([\d.]+);", message)[1])
    heaviest = graph.weights[0][0]
    assert growth(graph.lazy(1 - weight / heaviest), momentum) < 1
    assert growth(graph.lazy(1 - min(heaviest, weight + 0.01) / heaviest), momentum) >= 1


def test_a_smaller_momentum_may_be_worse():
    graph = topology.one_peer_exponential(8, 0.48)
    require_stable(graph, 0.9)
    assert "a momentum up to 0.79;" in message_of(graph, 0.85)


def test_a_graph_that_never_agrees():
    swap = topology.from_matrix([[0, 1], [1, 0]], "swap")
    assert "lazy weights, topology.lazy(); a fixed graph" in message_of(swap, 0.0)
    assert "DmSGD" not in message_of(swap, 0.0).partition("What works")[2]
    assert message_of(swap, 0.9, "DmSGD").startswith("DmSGD is unstable on swap at momentum 0.9")
    for method in ("DecentLaM", "DmSGD"):
        require_stable(swap.lazy(), 0.0, method)


@pytest.mark.parametrize("momentum", [-0.1, 1, math.nan, None])
def test_bad_momentum(momentum):
    with pytest.raises(ValueError, match=rf"`momentum` must be a number in \[0, 1\). Received: momentum={momentum!r}"):
        require_stable(topology.ring(4), momentum)


def test_bad_method():
    with pytest.raises(ValueError, match=r"`method` must be one of .*DecentLaM.*Received: method='QG-DmSGD'"):
        growth(topology.ring(4), 0.9, "QG-DmSGD")


@pytest.mark.parametrize("matrices", [np.ones((2, 3)), [], np.zeros(3), np.ones((1, 2, 2, 2))])
def test_bad_shape_of_matrices(matrices):
    with pytest.raises(ValueError, match=r"must be \(n, n\), several \(steps, n, n\)\. Received: shape"):
        growth(matrices, 0.9)


@pytest.mark.parametrize("entry", [0.6, math.nan])
def test_bad_rows_of_matrices(entry):
    with pytest.raises(ValueError, match=r"rows that sum to 1\. Received: a row off by"):
        growth([IDLE, np.array([[0.5, entry], [0.5, 0.5]])], 0.9)
