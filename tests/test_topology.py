"""Graphs and schedules: their edges, weights, matrices and tables, what they cost, and what is refused."""

import itertools
import json
import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pytest

from keras_lsb import topology
from keras_lsb.topology import Topology
from tests.reference import decentlam as reference
from tests.support import assert_close

FIXED = [topology.ring, topology.path, topology.grid, topology.exponential, topology.complete]
SCHEDULES = [topology.path_matchings, topology.one_peer_exponential, topology.random_matching]
NODES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 25, 33]
EVERY = [(make, nodes) for make in FIXED + SCHEDULES for nodes in NODES]
EVERY += [(topology.ring_matchings, nodes) for nodes in NODES if nodes % 2 == 0]
STAR = nx.star_graph(3)


@pytest.fixture(params=EVERY, ids=lambda param: f"{param[0].__name__}({param[1]})")
def graph(request):
    """Each kind of topology, at several numbers of nodes."""
    make, nodes = request.param
    return make(nodes)


def edges_of(graph):
    return {edge for matching in graph.matchings for edge in matching}


def product(graph):
    """Matrix of the averaging of a whole period."""
    return np.linalg.multi_dot([np.eye(graph.nodes), *graph.matrices()[::-1], np.eye(graph.nodes)])


def test_matrices_are_symmetric_and_doubly_stochastic(graph):
    for matrix in graph.matrices():
        assert matrix.dtype == "float64"
        assert_close(matrix, matrix.T, 0)
        assert_close(matrix.sum(0), 1, 1e-15)
        assert matrix.min() >= 0
    assert len(graph.matrices()) == graph.period
    assert_close(graph.matrix(graph.period), graph.matrix(0), 0)
    assert 0 < graph.spectral_gap <= 1


def test_tables_are_those_of_the_matchings(graph):
    partners, weights, nodes = graph.partners(), graph.partner_weights(), np.arange(graph.nodes)
    assert partners.shape == weights.shape == (graph.period, len(graph.rounds()), graph.nodes)
    for step in range(graph.period):
        matrix = np.zeros((graph.nodes, graph.nodes))
        for matching, partner, weight in zip(graph.rounds(step), partners[step], weights[step], strict=True):
            assert {(i, int(j)) for i, j in enumerate(partner) if i < j} == set(matching)
            assert_close(partner[partner], nodes, 0)
            assert_close(weight[partner], weight, 0)
            assert_close(weight[partner == nodes], 0, 0)
            matrix[nodes, partner] += weight
        off_diagonal = graph.matrix(step) * (1 - np.eye(graph.nodes))
        assert_close(matrix * (1 - np.eye(graph.nodes)), off_diagonal, 0)


def test_config_round_trip(graph):
    copy = Topology.from_config(json.loads(json.dumps(graph.get_config())))
    assert copy == graph
    assert hash(copy) == hash(graph)
    assert (copy.name, repr(copy)) == (graph.name, repr(graph))


