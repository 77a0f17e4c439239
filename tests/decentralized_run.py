"""Workers as nodes: `python -m tests.decentralized_run train | long FOLDER [STEPS_PER_EPOCH]`, with TF_CONFIG.

`train` prints the worker's own weights after each case. `long` trains for many steps with a backup of each epoch, and
notes the steps as they begin in a file of the worker.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_lsb import _keras, callbacks, distribute, topology
from keras_lsb.distribute.nodes import consensus_distance, read_nodes
from tests import decentralized_problem as problem
from tests.support import error_of, keras, with_slots

EPOCHS = 10


def own_weights(model) -> list:
    (values,) = read_nodes(model).values()
    return [float(value) for value in problem.flat(values[: len(model.trainable_variables)])]


def train(strategy, folder: Path) -> dict:
    """Weights of this worker's node in every case, and what one of the models is to its reader."""
    found = {}
    for name, (graph, changes, options) in problem.CASES.items():
        changes = dict(changes)
        arguments = problem.SETTINGS[changes.pop("setting", "plain")]
        model = problem.train(
            strategy, problem.TOPOLOGIES[graph](problem.NODES), options=options, **changes, **arguments
        )
        found[name] = own_weights(model)
    own = folder / str(INDEX)
    own.mkdir(parents=True)
    model.save(str(own / "model.keras"))
    found["saved"] = [
        float(value) for value in problem.flat(keras.models.load_model(own / "model.keras").get_weights())
    ]
    found["after"] = own_weights(model)
    found["distance"] = consensus_distance(model)
    found["evaluate"] = model.evaluate(problem.batches().take(1), verbose=0)
    found["disagreeing"] = error_of(lambda: _enter(strategy, topology.ring if INDEX else topology.path))
    return found


def _enter(strategy, graph) -> None:
    with distribute.decentralized(strategy, graph(problem.NODES)):
        pass


class Journal(keras.callbacks.Callback):
    """Notes the steps."""

    def __init__(self, path, steps_per_epoch):
        super().__init__()
        self.path, self.steps_per_epoch, self.epoch = path, steps_per_epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        with self.path.open("a") as file:
            file.write(f"{self.epoch * self.steps_per_epoch + batch}\n")


def long(strategy, folder: Path, steps_per_epoch: str) -> dict:
    """Ten epochs on the alternating matchings, or what is left of them."""
    nodes, steps = strategy.num_replicas_in_sync, int(steps_per_epoch)
    with distribute.decentralized(strategy, topology.ring_matchings(nodes), timeout=problem.TIMEOUT):
        model = problem.network()
        model.compile(problem.DecentLaM(0.01, momentum=problem.MOMENTUM), "mse")
        with_slots(model)
    x, y = (np.resize(array, (nodes * 8, array.shape[-1])) for array in (problem.X, problem.Y[..., None]))
    data = problem.dataset(x, y, batch_size=len(x)).repeat()
    listeners = [callbacks.BackupAndRestore(folder / "backup"), Journal(folder / f"steps-{INDEX}", steps)]
    begin = time.monotonic()
    try:
        model.fit(data, epochs=EPOCHS, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=listeners)
    except Exception as error:
        sys.stderr.write(f"after {time.monotonic() - begin:.1f} s\n")
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        os._exit(3)  # TensorFlow's threads may still wait for the lost worker
    return {"weights": own_weights(model), "steps": _keras.updates_done(model.optimizer)}


INDEX = json.loads(os.environ["TF_CONFIG"])["task"]["index"]


def main():
    keras.utils.set_random_seed(7)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    distribute.enable_multi_worker_fit()
    print(json.dumps({"train": train, "long": long}[sys.argv[1]](strategy, Path(sys.argv[2]), *sys.argv[3:])))


if __name__ == "__main__":
    main()
