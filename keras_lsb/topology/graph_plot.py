"""The picture of a topology."""

import math

import numpy as np

from keras_lsb._types import Axes
from keras_lsb.scaling.axes import axes_or_new
from keras_lsb.topology.graph import Topology

_COLOURS = 10  # of the colour cycle "C0" to "C9", and entries of the legend


def plot(topology: Topology, ax: Axes | None = None) -> Axes:
    """Draws what `Topology.plot` describes."""
    ax = axes_or_new(ax)
    angles = 2 * math.pi * np.arange(topology.nodes) / topology.nodes
    places = np.stack([np.sin(angles), np.cos(angles)])
    word = "matching" if topology.period == 1 else "step"
    for number, matching in enumerate(topology.matchings):
        ends = places[:, np.ravel(matching)].reshape(2, -1, 2)
        gaps = np.full((2, len(matching), 1), np.nan)  # between edges, so that a matching is one line
        line = np.concatenate([ends, gaps], 2).reshape(2, -1)
        label = f"{word} {number}" if number < _COLOURS else None
        ax.plot(*line, color=f"C{number % _COLOURS}", linewidth=1, label=label, zorder=1)
    ax.plot(*places, "o", color="black", markersize=4, zorder=2)
    if topology.nodes <= 64:
        for node, place in enumerate(places.T):
            ax.annotate(str(node), 1.12 * place, ha="center", va="center", fontsize="small")
    if topology.matchings:
        ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    ax.set(title=topology.name, aspect="equal")
    ax.margins(0.15)
    ax.axis("off")
    return ax