@pytest.mark.parametrize("nodes", range(1, 40))
def test_edges_of_the_fixed_graphs(nodes):
    def around(distance):
        return {tuple(sorted((i, (i + distance) % nodes))) for i in range(nodes) if (i + distance) % nodes != i}

    assert edges_of(topology.ring(nodes)) == around(1)
    assert edges_of(topology.path(nodes)) == set(itertools.pairwise(range(nodes)))
    assert edges_of(topology.complete(nodes)) == set(itertools.combinations(range(nodes), 2))
    powers = [2**power for power in range(7) if 2**power <= nodes / 2]
    assert edges_of(topology.exponential(nodes)) == set().union(*(around(power) for power in powers))
    rows = max(rows for rows in range(1, nodes + 1) if nodes % rows == 0 and rows <= math.sqrt(nodes))
    lattice = nx.grid_2d_graph(rows, nodes // rows)
    numbers = {place: place[0] * (nodes // rows) + place[1] for place in lattice}
    assert edges_of(topology.grid(nodes)) == {tuple(sorted((numbers[a], numbers[b]))) for a, b in lattice.edges}


def test_weights_by_hand():
    assert_close(topology.ring(5).matrix()[0], [1 / 3, 1 / 3, 0, 0, 1 / 3], 1e-15)
    assert_close(topology.path(3).matrix(), [[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3, 2 / 3]], 1e-15)
    assert_close(topology.complete(7).matrix(), np.full((7, 7), 1 / 7), 1e-15)
    assert_close(topology.exponential(8).matrix()[0], np.array([1, 1, 1, 0, 1, 0, 1, 1]) / 6, 1e-15)
    assert_close(topology.one_peer_exponential(5).matrix(2)[0], [0.5, 0, 0, 0, 0.5], 0)
    assert_close(topology.one_peer_exponential(5).matrix(2)[2], [0, 0, 1, 0, 0], 0)


def test_weights_of_a_star_count_no_node_more_than_another():
    star = topology.from_networkx(STAR)
    expected = [[1 / 4] * 4, [1 / 4, 3 / 4, 0, 0], [1 / 4, 0, 3 / 4, 0], [1 / 4, 0, 0, 3 / 4]]
    assert_close(star.matrix(), expected, 1e-15)


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_agree_with_the_transcription(seed):
    nodes = 3 + seed % 15
    graph = nx.connected_watts_strogatz_graph(nodes, 2 + seed % 3, 0.5, seed=seed)
    graph.add_edges_from(nx.gnp_random_graph(nodes, 0.2, seed=seed).edges)
    ours = topology.from_networkx(graph)
    assert_close(ours.matrix(), reference.metropolis(nodes, list(graph.edges)), 1e-15)
    eigenvalues = np.sort(np.abs(np.linalg.eigvalsh(ours.matrix())))
    assert ours.spectral_gap == pytest.approx(1 - eigenvalues[-2], abs=1e-12)
    assert ours.models_sent == max(degree for _, degree in graph.degree)


@pytest.mark.parametrize("nodes", [4, 5, 8, 9, 32])
def test_eigenvalues_of_a_ring(nodes):
    expected = np.sort(1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(nodes) / nodes))
    assert_close(np.linalg.eigvalsh(topology.ring(nodes).matrix()), expected, 1e-14)


def test_facts_about_the_graphs_of_eight():
    assert np.linalg.eigvalsh(topology.grid(8).matrix())[0] == pytest.approx(-0.3838, abs=5e-5)
    assert topology.exponential(8).spectral_gap == pytest.approx(2 / 3, abs=1e-12)
    assert topology.complete(8).spectral_gap == pytest.approx(1, abs=1e-12)
    assert topology.one_peer_exponential(8).spectral_gap == 1
    assert topology.ring_matchings(8).spectral_gap == pytest.approx(1 - math.cos(math.pi / 4), abs=1e-12)


def test_grid_of_a_prime_is_a_path():
    assert topology.grid(13) == topology.path(13)
    assert topology.grid(13).name == "grid(13)"


def test_one_node_and_two_nodes():
    for make in FIXED + SCHEDULES:
        alone, pair = make(1), make(2)
        assert_close(alone.matrix(), [[1]], 0)
        assert (alone.matchings, alone.models_sent, alone.spectral_gap) == ((), 0, 1)
        assert_close(pair.matrix(), [[0.5, 0.5], [0.5, 0.5]], 0)
    same = {topology.ring(2), topology.grid(2), topology.complete(2), topology.exponential(2), topology.path(2)}
    assert same == {topology.ring_matchings(2)}


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 8, 11, 16])
def test_one_peer_is_exclusive_or(nodes):
    graph = topology.one_peer_exponential(nodes)
    assert graph.period == math.ceil(math.log2(nodes))
    for step in range(2 * graph.period):
        distance = 2 ** (step % graph.period)
        expected = [i ^ distance if i ^ distance < nodes else i for i in range(nodes)]
        assert graph.partners()[step % graph.period, 0].tolist() == expected


def test_fact_8_one_peer_averages_exactly_and_only_for_powers_of_two():
    for nodes in range(2, 20):
        exact = np.array_equal(product(topology.one_peer_exponential(nodes)), np.full((nodes, nodes), 1 / nodes))
        assert exact == (nodes in (2, 4, 8, 16))


