"""Trains a `Microbatched` model on one device or on several and prints what came of it as JSON.

`python -m tests.noise_scale_run one | mirrored | worker INDEX PORT PORT | parallel`: eight small gradients in each step
on TensorFlow, four on JAX. A process of its own, since the number of devices is fixed when the backend starts.
"""

import json
import os
import sys

import numpy as np

_random = np.random.default_rng(21)
X = _random.normal(size=(128, 5)).astype("float32")
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] + 0.5 * _random.normal(size=128) > 0)
BATCH = 32


def strategy_of(mode, arguments):
    """The strategy, and microbatches of each replica that make eight small gradients."""
    import tensorflow as tf

    if mode == "one":
        return tf.distribute.get_strategy(), 8
    if mode == "mirrored":
        devices = [tf.config.LogicalDeviceConfiguration()] * 8
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
        names = [f"CPU:{index}" for index in range(8)]
        return tf.distribute.MirroredStrategy(names, tf.distribute.ReductionToOneDevice()), 1
    index, *ports = arguments
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": int(index)}})
    return tf.distribute.MultiWorkerMirroredStrategy(), 4


def batches():
    """A dataset that workers share by examples, not by files."""
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH).with_options(options)


def trained(microbatches):
    """(model, History) after two epochs."""
    from tests.microbatches import microbatched
    from tests.support import TENSORFLOW, keras

    model = microbatched(
        microbatches, optimizer=keras.optimizers.SGD(0.3, momentum=0.9, global_clipnorm=0.2), metrics=["accuracy"]
    )
    data = (batches(),) if TENSORFLOW else (X, Y, BATCH)
    return model, model.fit(*data, epochs=2, verbose=0, shuffle=False)


def stock_fit_error() -> str:
    """The error of plain `fit` under the present strategy, empty where it works."""
    from tests.microbatches import compiled, small_model

    model = compiled(small_model())
    try:
        model.fit(batches(), epochs=1, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main():
    mode, *arguments = sys.argv[1:]
    result = {}
    if mode == "parallel":
        import keras

        devices = keras.distribution.list_devices("cpu")
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
        result["devices"] = len(devices)
        model, history = trained(4)
    elif os.environ.get("KERAS_BACKEND") == "jax":
        model, history = trained(4)
    else:
        from keras_lsb import distribute

        strategy, microbatches = strategy_of(mode, arguments)
        with strategy.scope():
            if mode == "worker":
                result["stock"] = stock_fit_error()
                result["enabled"] = [distribute.enable_multi_worker_fit() for _ in range(2)]
            model, history = trained(microbatches)
        result["devices"] = strategy.num_replicas_in_sync
    found = model.noise_scale_estimate()
    result |= {"estimate": list(found), "history": history.history}
    result["weights"] = [np.asarray(weight, "float64").ravel().tolist() for weight in model.model.get_weights()]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
