"""The convolutional network of the noise-scale paper for images of digits, and steps of plain SGD on it.

McCandlish et al., 2018, arXiv 1812.06162: two 5 x 5 convolutions with pooling, 32 and 64 filters, a dense layer of 1024
and dropout of 0.4. The examples on the critical batch size and on adaptive batches train it.
"""

import numpy as np


def build_model(
    keras, shape: tuple[int, ...], policy: str = "float32", dropout: float = 0.4, momentum: float | None = None
):
    """The network for images of `shape`, built and not compiled; its outputs are float32 logits of ten classes.

    With a `momentum`, batch normalization with it stands before each ReLU; the paper has none.
    """
    keras.mixed_precision.set_global_policy(policy)
    layers = keras.layers

    def activation() -> list:
        return [*([] if momentum is None else [layers.BatchNormalization(momentum=momentum)]), layers.ReLU()]

    return keras.Sequential(
        [
            keras.Input((*shape, 1)),
            layers.Conv2D(32, 5, padding="same"),
            *activation(),
            layers.MaxPool2D(),
            layers.Conv2D(64, 5, padding="same"),
            *activation(),
            layers.MaxPool2D(),
            layers.Flatten(),
            layers.Dense(1024),
            *activation(),
            layers.Dropout(dropout),
            layers.Dense(10, dtype="float32"),
        ]
    )


class SGDTrainer:
    """Trains a model with plain SGD at a constant learning rate and keeps the loss of every step."""

    def __init__(self, model, images: np.ndarray, labels: np.ndarray):
        import tensorflow as tf

        self.model = model
        self.images, self.labels = tf.constant(images[..., None]), tf.constant(labels)
        self.optimizer = tf.keras.optimizers.SGD(0.0)
        self.optimizer.build(model.trainable_variables)
        loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        @tf.function(reduce_retracing=True)
        def train(batches):
            losses = tf.TensorArray(tf.float32, tf.shape(batches)[0])
            for step in tf.range(tf.shape(batches)[0]):
                images, labels = tf.gather(self.images, batches[step]), tf.gather(self.labels, batches[step])
                with tf.GradientTape() as tape:
                    loss = loss_of(labels, model(images, training=True))
                variables = model.trainable_variables
                self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
                losses = losses.write(step, loss)
            return losses.stack()

        self._train = train

    def run(self, batch_size: int, learning_rate: float, seed: int, chunk_examples: int = 8192):
        """Yields the losses of the steps, an array per chunk, without end."""
        self.optimizer.learning_rate.assign(learning_rate)
        shuffle = np.random.default_rng(seed)
        order = np.empty(0, "int32")
        steps = max(1, chunk_examples // batch_size)
        while True:
            while len(order) < steps * batch_size:
                order = np.concatenate([order, shuffle.permutation(len(self.images)).astype("int32")])
            batches, order = order[: steps * batch_size], order[steps * batch_size :]
            yield self._train(batches.reshape(steps, batch_size)).numpy()
