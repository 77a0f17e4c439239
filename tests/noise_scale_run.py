"""Trains a `Microbatched` model on eight devices and prints what came of it as JSON.

`python -m tests.noise_scale_run mirrored | parallel`: eight small gradients in each step. A process of its own, since
the number of devices is fixed when the backend starts.
"""

import json
import sys

DEVICES = 8


def mirrored() -> dict:
    """One microbatch on each replica."""
    import tensorflow as tf

    devices = [tf.config.LogicalDeviceConfiguration()] * DEVICES
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    names = [f"CPU:{index}" for index in range(DEVICES)]
    from tests.noise_scale_problem import SMALL, trained

    strategy = tf.distribute.MirroredStrategy(names, tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        return trained(SMALL // DEVICES) | {"devices": strategy.num_replicas_in_sync}


def parallel() -> dict:
    """A share of each microbatch on each device."""
    import keras

    devices = keras.distribution.list_devices("cpu")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    from tests.noise_scale_problem import SMALL, trained

    return trained(SMALL) | {"devices": len(devices)}


if __name__ == "__main__":
    print(json.dumps({"mirrored": mirrored, "parallel": parallel}[sys.argv[1]]()))
