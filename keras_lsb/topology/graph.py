"""A graph of nodes that average with their neighbours: who exchanges with whom in which step, and with what weight."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from keras_lsb._checks import decay_rate, whole
from keras_lsb._types import Axes
from keras_lsb.topology.edge_colouring import Matching
from keras_lsb.topology.spectrum import averaging_growth

ROW_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, repr=False)
class Topology:
    """A fixed graph, or a schedule of matchings, with the symmetric weights of its edges.

    In an exchange between i and j both get the other's model with the same weight w_ij; a node keeps
    w_ii = 1 - the sum of the others. So the mixing matrix is symmetric and doubly stochastic. Two topologies are equal
    if they exchange the same in the same order, whatever their names.

    Attributes:
        name: what it is called in messages, such as "ring(8)".
        nodes: number of nodes n, which are 0 to n - 1.
        period: steps after which the exchanges repeat; 1 for a fixed graph.
        matchings: tuples of edges (i, j), i < j, without a node in common. A fixed graph exchanges all of them in each
            step, one after the other; a schedule of period > 1 exchanges one in each step, in turn.
        weights: weight of each edge, in the order of `matchings`.

    Raises:
        ValueError: edges that are none or meet in a matching, weights that are not in (0, 1] or leave a node less than
            0 for itself, a period that is neither 1 nor the number of matchings, a graph that is not connected over its
            period.

    Examples:
        >>> Topology("pair", 2, 1, (((0, 1),),), ((0.5,),)).matrix()
        array([[0.5, 0.5],
               [0.5, 0.5]])
    """

    name: str = field(compare=False)
    nodes: int
    period: int
    matchings: tuple[Matching, ...]
    weights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        whole("nodes", self.nodes)
        if self.period not in (1, len(self.matchings)):
            raise ValueError(
                "`period` must be 1, for a fixed graph, or the number of matchings. "
                f"Received: period={self.period!r} with {len(self.matchings)} matchings"
            )
        if [len(matching) for matching in self.matchings] != [len(weights) for weights in self.weights]:
            raise ValueError("`weights` must hold one weight for each edge of `matchings`, in the same order")
        for matching, weights in zip(self.matchings, self.weights, strict=True):
            _check_matching(self.nodes, matching, weights)
        sums = self.partner_weights().sum(1).max(initial=0)
        if sums > 1 + ROW_SUM_TOLERANCE:
            raise ValueError(f"`weights` of the edges of a node must sum to at most 1. Received: a sum of {sums:.6g}")
        _check_connected(self.name, self.nodes, self.partners().reshape(-1, self.nodes))

    def __repr__(self) -> str:
        return f"Topology({self.name!r}, nodes={self.nodes}, period={self.period}, matchings={len(self.matchings)})"

    def rounds(self, step: int = 0) -> tuple[Matching, ...]:
        """The matchings that are exchanged in a step, one after the other."""
        return self.matchings if self.period == 1 else (self.matchings[step % self.period],)

    def partners(self) -> np.ndarray:
        """Partner of each node: ints, shape (period, matchings in a step, nodes), the node itself where it is idle."""
        return self._tables[0]

    def partner_weights(self) -> np.ndarray:
        """Weight of each node's partner: float64, shape of `partners`, 0 where the node is idle."""
        return self._tables[1]

    @functools.cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        partners = np.tile(np.arange(self.nodes), (len(self.matchings), 1))
        weights = np.zeros(partners.shape)
        for row, (matching, values) in enumerate(zip(self.matchings, self.weights, strict=True)):
            left, right = np.transpose(matching)
            partners[row, left], partners[row, right] = right, left
            weights[row, left] = weights[row, right] = values
        shape = (self.period, len(self.matchings) // self.period, self.nodes)
        tables = partners.reshape(shape), weights.reshape(shape)
        for table in tables:
            table.setflags(write=False)
        return tables

    def matrix(self, step: int = 0) -> np.ndarray:
        """Mixing matrix W of a step: float64, (nodes, nodes), symmetric, not negative, rows and columns sum to 1."""
        matrix, rows, phase = np.zeros((self.nodes, self.nodes)), np.arange(self.nodes), step % self.period
        for partners, weights in zip(self.partners()[phase], self.partner_weights()[phase], strict=True):
            matrix[rows, partners] += weights
        matrix[rows, rows] = np.maximum(0, 1 - matrix.sum(1))
        return matrix

    def matrices(self) -> list[np.ndarray]:
        """The mixing matrices of a period."""
        return [self.matrix(step) for step in range(self.period)]

    @functools.cached_property
    def spectral_gap(self) -> float:
        """1 - the factor by which averaging alone shrinks the disagreement per step; 1 where it ends it.

        Fixed graph: 1 - the second largest modulus of an eigenvalue of W. Schedule of period p: 1 - r^(1/p), r the
        spectral radius of the product of its matrices where the nodes' sum is 0.
        """
        return 1 - averaging_growth(self.matrices())

    def messages(self, step: int = 0) -> np.ndarray:
        """How many models each node sends in a step, and receives: ints, (nodes,)."""
        return np.sum(self.partners()[step % self.period] != np.arange(self.nodes), 0)

    @property
    def models_sent(self) -> float:
        """Models that the busiest node sends in a step, on average over a period."""
        return float(np.mean([self.messages(step) for step in range(self.period)], 0).max())

    @property
    def models_sent_by_all_reduce(self) -> float:
        """Models that a node sends in a step where an all-reduce averages: 2 (n - 1) / n."""
        return 2 * (self.nodes - 1) / self.nodes

    def lazy(self, keep: float = 0.5) -> "Topology":
        """The same exchanges with the matrices `keep * I + (1 - keep) * W`; the default makes W positive semidefinite.

        Args:
            keep: what a node keeps of itself before it averages, in [0, 1).
        """
        share = 1 - decay_rate("keep", keep)
        weights = tuple(tuple(share * weight for weight in weights) for weights in self.weights)
        return Topology(f"{self.name}.lazy({keep:g})", self.nodes, self.period, self.matchings, weights)

    def relabelled(self, permutation: Sequence[int]) -> "Topology":
        """The same graph with its nodes numbered anew: node i becomes `permutation[i]`.

        Raises:
            ValueError: `permutation` is not an order of 0 to nodes - 1.
        """
        if sorted(permutation) != list(range(self.nodes)):
            raise ValueError(
                f"`permutation` must hold each of 0 to {self.nodes - 1} once. Received: permutation={permutation!r}"
            )
        place = [int(node) for node in permutation]
        matchings, weights = [], []
        for matching, values in zip(self.matchings, self.weights, strict=True):
            edges = [(min(place[i], place[j]), max(place[i], place[j])) for i, j in matching]
            pairs = sorted(zip(edges, values, strict=True))
            matchings.append(tuple(edge for edge, _ in pairs))
            weights.append(tuple(weight for _, weight in pairs))
        name = f"{self.name}.relabelled(...)"
        return Topology(name, self.nodes, self.period, tuple(matchings), tuple(weights))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the nodes on a circle and each matching in a colour of its own; returns the matplotlib axes.

        Args:
            ax: matplotlib axes; new ones if None.
        """
        from keras_lsb.topology.graph_plot import plot

        return plot(self, ax)

    def get_config(self) -> dict:
        """Everything there is to it, in numbers, strings and lists, for JSON."""
        return {
            "name": self.name,
            "nodes": self.nodes,
            "period": self.period,
            "matchings": [[list(edge) for edge in matching] for matching in self.matchings],
            "weights": [list(weights) for weights in self.weights],
        }

    @classmethod
    def from_config(cls, config: dict) -> Self:
        """The topology whose `get_config` is given."""
        matchings = tuple(tuple(tuple(edge) for edge in matching) for matching in config["matchings"])
        return cls(**{**config, "matchings": matchings, "weights": tuple(map(tuple, config["weights"]))})


def _check_matching(nodes: int, matching: Matching, weights: tuple[float, ...]) -> None:
    ends = np.array(matching).reshape(-1, 2)
    if not (len(ends) and np.all((ends >= 0) & (ends < nodes)) and np.all(ends[:, 0] < ends[:, 1])):
        raise ValueError(f"An edge must be (i, j) with 0 <= i < j < {nodes}. Received: {matching!r}")
    if len(np.unique(ends)) < ends.size:
        raise ValueError(f"A node must have one partner at a time. Received: a matching {matching!r}")
    if not np.all((np.array(weights) > 0) & (np.array(weights) <= 1)):
        raise ValueError(f"`weights` must be in (0, 1]. Received: {weights!r}")


def _check_connected(name: str, nodes: int, partners: np.ndarray) -> None:
    """Raises unless every node reaches every other over edges of the period; partners are (matchings, nodes)."""
    from scipy import sparse  # here: `import keras_lsb` is to be cheap

    here = np.tile(np.arange(nodes), len(partners))
    graph = sparse.coo_array((np.ones(partners.size), (here, partners.ravel())), shape=(nodes, nodes))
    parts, part_of = sparse.csgraph.connected_components(graph, directed=False)
    if parts > 1:
        apart = int(np.argmax(part_of != part_of[0]))
        raise ValueError(
            "The graph must be connected, over its period where it has one: nodes that never hear of each other never "
            f"agree. Received: {name}, {parts} parts, with no way from node 0 to node {apart}"
        )
