"""A small network whose noise scale is measured, and the same training by hand in NumPy: no Keras, no replicas."""

import numpy as np

from tests.reference import noise_scale as reference
from tests.support import TENSORFLOW, keras

BATCH, SMALL, EPOCHS = 64, 8, 2  # eight small gradients of eight examples in each batch
RATE, MOMENTUM, CLIP, DECAY = 0.3, 0.9, 0.2, 0.99
_random = np.random.default_rng(21)
X = _random.normal(size=(256, 5)).astype("float32")
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] + 0.5 * _random.normal(size=256) > 0)
START = [
    value.astype("float32")
    for value in (_random.normal(size=(5, 6)) / 2, np.zeros(6), _random.normal(size=(6, 3)) / 2, np.zeros(3))
]


def network():
    """Two dense layers that start alike in every flavour and on every backend."""
    model = keras.Sequential(
        [keras.layers.Input((5,)), keras.layers.Dense(6, "tanh", name="hidden"), keras.layers.Dense(3, name="output")]
    )
    model.set_weights(START)
    return model


def dataset(*arrays, batch_size=BATCH):
    """Batches that workers share by examples, not by files.

    Nothing tunes itself: under a strategy, an iterator is gone only when what tunes it wakes, in as long as it has run.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size).with_options(options)


def data() -> dict:
    """What to fit. Microbatches are strided on JAX: there the examples of a batch are reordered, so that they agree."""
    if TENSORFLOW:
        return {"x": dataset(X, Y)}
    order = np.arange(len(X)).reshape(-1, SMALL, BATCH // SMALL).swapaxes(1, 2).ravel()
    return {"x": X[order], "y": Y[order], "batch_size": BATCH}


def trained(microbatches) -> dict:
    """What comes of the training with so many microbatches on each replica."""
    from tests.microbatches import accuracy, microbatched

    optimizer = keras.optimizers.SGD(RATE, momentum=MOMENTUM, global_clipnorm=CLIP)
    arguments = {"decay": DECAY}
    model = microbatched(microbatches, network(), arguments, optimizer=optimizer, metrics=[accuracy()])
    history = model.fit(**data(), epochs=EPOCHS, verbose=0, shuffle=False).history
    return {
        "start": [value.tolist() for value in START],
        "weights": [np.asarray(value, "float64").tolist() for value in model.model.get_weights()],
        "estimate": list(model.noise_scale_estimate()),
        "history": {name: [float(value) for value in values] for name, values in history.items()},
    }


def by_hand() -> dict:
    """The same in float64."""
    weights, velocities = [value.astype("float64") for value in START], [0.0] * 4
    measurements, history = [], {"loss": [], "accuracy": []}
    for _ in range(EPOCHS):
        losses, hits = [], []
        for start in range(0, len(X), BATCH):
            parts = [slice(first, first + BATCH // SMALL) for first in range(start, start + BATCH, BATCH // SMALL)]
            found = [loss_and_gradients(weights, X[part].astype("float64"), Y[part]) for part in parts]
            losses += [loss for loss, _, _ in found]
            hits += [share for _, share, _ in found]
            small = [np.concatenate([one.ravel() for one in gradients]) for _, _, gradients in found]
            measurements.append([*reference.measurement(small, [BATCH // SMALL] * SMALL), BATCH])
            gradients = [np.mean(each, 0) for each in zip(*(gradients for _, _, gradients in found), strict=True)]
            norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
            scale = min(1.0, CLIP / norm)
            velocities = [MOMENTUM * v - RATE * scale * g for v, g in zip(velocities, gradients, strict=True)]
            weights = [weight + velocity for weight, velocity in zip(weights, velocities, strict=True)]
        history["loss"].append(np.mean(losses))
        history["accuracy"].append(np.mean(hits))
    means = reference.averages(measurements, DECAY)
    signal, noise = means["grad_sq_norm"], means["trace"]
    ends = reference.interval(measurements, DECAY, 0.9)
    estimate = [noise / signal, *ends, signal, noise, means["measurements"], means["skipped"]]
    return {"weights": weights, "estimate": estimate, "history": history}


def loss_and_gradients(weights, x, y):
    """Mean cross-entropy, share of right answers, and gradients."""
    kernel, bias, second, second_bias = weights
    hidden = np.tanh(x @ kernel + bias)
    scores = hidden @ second + second_bias
    errors = np.exp(scores - scores.max(1, keepdims=True))
    errors /= errors.sum(1, keepdims=True)
    chosen = np.arange(len(y)), y
    loss, share = -np.mean(np.log(errors[chosen])), np.mean(scores.argmax(1) == y)
    errors[chosen] -= 1
    errors /= len(y)
    inner = errors @ second.T * (1 - hidden**2)
    return loss, share, [x.T @ inner, inner.sum(0), hidden.T @ errors, errors.sum(0)]
