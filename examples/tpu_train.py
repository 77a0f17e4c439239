"""Train a small convolutional network on digits on a Cloud TPU, with TPUStrategy.

On the TPU virtual machine, with TensorFlow 2.20 or older (tensorflow-tpu has no later version) and tf_keras:

    TF_USE_LEGACY_KERAS=1 python examples/tpu_train.py --tpu local --batch-size 1024 \\
        --data "gs://BUCKET/digits/*.tfrecord" --output gs://BUCKET/run

Without --tpu it runs the same code on this machine's devices. Without --data it first writes scikit-learn's digits as
TFRecord files below --output. A run that was ended continues from its last epoch. Ends with an error if the accuracy on
held-out digits is below --least-accuracy.
"""

import argparse
import json
import sys
import tempfile

import common
import numpy as np
from mnist_cnn import build_model
from multi_worker import claim

from keras_lsb.optimizers import LAMB
from keras_lsb.schedules import LEGW

LAST_TPU_VERSION = (2, 20)
FILES = 4


def connect(name: str):
    """TPUStrategy on the TPU of that name; "local" is the one of this machine. The order of the calls matters."""
    import tensorflow as tf

    version = tuple(int(part) for part in tf.__version__.split(".")[:2])
    if version > LAST_TPU_VERSION or common.flavour() != "tf_keras":
        raise ValueError(
            "TPUStrategy needs TensorFlow 2.20 or older and TF_USE_LEGACY_KERAS=1; use Keras 3 on JAX otherwise. "
            f"Received: TensorFlow {tf.__version__} with {common.flavour()}"
        )
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


def write_digits(folder: str) -> str:
    """Writes training images of scikit-learn's digits as TFRecord files; returns the pattern that finds them."""
    import tensorflow as tf

    (images, labels), _ = common.load_digits(None)
    tf.io.gfile.makedirs(folder)
    for index in range(FILES):
        with tf.io.TFRecordWriter(f"{folder}/{index}-of-{FILES}.tfrecord") as writer:
            for image, label in zip(images[index::FILES], labels[index::FILES], strict=True):
                feature = {
                    "image": tf.train.Feature(float_list=tf.train.FloatList(value=image.ravel())),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                }
                record = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(record.SerializeToString())
    return f"{folder}/*.tfrecord"


def read(pattern: str, shape: tuple[int, ...]):
    """The examples in the files of a pattern, on this machine or on Google Cloud Storage, cached in memory."""
    import tensorflow as tf

    features = {"image": tf.io.FixedLenFeature((*shape, 1), tf.float32), "label": tf.io.FixedLenFeature((), tf.int64)}

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        return example["image"], example["label"]

    files = tf.data.Dataset.list_files(pattern, shuffle=False)
    data = files.interleave(tf.data.TFRecordDataset, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return data.map(parse, num_parallel_calls=tf.data.AUTOTUNE).cache()


def padded(images, labels, batch_size: int):
    """Batches for evaluation, all of one shape, as a TPU needs them: what fills the last one has weight 0."""
    import tensorflow as tf

    missing = -len(labels) % batch_size
    weights = np.repeat(np.float32([1, 0]), [len(labels), missing])
    images = np.pad(images[..., None], [(0, missing), (0, 0), (0, 0), (0, 0)])
    data = tf.data.Dataset.from_tensor_slices((images, np.pad(labels, (0, missing)), weights))
    return data.batch(batch_size, drop_remainder=True)


def train(arguments, strategy) -> float:
    """The accuracy on held-out digits after a training. Every path may be one on Google Cloud Storage."""
    import tensorflow as tf

    keras = tf.keras
    _, (test_images, test_labels) = common.load_digits(None)
    shape = test_images.shape[1:]
    examples = read(arguments.data or write_digits(f"{arguments.output}/data"), shape)
    count = int(examples.reduce(0, lambda total, _: total + 1))
    steps = min(count // arguments.batch_size, arguments.limit_steps or count)
    # One shape for all batches: another one would compile the program again.
    data = examples.shuffle(count, seed=0).repeat().batch(arguments.batch_size, drop_remainder=True)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = build_model(keras, shape, arguments.policy)
        schedule = LEGW(
            keras.optimizers.schedules.PolynomialDecay(arguments.learning_rate, arguments.epochs, power=2.0),
            base_batch_size=arguments.base_batch_size,
            batch_size=arguments.batch_size,
            steps_per_epoch=steps,
            warmup_epochs=arguments.warmup_epochs,
            epochs=arguments.epochs,
        )
        model.compile(
            LAMB(schedule, weight_decay=1e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[common.accuracy(keras)],
            # The host hands over this many steps at a time; here an epoch, after which callbacks run.
            steps_per_execution=steps,
            jit_compile=False,  # TPUStrategy compiles by itself
        )
    print(f"{strategy.num_replicas_in_sync} replicas. {schedule.summary()}", flush=True)
    model.fit(
        data.prefetch(tf.data.AUTOTUNE),
        steps_per_epoch=steps,
        epochs=arguments.epochs,
        verbose=2,
        callbacks=[keras.callbacks.BackupAndRestore(f"{arguments.output}/backup"), keras.callbacks.TerminateOnNaN()],
    )
    results = model.evaluate(padded(test_images, test_labels, arguments.batch_size), verbose=0, return_dict=True)
    with tempfile.TemporaryDirectory() as folder:  # Keras writes this file on a local disk only
        model.save(f"{folder}/digits.keras")
        tf.io.gfile.copy(f"{folder}/digits.keras", f"{arguments.output}/digits.keras", overwrite=True)
    accuracy = float(results["accuracy"])
    with tf.io.gfile.GFile(f"{arguments.output}/result.json", "w") as file:
        json.dump({"accuracy": accuracy, "steps": steps * arguments.epochs, "versions": common.versions()}, file)
    return accuracy


def parse(flags: list[str] | None = None) -> argparse.Namespace:
    """The settings that the flags of this program give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tpu", default="", help='name or address of the TPU, "local" on its own machine')
    parser.add_argument("--data", help="pattern of TFRecord files with features image and label")
    parser.add_argument("--output", default="runs/tpu", help="folder, or gs://BUCKET/FOLDER")
    parser.add_argument("--batch-size", type=int, default=256, help="global batch size, in examples")
    parser.add_argument("--base-batch-size", type=int, default=64, help="batch size the recipe was tuned at")
    parser.add_argument("--learning-rate", type=float, default=0.03, help="of the recipe")
    parser.add_argument("--warmup-epochs", type=float, default=1.0, help="of the recipe")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--limit-steps", type=int, help="steps per epoch at most, for a quick look")
    parser.add_argument("--policy", default="float32", help="mixed_bfloat16 is faster on a TPU")
    parser.add_argument("--least-accuracy", type=float, default=0.93, help="what the run claims; 0 claims nothing")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    return parser.parse_args(flags)


def main() -> None:
    arguments = parse()
    common.set_threads(arguments.threads)
    import tensorflow as tf

    strategy = connect(arguments.tpu) if arguments.tpu else tf.distribute.get_strategy()
    if arguments.batch_size % strategy.num_replicas_in_sync:
        sys.exit(f"--batch-size is divided among {strategy.num_replicas_in_sync} replicas: {arguments.batch_size}")
    print(claim(train(arguments, strategy), arguments), flush=True)


if __name__ == "__main__":
    main()
