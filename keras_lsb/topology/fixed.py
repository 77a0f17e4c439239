"""Fixed graphs: every node averages with all its neighbours in every step.

Weights are those of Metropolis and Hastings with the node itself counted: with c = 1 + the number of neighbours, an
edge has the weight 1 / max(c_i, c_j), and a node keeps the rest. On a graph whose nodes all have as many neighbours
that is 1 / c for each of them.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import whole
from keras_lsb.topology.edge_colouring import Edge, colour_edges
from keras_lsb.topology.graph import ROW_SUM_TOLERANCE, Topology
from keras_lsb.topology.spectrum import momentum_growth

_NO_WEIGHT = 1e-12  # an entry of a matrix that is no edge, but rounding


def ring(nodes: int) -> Topology:
    """Nodes in a circle: each averages with the two beside it, all weights 1/3. Two nodes have 1/2, one has nobody.

    Args:
        nodes: number of nodes, a whole number >= 1.

    Examples:
        >>> ring(4).matchings
        (((0, 1), (2, 3)), ((0, 3), (1, 2)))
    """
    nodes = whole("nodes", nodes)
    return _metropolis(f"ring({nodes})", nodes, _circulant(nodes, [1]))


def path(nodes: int) -> Topology:
    """Nodes in a row: each averages with the ones beside it; the two at the ends have one neighbour.

    Args:
        nodes: number of nodes, a whole number >= 1.
    """
    nodes = whole("nodes", nodes)
    return _metropolis(f"path({nodes})", nodes, itertools.pairwise(range(nodes)))


def grid(nodes: int) -> Topology:
    """Nodes in a rectangle, numbered row by row, as square as their number allows, without a way around its border.

    The number of rows is the largest divisor up to the square root: 8 nodes are 2 x 4, a prime number is a path.

    Args:
        nodes: number of nodes, a whole number >= 1.
    """
    nodes = whole("nodes", nodes)
    rows = max(divisor for divisor in range(1, math.isqrt(nodes) + 1) if nodes % divisor == 0)
    columns = nodes // rows
    beside = [(node, node + 1) for node in range(nodes) if (node + 1) % columns]
    below = [(node, node + columns) for node in range(nodes - columns)]
    return _metropolis(f"grid({nodes})", nodes, beside + below)


def exponential(nodes: int) -> Topology:
    """Nodes in a circle: each averages with those 1, 2, 4, ... up to half the circle away, on both sides.

    Mixes fast, but a node sends almost 2 log2(nodes) models in a step: more than an all-reduce.

    Args:
        nodes: number of nodes, a whole number >= 1.
    """
    nodes = whole("nodes", nodes)
    strides = [2**power for power in range(nodes.bit_length()) if 2 ** (power + 1) <= nodes]
    return _metropolis(f"exponential({nodes})", nodes, _circulant(nodes, strides))


def complete(nodes: int) -> Topology:
    """Everybody averages with everybody: one step ends all disagreement, at n - 1 models sent by each node.

    Args:
        nodes: number of nodes, a whole number >= 1.
    """
    nodes = whole("nodes", nodes)
    return _metropolis(f"complete({nodes})", nodes, itertools.combinations(range(nodes), 2))


def from_networkx(graph: Any) -> Topology:
    """A fixed graph from an undirected graph of networkx, with Metropolis weights.

    Nodes labelled 0 to n - 1 keep their numbers; with other labels node k is the k-th of `graph.nodes`. Self loops,
    parallel edges and attributes are ignored: a node always averages with itself as well.

    Args:
        graph: connected `networkx.Graph`.

    Raises:
        ValueError: a directed, empty or disconnected graph.
    """
    if graph.is_directed():
        raise ValueError(
            "`graph` must be undirected, because weights must be symmetric: graph.to_undirected() has its edges. "
            f"Received: graph={graph!r}"
        )
    labels = list(graph.nodes)
    nodes = whole("number of nodes", len(labels))
    numbered = set(labels) == set(range(nodes))
    place = {label: label if numbered else number for number, label in enumerate(labels)}
    edges = ((place[u], place[v]) for u, v in graph.edges() if u != v)
    return _metropolis(f"from_networkx({graph.name or 'graph'!r}, {nodes} nodes)", nodes, edges)


def from_matrix(matrix: ArrayLike, name: str = "from_matrix(...)") -> Topology:
    """A fixed graph from its mixing matrix.

    Entries off the diagonal are the weights of the edges; an edge takes the mean of its two entries, and the diagonal
    what is left to 1.

    Args:
        matrix: (n, n) array W: symmetric, not negative, rows that sum to 1, all to within 1e-6.
        name: what to call it in messages.

    Raises:
        ValueError: another shape, entries that are negative or not finite, rows that do not sum to 1, a disconnected
            graph; an asymmetric matrix, with what DecentLaM would do on it.
    """
    matrix = np.asarray(matrix, "float64")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"`matrix` must be square. Received: matrix of shape {matrix.shape}")
    lowest, sums = matrix.min(), matrix.sum(1)
    if not lowest >= -_NO_WEIGHT:
        raise ValueError(f"`matrix` must hold finite numbers >= 0. Received: matrix with an entry {lowest:g}")
    worst = int(np.argmax(np.abs(sums - 1)))
    if not abs(sums[worst] - 1) <= ROW_SUM_TOLERANCE:
        raise ValueError(f"`matrix` must have rows that sum to 1. Received: row {worst} with the sum {sums[worst]:.8g}")
    if np.abs(matrix - matrix.T).max() > ROW_SUM_TOLERANCE:
        _raise_asymmetric(matrix)
    matrix = (matrix + matrix.T) / 2
    edges = np.argwhere(np.triu(matrix, 1) > _NO_WEIGHT).tolist()
    return _weighted(name, len(matrix), {(i, j): float(matrix[i, j]) for i, j in edges})


def _circulant(nodes: int, strides: Iterable[int]) -> list[Edge]:
    return [(node, (node + stride) % nodes) for stride in strides for node in range(nodes)]


def _metropolis(name: str, nodes: int, edges: Iterable[Edge]) -> Topology:
    """A topology of the edges, which may be given twice and both ways; those from a node to itself are left out."""
    unique = {(min(edge), max(edge)) for edge in edges if edge[0] != edge[1]}
    neighbours = Counter(node for edge in unique for node in edge)
    return _weighted(name, nodes, {(i, j): 1 / (1 + max(neighbours[i], neighbours[j])) for i, j in unique})


def _weighted(name: str, nodes: int, weights: dict[Edge, float]) -> Topology:
    matchings = colour_edges(nodes, weights)
    values = tuple(tuple(weights[edge] for edge in matching) for matching in matchings)
    return Topology(name, nodes, 1, matchings, values)


def _raise_asymmetric(matrix: np.ndarray) -> None:
    i, j = np.unravel_index(np.argmax(np.abs(matrix - matrix.T)), matrix.shape)
    raise ValueError(
        "`matrix` must be symmetric: on this one, at momentum 0.9, DecentLaM multiplies the disagreement of the nodes "
        f"by {momentum_growth([matrix], 0.9):.4f} per step. What works instead: from_networkx with the undirected "
        "graph; (matrix + matrix.T) / 2 where the columns sum to 1 as well. "
        f"Received: matrix[{i}, {j}]={matrix[i, j]:g} and matrix[{j}, {i}]={matrix[j, i]:g}"
    )
