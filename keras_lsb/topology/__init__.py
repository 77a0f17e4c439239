"""Graphs of nodes that average with their neighbours: mixing matrices, matchings, stability, simulation."""

from keras_lsb.topology.edge_colouring import colour_edges
from keras_lsb.topology.fixed import complete, exponential, from_matrix, from_networkx, grid, path, ring
from keras_lsb.topology.graph import Topology
from keras_lsb.topology.schedules import one_peer_exponential, path_matchings, random_matching, ring_matchings
from keras_lsb.topology.simulation import Simulation, consensus_distance, disagreement, simulate
from keras_lsb.topology.stability import growth, require_stable

__all__ = [
    "Simulation",
    "Topology",
    "colour_edges",
    "complete",
    "consensus_distance",
    "disagreement",
    "exponential",
    "from_matrix",
    "from_networkx",
    "grid",
    "growth",
    "one_peer_exponential",
    "path",
    "path_matchings",
    "random_matching",
    "require_stable",
    "ring",
    "ring_matchings",
    "simulate",
]
