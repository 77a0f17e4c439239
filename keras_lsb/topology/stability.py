"""Which topologies a method may use: what it does to the disagreement of the nodes, step after step.

DecentLaM has the consensus inside its momentum. At a small learning rate one step is heavy ball with the curvature
1 - lambda along an eigenvector of W with eigenvalue lambda, which is stable for every symmetric fixed W with
-1 < lambda <= 1 and every momentum below 1. Schedules and asymmetric matrices can make it diverge.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import choice, decay_rate
from keras_lsb.topology.graph import ROW_SUM_TOLERANCE, Topology
from keras_lsb.topology.spectrum import averaging_growth, momentum_growth

METHODS = ("DecentLaM", "DmSGD")


def growth(topology: Topology | np.ndarray | Sequence[np.ndarray], momentum: float, method: str = "DecentLaM") -> float:
    """Factor by which one step multiplies the disagreement of the nodes, for a learning rate that tends to 0.

    DecentLaM: the spectral radius, where the nodes' sum is 0, of the product over a period of

        [[momentum * I, I - W_t], [-momentum * I, W_t]]

    to the power of 1 / period; at least sqrt(momentum). DmSGD averages outside the momentum: the larger of the momentum
    and 1 - the spectral gap. Below 1 the nodes come to agree; 0 for a single node.

    Args:
        topology: a `Topology`; or an (n, n) mixing matrix, or a sequence of those used in turn, whose rows sum to 1 and
            which need not be symmetric.
        momentum: in [0, 1).
        method: "DecentLaM" or "DmSGD"; with momentum 0 both are decentralized SGD.

    A fixed topology of 1,024 nodes takes a tenth of a second, a schedule of so many some seconds.

    Examples:
        >>> from keras_lsb.topology import one_peer_exponential, ring_matchings
        >>> [round(growth(one_peer_exponential(nodes), 0.9), 4) for nodes in (4, 8, 16)]
        [0.9487, 1.0524, 1.2201]
        >>> round(growth(ring_matchings(16), 0.9), 4)
        0.9487
    """
    momentum = decay_rate("momentum", momentum)
    matrices = topology.matrices() if isinstance(topology, Topology) else _matrices(topology)
    if choice("method", method, METHODS) == "DecentLaM":
        return momentum_growth(matrices, momentum)
    return max(momentum, averaging_growth(matrices)) if len(matrices[0]) > 1 else 0.0


@functools.lru_cache(typed=True)  # each replica asks when it is traced
def require_stable(topology: Topology, momentum: float, method: str = "DecentLaM") -> None:
    """Raises a ValueError if the method makes the nodes drift apart on the topology, with what would work instead.

    A smaller momentum is not always safer: `one_peer_exponential(8, 0.48)` is stable at 0.9 and not at 0.8.

    Args:
        topology, momentum, method: as for `growth`.

    Raises:
        ValueError: growth of 1 or more. To say what would work it tries a hundred momenta and weights, which takes a
            moment on a schedule of hundreds of nodes.
    """
    factor = growth(topology, momentum, method)
    if factor < 1:
        return
    raise ValueError(
        f"{method} is unstable on {topology.name} at momentum {momentum:g}: each step multiplies the disagreement of "
        f"the nodes by {factor:.4f}. What works instead: {'; '.join(_remedies(topology, momentum, method))}. "
        f"Received: topology={topology!r}, momentum={momentum!r}"
    )


def _remedies(topology: Topology, momentum: float, method: str) -> list[str]:
    """What would be stable, from the smallest change on."""
    found, nodes = [], topology.nodes
    lower = _stable_up_to(lambda value: growth(topology, value, method), below=momentum)
    if lower > 0:
        found.append(f"a momentum up to {lower:g}")
    if topology.period > 1:
        heaviest = max(map(max, topology.weights))
        lighter = _stable_up_to(
            lambda weight: growth(topology.lazy(1 - weight / heaviest), momentum, method), below=heaviest
        )
        found += [f"a partner weight up to {lighter:g}"] if lighter > 0 else []
    else:
        found.append("lazy weights, topology.lazy()")  # of a fixed graph only the eigenvalue -1 is unstable
    found.append(f"a fixed graph, such as ring({nodes}) or exponential({nodes})")
    found.append(f"{'path' if nodes % 2 else 'ring'}_matchings({nodes})")
    if growth(topology, momentum, "DmSGD") < 1:
        found.append("DmSGD")
    return found


def _stable_up_to(growth_at: Callable[[float], float], below: float) -> float:
    """The largest multiple of 0.01 below a bound up to which all are stable; 0 if there is none.

    All of them are tried, because stability may end and begin again on the way.
    """
    end = math.ceil(100 * below)
    return next((value - 1 for value in range(1, end) if growth_at(value / 100) >= 1), end - 1) / 100


def _matrices(values: ArrayLike) -> list[np.ndarray]:
    """The mixing matrices of an array or of a sequence of arrays."""
    array = np.asarray(values, "float64")
    matrices = array[None] if array.ndim == 2 else array
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or not matrices.size:
        raise ValueError(f"A mixing matrix must be (n, n), several (steps, n, n). Received: shape {array.shape}")
    worst = float(np.max(np.abs(matrices.sum(-1) - 1)))
    if not worst <= ROW_SUM_TOLERANCE:
        raise ValueError(f"A mixing matrix must have rows that sum to 1. Received: a row off by {worst:g}")
    return list(matrices)
