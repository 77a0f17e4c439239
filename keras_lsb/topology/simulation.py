"""Training on many nodes in one process, as arrays: what a topology, a method and a learning rate would do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from keras_lsb._checks import choice, decay_rate, non_negative, whole
from keras_lsb.rules import decentlam, decentlam_message, dmsgd, dmsgd_message
from keras_lsb.topology.graph import Topology

_RULES = {
    "DecentLaM": (decentlam_message, decentlam),
    "DmSGD": (dmsgd_message, dmsgd),
    "DSGD": (dmsgd_message, dmsgd),
    "PmSGD": (dmsgd_message, dmsgd),
}


class Simulation(NamedTuple):
    """Where a simulated run ended, and how far the nodes were from one another on the way.

    Attributes:
        weights: (nodes, parameters) after the last step.
        displacement: of the momentum, (nodes, parameters), in parameter units.
        steps: steps done at each record, ints.
        consensus_distance: of the weights at each record, float64.
    """

    weights: np.ndarray
    displacement: np.ndarray
    steps: np.ndarray
    consensus_distance: np.ndarray


def consensus_distance(weights: ArrayLike) -> float:
    """How far the nodes are from their average, relative to it: sum_i ||x_i - xbar||^2 / (nodes * ||xbar||^2).

    0 where all agree; infinite where they do not and their average is 0.

    Args:
        weights: (nodes, parameters), a row per node.

    Examples:
        >>> consensus_distance([[1.0, 2.0], [3.0, 2.0]])
        0.125
    """
    weights = _rows("weights", weights).astype("float64")
    mean = weights.mean(0)
    spread, size = np.sum((weights - mean) ** 2), len(weights) * np.sum(mean**2)
    if size == 0:
        return 0.0 if spread == 0 else float("inf")
    return float(spread / size)


def simulate(
    topology: Topology,
    gradients: Callable[[np.ndarray, int], np.ndarray],
    start: ArrayLike,
    *,
    method: str = "DecentLaM",
    learning_rate: float | Callable[[int], float],
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    steps: int,
    record_every: int = 1,
) -> Simulation:
    """Trains all nodes of a topology in one process, with the package's own update rules.

    In step k = 0, 1, ... every node takes the gradient g + weight_decay * x at its own weights x, makes its message,
    meets the partners of that step, and finishes. Nothing is refused for being unstable: see it happen.

    Args:
        topology: of up to thousands of nodes; a step costs one pass over the weights for each matching in it.
        gradients: function of the weights (nodes, parameters) and the step that returns the gradients, same shape.
        start: weights before the first step, (parameters,) for all nodes or (nodes, parameters); a float type is kept,
            anything else becomes float64.
        method: "DecentLaM"; "DmSGD"; "DSGD", decentralized SGD, whatever the momentum; or "PmSGD", in which an
            all-reduce gives every node the mean gradient and the topology only counts the nodes.
        learning_rate: the same on all nodes; a number, or a function of the step.
        momentum: in [0, 1).
        weight_decay: >= 0.
        steps: number of steps, a whole number >= 0.
        record_every: steps between two records of the consensus distance; the last step is always recorded.

    Raises:
        ValueError: an argument out of range, an array of another shape; a message that is not finite, with the node and
            the step at which the first one was met.

    Examples:
        >>> from keras_lsb.topology import ring
        >>> targets = np.array([[1.0], [3.0], [5.0], [7.0]])  # the loss of a node is (x - target)^2 / 2
        >>> run = simulate(ring(4), lambda x, step: x - targets, [0.0], learning_rate=0.1, steps=500)
        >>> run.weights.round(2).ravel().tolist()
        [3.93, 3.88, 4.12, 4.07]
    """
    message, finish = _RULES[choice("method", method, tuple(_RULES))]
    momentum = 0.0 if method == "DSGD" else decay_rate("momentum", momentum)
    weight_decay, record_every = non_negative("weight_decay", weight_decay), whole("record_every", record_every)
    weights = _start(start, topology.nodes)
    displacement, recorded, distances = np.zeros_like(weights), [], []
    steps = whole("steps", steps, 0)
    for step in range(steps):
        gradient = _same_shape("gradients", gradients(weights, step), weights) + weight_decay * weights
        if method == "PmSGD":
            gradient = np.broadcast_to(gradient.mean(0), weights.shape)
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        settings = {"learning_rate": non_negative("learning_rate", rate), "momentum": momentum}
        messages = message(weights, gradient, displacement, **settings)
        _require_finite(messages, step)
        mixed = np.zeros_like(messages) if method == "PmSGD" else disagreement(topology, messages, step)
        update, displacement = finish(gradient, displacement, mixed, **settings)
        weights = weights - update
        if (step + 1) % record_every == 0 or step + 1 == steps:
            recorded.append(step + 1)
            distances.append(consensus_distance(weights))
    return Simulation(weights, displacement, np.array(recorded, "int64"), np.array(distances))


def disagreement(topology: Topology, messages: np.ndarray, step: int = 0) -> np.ndarray:
    """What each node gets of an exchange: the sum over its partners j of w_ij (z_i - z_j), in the type of the messages.

    Args:
        topology: who exchanges with whom.
        messages: z, (nodes, parameters).
        step: of the schedule.
    """
    phase, total = step % topology.period, np.zeros_like(messages)
    for partners, weights in zip(topology.partners()[phase], topology.partner_weights()[phase], strict=True):
        total += weights.astype(messages.dtype)[:, None] * (messages - messages[partners])
    return total


def _rows(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype("float64")
    if array.ndim != 2 or not array.size:
        raise ValueError(f"`{name}` must be of shape (nodes, parameters). Received: {name} of shape {array.shape}")
    return array


def _start(start: ArrayLike, nodes: int) -> np.ndarray:
    """A row of weights for each node."""
    rows = _rows("start", [start] if np.ndim(start) == 1 else start)
    if not np.all(np.isfinite(rows)):
        raise ValueError(f"`start` must be finite. Received: start={start!r}")
    if len(rows) == 1:
        return np.repeat(rows, nodes, 0)
    if len(rows) != nodes:
        raise ValueError(f"`start` must have a row for each of {nodes} nodes. Received: start of shape {rows.shape}")
    return rows


def _same_shape(name: str, values: ArrayLike, weights: np.ndarray) -> np.ndarray:
    array = np.asarray(values, weights.dtype)
    if array.shape != weights.shape:
        raise ValueError(f"`{name}` must return an array of shape {weights.shape}. Received: shape {array.shape}")
    return array


def _require_finite(messages: np.ndarray, step: int) -> None:
    broken = np.flatnonzero(~np.isfinite(messages).all(1))
    if len(broken):
        raise ValueError(
            f"The message of node {broken[0]} is not finite at step {step}, and would reach all nodes in the next. "
            f"Nothing of the run is kept: steps={step} returns the weights before that step. "
            f"Received: {len(broken)} of {len(messages)} messages that are not finite"
        )
