"""ResNet-20 on CIFAR-10 with LARS, LAMB or AdamP: an image network with batch normalization at large batches.

Each optimizer has a recipe at batch 128; any other batch size only changes --batch-size:

    python examples/cifar10_resnet.py --data-dir DATA --optimizer lars --batch-size 4096
    python examples/cifar10_resnet.py --data-dir DATA --optimizer lamb --batch-size 4096 --method linear

DATA is a TensorFlow Datasets folder. The last 5,000 of CIFAR-10's 50,000 training images are kept aside and give the
held-out accuracy; the test images are never read. Without --data-dir the same network trains on scikit-learn's 8 x 8
digits. An interrupted run continues at the epoch it had reached.
"""

import argparse
import time

import common
import numpy as np

from keras_lsb.optimizers import LAMB, LARS, AdamP
from keras_lsb.schedules import LEGW

# Learning rate, weight decay and warm-up epochs at batch 128: starting points, not tuned.
OPTIMIZERS = {
    "lars": (LARS, {"learning_rate": 1.0, "weight_decay": 1e-4, "warmup_epochs": 0.1}),
    "lamb": (LAMB, {"learning_rate": 0.002, "weight_decay": 0.1, "warmup_epochs": 0.1}),
    "adamp": (AdamP, {"learning_rate": 0.001, "weight_decay": 0.01, "warmup_epochs": 0.1}),
}
BASE_BATCH_SIZE = 128  # that of these
CLASSES = 10
MEAN, STD = 128, 64  # of the pixels, as the network gets them


def parse_arguments():
    """The shared flags, whose defaults are the recipe of the chosen optimizer, and the two of this example."""
    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("--optimizer", choices=OPTIMIZERS, default="lars")
    recipe = OPTIMIZERS[choice.parse_known_args()[0].optimizer][1]
    parser = common.parse_arguments(
        __doc__,
        batch_size=BASE_BATCH_SIZE,
        epochs=90,
        warmup_epochs=recipe["warmup_epochs"],
        learning_rate=recipe["learning_rate"],
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="lars", help="each has a recipe of its own")
    parser.add_argument("--weight-decay", type=float, default=recipe["weight_decay"], help="of the recipe")
    parser.set_defaults(hold_out=True)  # there is no other evaluation here
    return parser.parse_args()


def load(data_dir: str | None):
    """(train images, labels), (held-out images, labels); images are uint8: (examples, rows, columns, channels)."""
    if data_dir is None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = np.minimum(images * 16, 255).reshape(-1, 8, 8, 1).astype("uint8")
        return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])
    import tensorflow_datasets as tfds

    splits = ["train[:45000]", "train[45000:]"]
    parts = tfds.load("cifar10", split=splits, data_dir=data_dir, download=False, batch_size=-1, as_supervised=True)
    return tfds.as_numpy(parts)


def scaled(images):
    """Pixels, of a floating type, in the units of the network's inputs."""
    return (images - MEAN) / STD


def batches(
    tf, images, labels, batch_size: int, *, seed: int | None = None, steps: int | None = None, augmented: bool = True
):
    """Scaled batches; with a seed also shuffled, and augmented: a random crop of the padded image, and a flip.

    Repeat them for a training: an iterator that lasts for one epoch is closed after it, which takes up to minutes.
    """
    height, width, channels = images.shape[1:]
    padding = height // 8  # 4 pixels at CIFAR-10's 32

    def augment(example, numbers):
        # Numbers of its own for each image: those of a shared generator go to whichever of several threads comes first.
        image, label = example
        image = tf.pad(image, [[padding, padding], [padding, padding], [0, 0]], constant_values=MEAN)
        image = tf.image.stateless_random_crop(image, (height, width, channels), numbers[0])
        # A mirrored digit is another digit, a mirrored photograph shows the same object.
        return tf.image.stateless_random_flip_left_right(image, numbers[1]) if channels == 3 else image, label

    def scale(image, label):
        return scaled(tf.cast(image, tf.float32)), label

    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if seed is not None:
        dataset = dataset.shuffle(len(images), seed=seed)
        if augmented:
            numbers = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2).batch(2)
            dataset = tf.data.Dataset.zip((dataset, numbers)).map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size).map(scale)
    return (dataset.take(steps) if steps else dataset).prefetch(tf.data.AUTOTUNE)