def test_matchings_of_a_ring_and_a_path():
    assert topology.ring_matchings(6).matchings == (((0, 1), (2, 3), (4, 5)), ((0, 5), (1, 2), (3, 4)))
    assert topology.ring_matchings(4).rounds(3) == (((0, 3), (1, 2)),)
    assert topology.path_matchings(5).matchings == (((0, 1), (2, 3)), ((1, 2), (3, 4)))
    assert topology.path_matchings(2).period == topology.ring_matchings(2).period == 1
    for nodes in (4, 6, 10):
        assert edges_of(topology.ring_matchings(nodes)) == edges_of(topology.ring(nodes))


def test_random_matchings_come_from_the_seed():
    np.random.seed(1)  # noqa: NPY002 - the global stream must not matter
    first = topology.random_matching(9, seed=5)
    np.random.seed(2)  # noqa: NPY002
    assert topology.random_matching(9, seed=5) == first
    assert topology.random_matching(9, seed=6) != first
    assert topology.random_matching(9, seed=5, period=16).matchings == first.matchings[:16]
    assert {len(matching) for matching in first.matchings} == {4}
    assert first.period == 32


def test_models_sent():
    sent = {make(16).name: make(16).models_sent for make in (*FIXED, *SCHEDULES, topology.ring_matchings)}
    assert sent == {
        "ring(16)": 2,
        "path(16)": 2,
        "grid(16)": 4,
        "exponential(16)": 7,
        "complete(16)": 15,
        "ring_matchings(16)": 1,
        "path_matchings(16)": 1,
        "one_peer_exponential(16)": 1,
        "random_matching(16, seed=0, period=32)": 1,
    }
    assert topology.ring(16).models_sent_by_all_reduce == 2 * 15 / 16
    assert topology.path_matchings(3).messages(0).tolist() == [1, 1, 0]
    assert topology.path_matchings(3).messages(3).tolist() == [0, 1, 1]
    assert topology.one_peer_exponential(5).models_sent == 1
    assert topology.path(3).messages().tolist() == [1, 2, 1]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_lazy(keep):
    for graph in (topology.grid(8), topology.one_peer_exponential(8)):
        for step in range(graph.period):
            expected = keep * np.eye(8) + (1 - keep) * graph.matrix(step)
            assert_close(graph.lazy(keep).matrix(step), expected, 1e-15)
        assert graph.lazy(keep).matchings == graph.matchings
    assert np.linalg.eigvalsh(topology.grid(8).lazy().matrix())[0] > 0
    assert topology.ring(8).lazy().name == "ring(8).lazy(0.5)"


def test_partner_weight():
    light = topology.one_peer_exponential(8, partner_weight=0.25)
    assert light == topology.one_peer_exponential(8).lazy()
    assert light.name == "one_peer_exponential(8, partner_weight=0.25)"
    assert topology.ring_matchings(4, 0.3).matrix()[0].tolist() == [0.7, 0.3, 0, 0]


def test_fact_8_relabelling_permutes_the_matrix():
    order = [3, 0, 6, 1, 7, 2, 5, 4]
    for graph in (topology.grid(8), topology.one_peer_exponential(8), topology.from_networkx(nx.star_graph(7))):
        for step in range(graph.period):
            matrix = graph.relabelled(order).matrix(step)
            assert_close(matrix[np.ix_(order, order)], graph.matrix(step), 0)
    inverse = np.argsort(order)
    assert topology.grid(8).relabelled(order).relabelled(inverse) == topology.grid(8)


def test_nodes_of_networkx():
    named = nx.Graph([("c", "a"), ("a", "b")])
    assert edges_of(topology.from_networkx(named)) == {(0, 1), (1, 2)}
    numbered = nx.Graph([(2, 3), (0, 1), (1, 2)])
    assert edges_of(topology.from_networkx(numbered)) == {(0, 1), (1, 2), (2, 3)}
    many = nx.MultiGraph([(0, 1), (1, 0), (1, 1), (1, 2)])
    assert topology.from_networkx(many) == topology.path(3)


