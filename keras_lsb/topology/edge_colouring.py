"""Edge colourings: the edges of a graph in as few matchings as possible, so that no node talks to two at a time.

Sources: Koenig, 1916 (bipartite graphs need as many colours as their largest degree, found by alternating paths);
Vizing, 1964, in the form of Misra and Gries, 1992 (one colour more is enough for every graph).
"""

import itertools
from collections.abc import Iterable

import numpy as np

Edge = tuple[int, int]
Matching = tuple[Edge, ...]

_MOVES_PER_EDGE = 40  # how long the search for a colouring without the extra colour may move an uncoloured edge


def colour_edges(nodes: int, edges: Iterable[Edge]) -> tuple[Matching, ...]:
    """The edges in matchings: sets of edges of which no two share a node.

    With D the largest degree, D matchings are the fewest that are possible. They are found for every bipartite graph
    (paths, even rings, grids, trees) and every complete graph of an even number of nodes. Other graphs are searched for
    them, for a bounded time, and get D + 1 if nothing is found. A graph of more than D * floor(nodes / 2) edges, such
    as an odd ring, needs D + 1. The result depends on the graph alone.

    Args:
        nodes: number of nodes, which are 0 to nodes - 1.
        edges: pairs of different nodes, in any order; no pair twice.

    Returns:
        Sorted matchings of edges (i, j) with i < j.

    Raises:
        ValueError: an edge that is none between two of the nodes, or occurs twice.

    Examples:
        >>> colour_edges(4, [(0, 1), (1, 2), (2, 3), (3, 0)])
        (((0, 1), (2, 3)), ((0, 3), (1, 2)))
        >>> len(colour_edges(5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]))
        3
    """
    edges = sorted_edges(edges)
    if len(set(edges)) < len(edges) or not all(0 <= i < j < nodes for i, j in edges):
        raise ValueError(
            f"`edges` must be different pairs of different nodes, 0 to {nodes - 1}. Received: edges={edges!r}"
        )
    if not edges:
        return ()
    if len(edges) == nodes * (nodes - 1) // 2:
        return round_robin(nodes)
    degree = int(np.bincount(np.ravel(edges)).max())
    colouring = _search(nodes, edges, degree) if len(edges) <= degree * (nodes // 2) else None
    return (colouring or _with_a_spare_colour(nodes, edges, degree)).matchings()


def round_robin(nodes: int) -> tuple[Matching, ...]:
    """The complete graph in `nodes - 1` matchings, or `nodes` where that is odd: everybody plays everybody.

    The last of an even number of nodes stays, while the others turn around it; without it one of them has a free round.
    """
    turning = nodes - 1 + nodes % 2
    rounds = []
    for turn in range(turning):
        pairs = [((turn + i) % turning, (turn - i) % turning) for i in range(1, (turning + 1) // 2)]
        if nodes % 2 == 0:
            pairs.append((turn, nodes - 1))
        rounds.append(sorted_edges(pairs))
    return tuple(sorted(matching for matching in rounds if matching))


def sorted_edges(pairs: Iterable[Edge]) -> Matching:
    """The pairs, each with the smaller number first, in order."""
    return tuple(sorted((min(pair), max(pair)) for pair in pairs))


def _search(nodes: int, edges: Matching, degree: int) -> "_Colouring | None":
    """A colouring with as many colours as the largest degree; None if none was found in time."""
    colouring, random = _Colouring(nodes, degree), np.random.default_rng(0)
    moves = _MOVES_PER_EDGE * len(edges)
    for edge in edges:
        while not colouring.join(*edge):
            if moves == 0:
                return None
            edge, moves = colouring.displace(*edge, random), moves - 1
    return colouring


def _with_a_spare_colour(nodes: int, edges: Matching, degree: int) -> "_Colouring":
    """A colouring with one colour more than the largest degree."""
    colouring = _Colouring(nodes, degree + 1)
    for edge in edges:
        if not colouring.join(*edge):
            colouring.turn_fan(*edge)
    return colouring


class _Colouring:
    """A partial edge colouring that grows by one edge at a time."""

    def __init__(self, nodes: int, colours: int):
        self._colours = range(colours)
        self._across: list[dict[int, int]] = [{} for _ in range(nodes)]  # of a node: colour -> neighbour
        self._colour: dict[tuple[int, int], int] = {}  # (node, neighbour) -> colour, both ways

    def matchings(self) -> tuple[Matching, ...]:
        """The edges of each colour."""
        groups: list[list] = [[] for _ in self._colours]
        for (u, v), colour in self._colour.items():
            if u < v:
                groups[colour].append((u, v))
        return tuple(sorted(sorted_edges(group) for group in groups if group))

    def join(self, u: int, v: int) -> bool:
        """Koenig's step: colours the edge, after swapping two colours along a path from v where need be.

        Returns:
            False if the path ends in u, which helps nothing; in a bipartite graph none does.
        """
        missing = self._missing(u)
        colour = next((colour for colour in missing if colour not in self._across[v]), None)
        if colour is None:
            colour, other = missing[0], self._missing(v)[0]
            if self._path(v, colour, other)[-1] == u:
                return False
            self._swap(v, colour, other)
        self._set(u, v, colour)
        return True

    def turn_fan(self, u: int, v: int) -> None:
        """Vizing's step: colours the edge, always, where every node has a colour to spare.

        The fan of u begins with v; the edge from u to each further node has a colour that the node before misses, so
        that the edges up to any node of the fan can pass their colours on.
        """
        fan = self._fan(u, v)
        colour = self._missing(fan[-1])[0]
        self._swap(u, colour, self._missing(u)[0])
        # The swap may have broken the fan, but then a shorter one ends in a node that misses the colour.
        end = next(place for place, node in enumerate(fan) if colour not in self._across[node])
        for node, following in itertools.pairwise(fan[: end + 1]):
            passed = self._clear(u, following)
            self._set(u, node, passed)
        self._set(u, fan[end], colour)

    def displace(self, u: int, v: int, random: np.random.Generator) -> Edge:
        """Makes a random end miss a random colour, and gives the edge that colour at the cost of another edge.

        Returns:
            The edge that has no colour afterwards; the same one where both its ends miss the colour.
        """
        if random.integers(2):
            u, v = v, u
        colour = int(random.integers(len(self._colours)))
        if colour in self._across[v]:
            self._swap(v, colour, self._missing(v)[0])
        if colour not in self._across[u]:
            return u, v
        other = self._across[u][colour]
        self._clear(u, other)
        self._set(u, v, colour)
        return u, other

    def _fan(self, u: int, v: int) -> list[int]:
        fan = [v]
        while True:
            follows = (
                node
                for colour, node in self._across[u].items()
                if node not in fan and colour not in self._across[fan[-1]]
            )
            node = next(follows, None)
            if node is None:
                return fan
            fan.append(node)

    def _missing(self, node: int) -> list[int]:
        return [colour for colour in self._colours if colour not in self._across[node]]

    def _path(self, node: int, colour: int, other: int) -> list[int]:
        """Nodes along edges of `colour` and `other` in turn, from a node that misses `other`."""
        path = [node]
        while colour in self._across[path[-1]]:
            path.append(self._across[path[-1]][colour])
            colour, other = other, colour
        return path

    def _swap(self, node: int, colour: int, other: int) -> None:
        """Exchanges the two colours along the path from a node that misses `other`: it misses `colour` afterwards."""
        path = self._path(node, colour, other)
        edges = list(itertools.pairwise(path))
        before = [self._clear(*edge) for edge in edges]
        for edge, was in zip(edges, before, strict=True):
            self._set(*edge, other if was == colour else colour)

    def _set(self, u: int, v: int, colour: int) -> None:
        self._across[u][colour], self._across[v][colour] = v, u
        self._colour[u, v] = self._colour[v, u] = colour

    def _clear(self, u: int, v: int) -> int:
        colour = self._colour.pop((u, v))
        del self._colour[v, u], self._across[u][colour], self._across[v][colour]
        return colour
