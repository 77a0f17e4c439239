"""A linear regression whose nodes hold different examples, for real replicas and by hand in NumPy."""

import functools

import numpy as np

from keras_lsb import distribute, topology
from keras_lsb.optimizers import DecentLaM, DmSGD
from tests.noise_scale_problem import dataset
from tests.support import keras, with_slots

NODES, SHARE, COLUMNS, STEPS = 4, 16, 5, 50
RATE, MOMENTUM, DECAY, CLIP = 0.05, 0.8, 0.01, 0.5
_random = np.random.default_rng(29)
X = (_random.normal(size=(NODES, SHARE, COLUMNS)) + _random.normal(size=(NODES, 1, COLUMNS))).astype("float32")
Y = (X @ _random.normal(size=COLUMNS) + _random.normal(size=(NODES, 1))).astype("float32")
START = [(_random.normal(size=(COLUMNS, 1)) / 2).astype("float32"), np.zeros(1, "float32")]
TOPOLOGIES = {
    "ring": topology.ring,
    "complete": topology.complete,
    "ring_matchings": topology.ring_matchings,
    "path": topology.path,
    "path_matchings": topology.path_matchings,
}
METHODS = {"DecentLaM": DecentLaM, "DmSGD": DmSGD}
# What a case changes: arguments of the optimizer.
SETTINGS = {"plain": {}, "decay": {"weight_decay": DECAY}, "clipped": {"global_clipnorm": CLIP}}
# What workers train: topology, method and setting, options of the scope. One process trains both on every topology.
CASES = {
    **{f"{name}_DecentLaM": (name, {}, {}) for name in TOPOLOGIES},
    "ring_DmSGD": ("ring", {"method": "DmSGD"}, {}),
    "clipped": ("ring", {"setting": "clipped"}, {}),
    "buckets": ("path", {}, {"bucket": 8}),  # two numbers at a time
}
TIMEOUT = 10.0  # seconds that a worker waits for a neighbour in the long training


def rate(step):
    """A warm-up from 0 and a drop."""
    return RATE * min(step / 10, 1) * (0.5 if step >= 30 else 1)


@keras.saving.register_keras_serializable(package="tests")
class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """`rate` of the problem as a schedule."""

    def __call__(self, step):
        from keras_lsb._keras import ops

        step = ops.cast(step, "float32")
        return RATE * ops.minimum(step / 10, 1.0) * ops.where(step >= 30, 0.5, 1.0)

    def get_config(self):
        return {}


def network():
    model = keras.Sequential([keras.layers.Input((COLUMNS,)), keras.layers.Dense(1, name="output")])
    model.set_weights(START)
    return model


def batches():
    """The whole data as one batch, of which node i gets the part i."""
    return dataset(X.reshape(-1, COLUMNS), Y.reshape(-1, 1), batch_size=NODES * SHARE).repeat()


def train(strategy, graph, method="DecentLaM", learning_rate=None, steps=STEPS, options=None, **arguments):
    """The model after so many steps as nodes of a strategy; `options` are those of the scope."""
    with distribute.decentralized(strategy, graph, **(options or {})):
        model = network()
        optimizer = METHODS[method](Rate() if learning_rate is None else learning_rate, momentum=MOMENTUM, **arguments)
        model.compile(optimizer, "mse")
        with_slots(model)
    model.fit(batches(), epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
    return model


def flat(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in arrays])


def gradients(weights, step=0, weight_decay=0.0, clip=None):
    """Of the mean squared error of each node's own examples: shape (nodes, columns + 1)."""
    x, y = X.astype("float64"), Y.astype("float64")
    error = np.einsum("nsc,nc->ns", x, weights[:, :-1]) + weights[:, -1:] - y
    found = 2 * np.concatenate([np.einsum("ns,nsc->nc", error, x), error.sum(1, keepdims=True)], 1) / SHARE
    if clip is not None:
        found *= np.minimum(1, clip / np.linalg.norm(found, axis=1, keepdims=True))
    decayed = np.append(np.ones(COLUMNS), 0)  # not the bias
    return found + weight_decay * decayed * weights


def by_hand(graph, method="DecentLaM", setting="plain", steps=STEPS) -> np.ndarray:
    """Weights of all nodes in float64, from the formulas of the papers: (nodes, columns + 1)."""
    slope = functools.partial(
        gradients,
        weight_decay=SETTINGS[setting].get("weight_decay", 0.0),
        clip=SETTINGS[setting].get("global_clipnorm"),
    )
    start = np.tile(flat(START).astype("float64"), (NODES, 1))
    return _DISPLACEMENTS[method](slope, start, [graph.matrix(step) for step in range(graph.period)], steps)


def _decentlam(slope, x, matrices, steps):
    v = np.zeros_like(x)
    for step in range(steps):
        w, g = matrices[step % len(matrices)], slope(x, step)
        v = MOMENTUM * v + x - w @ (x - rate(step) * g)
        x = x - v
    return x


def _dmsgd(slope, x, matrices, steps):
    v = np.zeros_like(x)
    for step in range(steps):
        v = MOMENTUM * v + rate(step) * slope(x, step)
        x = matrices[step % len(matrices)] @ (x - v)
    return x


_DISPLACEMENTS = {"DecentLaM": _decentlam, "DmSGD": _dmsgd}