def build_model(keras, shape: tuple[int, ...], momentum: float = 0.99, blocks: int = 3):
    """ResNet-20: three stages of three basic blocks, 16, 32 and 64 filters; a 1 x 1 convolution where shapes change.

    `blocks` is the number in each stage: 1 makes ResNet-8, to look at what a run does before a long one.

    `momentum` is that of batch normalization. With Keras' 0.99, a run of few hundred steps is evaluated with statistics
    that still hold its start.
    """
    layers = keras.layers

    def convolve(inputs, filters, size, strides=1):
        options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        return layers.BatchNormalization(momentum=momentum)(layers.Conv2D(filters, size, strides, **options)(inputs))

    inputs = keras.Input(shape)
    hidden = layers.ReLU()(convolve(inputs, 16, 3))
    for filters in (16, 32, 64):
        for block in range(blocks):
            shrinks = block == 0 and filters > 16
            strides = 2 if shrinks else 1
            shortcut = convolve(hidden, filters, 1, strides) if shrinks else hidden
            hidden = layers.ReLU()(convolve(hidden, filters, 3, strides))
            hidden = layers.ReLU()(layers.Add()([convolve(hidden, filters, 3), shortcut]))
    hidden = layers.GlobalAveragePooling2D()(hidden)
    return keras.Model(inputs, layers.Dense(CLASSES, kernel_initializer="he_normal")(hidden))


def lars_rate(keras, arguments, steps: int, learning_rate: float | None = None):
    """The learning rate of the recipe of LARS at `arguments.batch_size`, by LEGW; see `scaled_lars`."""
    recipe = OPTIMIZERS["lars"][1]
    rate = recipe["learning_rate"] if learning_rate is None else learning_rate
    return LEGW(
        keras.optimizers.schedules.CosineDecay(rate, decay_steps=arguments.epochs),
        base_batch_size=BASE_BATCH_SIZE,
        batch_size=arguments.batch_size,
        steps_per_epoch=steps,
        warmup_epochs=recipe["warmup_epochs"],
        epochs=arguments.epochs,
    )


def scaled_lars(keras, arguments, steps: int, learning_rate: float | None = None):
    """LARS with its recipe at `arguments.batch_size`, by LEGW; another rate at the base batch size may be given."""
    kind, recipe = OPTIMIZERS["lars"]
    return kind(lars_rate(keras, arguments, steps, learning_rate), weight_decay=recipe["weight_decay"])


def main() -> None:
    arguments = parse_arguments()
    common.set_threads(arguments.threads)
    import tensorflow as tf

    keras = tf.keras
    (images, labels), (held_out_images, held_out_labels) = load(arguments.data_dir)
    steps = common.steps_in_epoch(len(images), arguments)
    # In epochs, so that the decay ends at the same epoch at every batch size.
    recipe = keras.optimizers.schedules.CosineDecay(arguments.learning_rate, decay_steps=arguments.epochs)
    schedule = common.scaled_schedule(arguments.method, recipe, arguments, steps)
    print(schedule.summary())
    details = (arguments.optimizer, f"wd{arguments.weight_decay:g}")
    for seed in arguments.seeds:
        folder = arguments.output / common.run_name("cifar10_resnet", arguments, seed, *details)
        result = common.finished(folder)
        if result is None:
            started = time.time()
            keras.utils.set_random_seed(seed)
            model = build_model(keras, images.shape[1:])
            model.compile(
                optimizer=OPTIMIZERS[arguments.optimizer][0](schedule, weight_decay=arguments.weight_decay),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=[common.accuracy(keras)],
                jit_compile=False,
            )
            history = model.fit(
                batches(tf, images, labels, arguments.batch_size, seed=seed, steps=steps).repeat(),
                epochs=arguments.epochs,
                steps_per_epoch=steps,
                shuffle=False,  # the data set is shuffled already
                verbose=2,
                callbacks=common.callbacks(keras, folder),
            )
            loss, accuracy = model.evaluate(batches(tf, held_out_images, held_out_labels, 1000), verbose=0)
            result = common.record(
                folder,
                arguments,
                seed,
                started,
                held_out_accuracy=float(accuracy),
                held_out_loss=float(loss),
                losses=[float(value) for value in history.history["loss"]],
                diverged=not np.isfinite(loss),
            )
        print(f"seed {seed}: held-out accuracy {100 * result['held_out_accuracy']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
