"""Trains with AutoWU on several devices, once as it is and once with an interruption, and prints both as JSON.

`python -m tests.autowu_run FOLDER parallel | worker INDEX PORT PORT`. A process of its own, since the number of devices
is fixed when the backend starts.
"""

import contextlib
import json
import sys

import numpy as np

from keras_lsb import distribute
from tests.autowu_problem import BATCH, LONG_ENOUGH, STEPS, Interrupt, X, Y, made, weights
from tests.support import LEGACY, TENSORFLOW, keras, to_numpy

INTERVAL = 6
REPEATS = 4  # of the data in an epoch: iterators over several devices take long to make
INTERRUPTED = 2  # epochs, when four losses wait


def data():
    """What to fit; workers share a dataset by examples, not by files."""
    x, y = np.tile(X, (REPEATS, 1)), np.tile(Y, REPEATS)
    if not TENSORFLOW:
        return {"x": x, "y": y, "batch_size": BATCH}
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).with_options(options)}


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
    folder, mode, *arguments = sys.argv[1:]
    if mode == "parallel":
        devices = keras.distribution.list_devices("cpu")
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
        result = runs(folder) | {"devices": len(devices)}
    else:
        from tests.noise_scale_run import strategy_of

        strategy, _ = strategy_of(mode, arguments)
        distribute.enable_multi_worker_fit()
        with strategy.scope():
            result = runs(folder if LEGACY else f"{folder}/{arguments[0]}")  # which Keras 3 does not keep apart itself
        result["devices"] = strategy.num_replicas_in_sync
    print(json.dumps(result))


if __name__ == "__main__":
    main()
