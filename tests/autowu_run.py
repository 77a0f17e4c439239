"""Trains with AutoWU once as it is and once with an interruption.

`python -m tests.autowu_run FOLDER` does so on all devices of JAX and prints both as JSON. A process of its own, since
the number of devices is fixed when the backend starts.
"""

import contextlib
import json
import sys

import numpy as np

from tests.autowu_problem import BATCH, LONG_ENOUGH, STEPS, Interrupt, X, Y, made, weights
from tests.noise_scale_problem import dataset
from tests.support import TENSORFLOW, keras, to_numpy

INTERVAL = 6
REPEATS = 4  # of the data in an epoch: iterators over several devices take long to make
INTERRUPTED = 2  # epochs, when four losses wait


def data():
    """What to fit."""
    x, y = np.tile(X, (REPEATS, 1)), np.tile(Y, REPEATS)
    if not TENSORFLOW:
        return {"x": x, "y": y, "batch_size": BATCH}
    return {"x": dataset(x, y, batch_size=BATCH)}


def ready():
    """(model, callback) that may be restored: its optimizer has all its variables."""
    model, callback = made(options={"steps_per_check": INTERVAL})
    model.optimizer.build(model.trainable_variables)
    return model, callback


def fit(model, *callbacks, epochs=LONG_ENOUGH // REPEATS):
    return model.fit(**data(), epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


def summary(model, callback) -> dict:
    """What runs can be compared by."""
    controller = callback.schedule.controller
    return {
        "losses": callback.losses.tolist(),
        "decisions": [list(test) for test in controller.tests],
        "switch": [controller.switch_step, controller.reason, controller.peak],
        "rates": to_numpy(callback.schedule(np.arange(LONG_ENOUGH * STEPS, dtype="int32"))).tolist(),
        "weights": [weight.tolist() for weight in weights(model)],
    }


def runs(folder) -> dict:
    """Summaries of a run that is not interrupted, and of the second half of one that is; `seen` when epochs end."""
    whole, seen = ready(), []
    fit(*whole, keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(whole[1].schedule.seen)))
    with contextlib.suppress(KeyboardInterrupt):
        model, callback = ready()
        fit(model, keras.callbacks.BackupAndRestore(folder), callback, Interrupt(INTERRUPTED, 2))
    resumed = ready()
    fit(resumed[0], keras.callbacks.BackupAndRestore(folder), resumed[1])
    return {"whole": summary(*whole), "resumed": summary(*resumed), "seen": seen}


def main():
    devices = keras.distribution.list_devices("cpu")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    print(json.dumps(runs(sys.argv[1]) | {"devices": len(devices)}))


if __name__ == "__main__":
    main()