def test_matrix_back_and_forth():
    for graph in (topology.grid(12), topology.exponential(9), topology.ring(2)):
        assert topology.from_matrix(graph.matrix(), "copy") == graph
    single = topology.from_matrix(topology.ring(9).matrix().astype("float32"))
    assert_close(single.matrix(), topology.ring(9).matrix(), 1e-7)
    assert_close(single.matrix().sum(0), 1, 1e-15)
    noisy = topology.ring(6).matrix() + 1e-15 * np.random.default_rng(0).uniform(-1, 1, (6, 6))
    assert edges_of(topology.from_matrix(noisy)) == edges_of(topology.ring(6))


def test_equality_is_of_the_content():
    assert topology.ring(3) == topology.complete(3)
    assert topology.ring(8) != topology.ring(9)
    assert topology.ring(8) != topology.ring(8).lazy()
    assert topology.ring(8) != topology.ring_matchings(8)
    assert repr(topology.ring(8)) == "Topology('ring(8)', nodes=8, period=1, matchings=2)"


def test_tables_cannot_be_written():
    for table in (topology.ring(4).partners(), topology.ring(4).partner_weights()):
        with pytest.raises(ValueError, match="read-only"):
            table[0, 0, 0] = 1


@pytest.mark.parametrize("make", FIXED + SCHEDULES)
@pytest.mark.parametrize("nodes", [0, -1, 2.5, math.nan, "8", None, True])
def test_bad_number_of_nodes(make, nodes):
    with pytest.raises(ValueError, match=f"`nodes` must be a whole number >= 1. Received: nodes={nodes!r}"):
        make(nodes)


@pytest.mark.parametrize("make", [*SCHEDULES, topology.ring_matchings])
@pytest.mark.parametrize("weight", [0, 1, -0.5, math.nan, None])
def test_bad_partner_weight(make, weight):
    with pytest.raises(ValueError, match=f"`partner_weight` must be .*Received: partner_weight={weight!r}"):
        make(8, partner_weight=weight)


def test_odd_ring_has_no_two_matchings():
    with pytest.raises(ValueError, match=r"`nodes` must be even.*ring\(7\) and path_matchings\(7\) work.*nodes=7"):
        topology.ring_matchings(7)
    with pytest.raises(ValueError, match=r"`nodes` must be a whole number >= 2. Received: nodes=0"):
        topology.ring_matchings(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topology.from_networkx(nx.Graph([(0, 1), (2, 3)])), "2 parts, with no way from node 0 to node 2"),
        (lambda: topology.from_networkx(nx.Graph([(0, 0), (1, 1)])), "2 parts, with no way from node 0 to node 1"),
        (lambda: topology.from_networkx(nx.empty_graph(3)), "3 parts"),
        (lambda: topology.from_matrix(np.eye(4), "alone"), "alone, 4 parts"),
        (lambda: topology.random_matching(4, period=1), r"random_matching\(4, seed=0, period=1\), 2 parts"),
    ],
)
def test_disconnected(make, message):
    with pytest.raises(ValueError, match=f"The graph must be connected.*Received: .*{message}"):
        make()


@pytest.mark.parametrize("graph", [nx.DiGraph([(0, 1), (1, 0)]), nx.MultiDiGraph([(0, 1)])])
def test_directed_graph(graph):
    with pytest.raises(ValueError, match=r"`graph` must be undirected.*to_undirected.*Received: graph=<"):
        topology.from_networkx(graph)


def test_empty_graph():
    with pytest.raises(ValueError, match="`number of nodes` must be a whole number >= 1"):
        topology.from_networkx(nx.Graph())


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5]], r"`matrix` must be square. Received: matrix of shape \(1, 2\)"),
        ([1.0], r"`matrix` must be square"),
        (np.zeros((0, 0)), r"`matrix` must be square"),
        ([[1.1, -0.1], [-0.1, 1.1]], r"finite numbers >= 0. Received: matrix with an entry -0.1"),
        ([[math.nan, 1], [1, 0]], r"finite numbers >= 0. Received: matrix with an entry nan"),
        ([[0.5, 0.5], [0.5, 0.5 + 2e-6]], r"rows that sum to 1. Received: row 1 with the sum 1.000002"),
        ([[math.inf, 1], [1, 0]], r"rows that sum to 1. Received: row 0 with the sum inf"),
    ],
)
def test_bad_matrix(matrix, message):
    with pytest.raises(ValueError, match=message):
        topology.from_matrix(matrix)


