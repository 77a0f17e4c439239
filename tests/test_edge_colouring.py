"""Edge colourings: valid for every graph, as small as the theorems promise, minimal where a full search can tell."""

import networkx as nx
import numpy as np
import pytest

from keras_lsb.topology import edge_colouring
from keras_lsb.topology.edge_colouring import colour_edges, round_robin


def edges_of(graph):
    """Edges between node numbers."""
    return list(nx.convert_node_labels_to_integers(graph).edges)


def degree_of(graph):
    return max(degree for _, degree in graph.degree)


def colours(graph):
    """Number of matchings, after checking that they are matchings of all edges of the graph, in order."""
    matchings = colour_edges(len(graph), edges_of(graph))
    found = [edge for matching in matchings for edge in matching]
    assert sorted(found) == sorted(tuple(sorted(edge)) for edge in edges_of(graph))
    assert list(matchings) == sorted(tuple(sorted(matching)) for matching in matchings)
    for matching in matchings:
        ends = np.ravel(matching)
        assert 0 < len(ends) == len(set(ends.tolist()))
    return len(matchings)


def can_be_coloured(edges, number):
    """Whether the edges have a colouring with so many colours, by trying all."""
    taken = {}

    def place(index):
        if index == len(edges):
            return True
        used = {taken[edge] for edge in edges[:index] if set(edge) & set(edges[index])}
        # Of the colours that nobody has yet, one is as good as the other.
        for colour in range(min(number, max(taken.values(), default=-1) + 2)):
            if colour not in used:
                taken[edges[index]] = colour
                if place(index + 1):
                    return True
                del taken[edges[index]]
        return False

    return place(0)


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (nx.cycle_graph(8), 2),
        (nx.cycle_graph(9), 3),
        (nx.cycle_graph(1023), 3),
        (nx.path_graph(2), 1),
        (nx.path_graph(9), 2),
        (nx.star_graph(8), 8),
        (nx.grid_2d_graph(2, 4), 3),
        (nx.grid_2d_graph(32, 32), 4),
        (nx.petersen_graph(), 4),
        (nx.complete_graph(3), 3),
        (nx.complete_graph(4), 3),
        (nx.complete_graph(7), 7),
        (nx.complete_graph(64), 63),
        (nx.complete_bipartite_graph(5, 9), 9),
        (nx.hypercube_graph(6), 6),
        (nx.circular_ladder_graph(3), 3),
        (nx.circulant_graph(6, [1, 2]), 4),
        (nx.circulant_graph(12, [1, 2, 4]), 6),
        (nx.circulant_graph(1024, [2**power for power in range(10)]), 19),
        (nx.random_regular_graph(5, 500, seed=1), 5),
        (nx.random_regular_graph(4, 51, seed=1), 5),
        (nx.dodecahedral_graph(), 3),
        (nx.barbell_graph(5, 0), 5),
    ],
    ids=str,
)
def test_number_of_matchings(graph, expected):
    assert colours(graph) == expected


@pytest.mark.parametrize("seed", range(60))
def test_small_random_graphs_are_minimal(seed):
    random = np.random.default_rng(seed)
    graph = nx.gnp_random_graph(int(random.integers(3, 8)), random.uniform(0.3, 1), seed=seed)
    if graph.number_of_edges():
        number, degree = colours(graph), degree_of(graph)
        assert number in (degree, degree + 1)
        assert number == degree or not can_be_coloured(edges_of(graph), degree)


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(seed):
    random = np.random.default_rng(seed)
    graph = nx.gnp_random_graph(int(random.integers(10, 60)), random.uniform(0.1, 0.9), seed=seed)
    assert colours(graph) - degree_of(graph) in (0, 1)
    bipartite = nx.bipartite.random_graph(*random.integers(3, 30, 2).tolist(), 0.4, seed=seed)
    assert colours(bipartite) == degree_of(bipartite)


@pytest.mark.parametrize("seed", range(20))
def test_one_colour_more_is_enough_without_a_search(seed, monkeypatch):
    monkeypatch.setattr(edge_colouring, "_MOVES_PER_EDGE", 0)
    random_graph = nx.gnp_random_graph(30, 0.2 + 0.03 * seed, seed=seed)
    for graph in (random_graph, nx.random_regular_graph(4 + 2 * (seed % 5), 15 + 2 * (seed % 9), seed=seed)):
        assert colours(graph) - degree_of(graph) in (0, 1)


@pytest.mark.parametrize("graph", [nx.petersen_graph(), nx.random_regular_graph(6, 30, seed=2)], ids=str)
def test_depends_on_the_graph_alone(graph):
    edges = edges_of(graph)
    expected = colour_edges(len(graph), edges)
    order = np.random.default_rng(1).permutation(len(edges))
    assert colour_edges(len(graph), [edges[place][::-1] for place in order]) == expected
    assert colour_edges(len(graph), iter(edges)) == expected


@pytest.mark.parametrize("nodes", range(1, 13))
def test_round_robin(nodes):
    matchings = round_robin(nodes)
    assert len(matchings) == {1: 0}.get(nodes, nodes - 1 + nodes % 2)
    assert sorted(edge for matching in matchings for edge in matching) == sorted(nx.complete_graph(nodes).edges)
    assert {len(matching) for matching in matchings} <= {nodes // 2}


def test_no_edges():
    assert colour_edges(1, []) == colour_edges(4, []) == ()


@pytest.mark.parametrize("edges", [[(0, 1), (1, 0)], [(1, 1)], [(0, 3)], [(-1, 2)]])
def test_bad_edges(edges):
    with pytest.raises(ValueError, match=r"`edges` must be different pairs of different nodes, 0 to 2\. Received"):
        colour_edges(3, edges)
