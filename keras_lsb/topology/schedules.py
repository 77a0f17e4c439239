"""Schedules: one matching in each step, so that a node sends one model at most, to another node each time."""

import numpy as np

from keras_lsb._checks import fraction, whole
from keras_lsb.topology.edge_colouring import Edge, sorted_edges
from keras_lsb.topology.graph import Topology


def ring_matchings(nodes: int, partner_weight: float = 0.5) -> Topology:
    """The two matchings of an even ring in turn: a node averages with one neighbour, then with the other.

    With weights of 1/2 DecentLaM is stable on it at every momentum.

    Args:
        nodes: an even number of nodes, >= 2; two of them meet in every step.
        partner_weight: weight of the partner, in (0, 1); the node keeps the rest.

    Raises:
        ValueError: an odd number: its ring has three matchings, on which momentum makes the nodes drift apart.
    """
    nodes = whole("nodes", nodes, 2)
    if nodes % 2:
        raise ValueError(
            "`nodes` must be even: an odd ring has no two matchings that cover it, and three in turn are unstable. "
            f"ring({nodes}) and path_matchings({nodes}) work. Received: nodes={nodes}"
        )
    matchings = [_pairs(nodes, 0), [*_pairs(nodes, 1), (0, nodes - 1)]]
    return _schedule("ring_matchings", nodes, matchings[: nodes // 2], partner_weight)


def path_matchings(nodes: int, partner_weight: float = 0.5) -> Topology:
    """The two matchings of nodes in a row, in turn; the ones at the ends are idle in some steps.

    With weights of 1/2 DecentLaM is stable on it at every momentum, for odd numbers of nodes as well.

    Args:
        nodes: number of nodes, a whole number >= 1.
        partner_weight: weight of the partner, in (0, 1).
    """
    nodes = whole("nodes", nodes)
    return _schedule("path_matchings", nodes, [_pairs(nodes, 0), _pairs(nodes, 1)], partner_weight)


def one_peer_exponential(nodes: int, partner_weight: float = 0.5) -> Topology:
    """In step t = 0, 1, ... node i averages with node i XOR 2^(t mod p), p = ceil(log2(nodes)), where there is one.

    A number of nodes that is a power of two agrees exactly after p steps of plain averaging with weight 1/2. DecentLaM
    is unstable on it from 8 nodes on at momentum 0.9, unless the partner weight is small.

    Args:
        nodes: number of nodes, a whole number >= 1.
        partner_weight: weight of the partner, in (0, 1).
    """
    nodes = whole("nodes", nodes)
    distances = [2**power for power in range((nodes - 1).bit_length())]
    matchings = [
        [(node, node + distance) for node in range(nodes - distance) if not node & distance] for distance in distances
    ]
    return _schedule("one_peer_exponential", nodes, matchings, partner_weight)


def random_matching(nodes: int, seed: int = 0, period: int = 32, partner_weight: float = 0.5) -> Topology:
    """Random partners in each step; one node of an odd number is idle. The matchings repeat after `period` steps.

    Drawn from the seed alone, so that all workers have the same. DecentLaM is unstable on it at momentum 0.9, as a
    rule.

    Args:
        nodes: number of nodes, a whole number >= 1.
        seed: whole number >= 0.
        period: number of matchings, a whole number >= 1.
        partner_weight: weight of the partner, in (0, 1).

    Raises:
        ValueError: matchings that do not connect all nodes: take a longer period.
    """
    nodes, seed, period = whole("nodes", nodes), whole("seed", seed, 0), whole("period", period)
    random = np.random.default_rng(seed)
    orders = [random.permutation(nodes).tolist() for _ in range(period)]
    matchings = [zip(order[0 : nodes - 1 : 2], order[1::2], strict=True) for order in orders]
    return _schedule("random_matching", nodes, matchings, partner_weight, f", seed={seed}, period={period}")


def _pairs(nodes: int, first: int) -> list[Edge]:
    return [(node, node + 1) for node in range(first, nodes - 1, 2)]


def _schedule(kind: str, nodes: int, matchings: list, partner_weight: float, options: str = "") -> Topology:
    """A topology of the matchings in turn, all with one weight; those without an edge are left out."""
    weight = fraction("partner_weight", partner_weight)
    chosen = tuple(matching for matching in map(sorted_edges, matchings) if matching)
    if weight != 0.5:
        options += f", partner_weight={weight:g}"
    weights = tuple((weight,) * len(matching) for matching in chosen)
    return Topology(f"{kind}({nodes}{options})", nodes, max(1, len(chosen)), chosen, weights)