def directed_exponential(nodes):
    """Mixing matrix of a node that receives from those 1, 2, 4, ... further on."""
    powers = math.ceil(math.log2(nodes))
    return sum(np.roll(np.eye(nodes), shift, 1) for shift in [0, *(2**power for power in range(powers))]) / (1 + powers)


@pytest.mark.parametrize(("nodes", "growth"), [(4, 1.1555), (8, 1.2375), (16, 1.2524)])
def test_fact_7_asymmetric_matrix_is_refused_with_what_it_would_do(nodes, growth):
    message = rf"must be symmetric.*momentum 0.9.* by {growth} per step. What works.*Received: matrix\[0, 1\]"
    with pytest.raises(ValueError, match=message):
        topology.from_matrix(directed_exponential(nodes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"period": 3}, "`period` must be 1, for a fixed graph, or the number of matchings. Received: period=3 with 2"),
        ({"nodes": 0}, "`nodes` must be a whole number >= 1"),
        ({"weights": ((0.3, 0.3), (0.3,))}, "one weight for each edge"),
        ({"weights": ((0.3, 0.3), (0.3, 0.0))}, r"`weights` must be in \(0, 1\]"),
        ({"weights": ((0.6, 0.6), (0.6, 0.6))}, "must sum to at most 1. Received: a sum of 1.2"),
        ({"matchings": (((0, 1), (1, 2)), ((2, 3), (0, 3)))}, "one partner at a time"),
        ({"matchings": (((0, 1), (3, 2)), ((1, 2), (0, 3)))}, "An edge must be"),
        ({"matchings": (((0, 1), (2, 4)), ((1, 2), (0, 3)))}, r"0 <= i < j < 4"),
        ({"matchings": ((), ((1, 2), (0, 3))), "weights": ((), (0.3, 0.3))}, "An edge must be"),
    ],
)
def test_bad_topology(change, message):
    good = topology.ring(4)
    settings = {"nodes": 4, "period": 1, "matchings": good.matchings, "weights": ((0.3, 0.3), (0.3, 0.3))}
    assert Topology("good", **settings).matrix()[0].tolist() == [0.4, 0.3, 0, 0.3]
    with pytest.raises(ValueError, match=message):
        Topology("bad", **{**settings, **change})


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]])
def test_bad_permutation(order):
    with pytest.raises(ValueError, match=r"`permutation` must hold each of 0 to 3 once. Received: permutation="):
        topology.ring(4).relabelled(order)


@pytest.mark.parametrize("keep", [-0.1, 1, None])
def test_bad_keep(keep):
    with pytest.raises(ValueError, match=f"`keep` must be .*Received: keep={keep!r}"):
        topology.ring(4).lazy(keep)


@pytest.mark.parametrize(
    ("drawn", "entries"),
    [
        (topology.ring(8), ["matching 0", "matching 1"]),
        (topology.ring_matchings(4), ["step 0", "step 1"]),
        (topology.complete(16), [f"matching {number}" for number in range(10)]),
    ],
    ids=str,
)
def test_plot(drawn, entries):
    axes = drawn.plot()
    *lines, nodes = axes.lines
    assert [text.get_text() for text in axes.get_legend().get_texts()] == entries
    assert len(lines) == len(drawn.matchings)
    places = np.transpose(nodes.get_data())
    assert_close(np.linalg.norm(places, axis=1), 1, 1e-12)
    for line, matching in zip(lines, drawn.matchings, strict=True):
        segments = np.transpose(line.get_data()).reshape(len(matching), 3, 2)
        assert_close(segments[:, :2], places[np.array(matching)], 0)
        assert np.isnan(segments[:, 2]).all()
    assert len({line.get_color() for line in lines}) == min(10, len(lines))
    assert axes.get_title() == drawn.name
    plt.close("all")


def test_plot_on_given_axes():
    axes = plt.figure().add_subplot()
    assert topology.ring(1).plot(axes) is axes
    assert len(axes.lines) == 1
    plt.close("all")
