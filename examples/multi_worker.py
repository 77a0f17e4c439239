"""Train a small convolutional network on digits with several workers: one process each, in step, on shares of a batch.

On one machine, two workers on its processor; nothing else is needed:

    python examples/multi_worker.py --workers 2

On a cluster, the same command on every machine. TF_CONFIG names the workers, as a TFJob sets it on Kubernetes, or Slurm
does; examples/kubernetes/tfjob.yaml and examples/slurm/multi_worker.sbatch start it there:

    python examples/multi_worker.py --launcher tf-config
    srun python examples/multi_worker.py --launcher slurm

The recipe for LAMB was tuned at batch 64, and LEGW carries it to the global batch. All workers need the same --output,
in a folder that they share. A run that was ended continues from its last epoch when it is started again, also with
another number of workers. Ends with an error if the accuracy on held-out digits is below --least-accuracy.
"""

import sys
import tempfile
import time
from pathlib import Path

import common
import launchers
from mnist_cnn import build_model

from keras_lsb import distribute
from keras_lsb.callbacks import BackupAndRestore, SameSettings
from keras_lsb.optimizers import LAMB

MODEL = Path("model", "digits.keras")


def make_parser(description: str):
    """The flags of a training with several workers, the recipe's numbers as defaults."""
    recipe = {"batch_size": 64, "epochs": 30, "warmup_epochs": 1.0, "learning_rate": 0.03}
    parser = common.parse_arguments(description, **recipe, stand_in="scikit-learn's digits")
    parser.add_argument("--workers", type=int, default=2, help="workers to start, where this program starts them")
    parser.add_argument("--least-accuracy", type=float, default=0.93, help="what the run claims; 0 claims nothing")
    parser.set_defaults(batch_size=256)
    return parser


def shares(images, labels, batch_size: int, seed: int | None = None):
    """Batches of the global size, of which each worker takes its share.

    Every worker reads all the data in the same order and keeps its own examples, so a shuffle needs a common seed.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((images[..., None], labels))
    if seed is not None:
        data = data.shuffle(len(images), seed=seed)
    return data.batch(batch_size, drop_remainder=seed is not None).with_options(options)


def folder_of(arguments, seed: int) -> Path:
    """The folder of a run. The number of workers does not matter to a run, and is not in its name."""
    return arguments.output / common.run_name("multi_worker", arguments, seed)


def train(arguments, strategy, seed: int, callbacks=()) -> dict:
    """The record of a run on the workers of `strategy`, in which every worker calls this with the same arguments."""
    import tensorflow as tf

    keras, started = tf.keras, time.time()
    chief = launchers.is_chief(strategy.cluster_resolver)
    folder = folder_of(arguments, seed)
    result = common.finished(folder)
    if result is not None:
        return result
    if arguments.batch_size % strategy.num_replicas_in_sync:
        replicas = f"{strategy.num_replicas_in_sync} replicas"
        raise ValueError(f"--batch-size is global and divided among {replicas}. Received: {arguments.batch_size}")
    (images, labels), (test_images, test_labels) = common.load_digits(arguments.data_dir, arguments.hold_out)
    steps = min(len(images) // arguments.batch_size, arguments.limit_steps or len(images))
    recipe = keras.optimizers.schedules.PolynomialDecay(arguments.learning_rate, arguments.epochs, power=2.0)
    schedule = common.scaled_schedule(arguments.method, recipe, arguments, steps)
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = build_model(keras, images.shape[1:])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(LAMB(schedule, weight_decay=1e-4), loss, metrics=["accuracy"], jit_compile=False)
    if chief:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{strategy.num_replicas_in_sync} replicas. {schedule.summary()}", flush=True)
        callbacks = [*callbacks, keras.callbacks.CSVLogger(str(folder / "log.csv"), append=True)]
    history = model.fit(
        shares(images, labels, arguments.batch_size, seed).take(steps),
        epochs=arguments.epochs,
        verbose=2 if chief else 0,
        callbacks=[
            SameSettings(batch_size=arguments.batch_size, examples=len(images), seed=seed),
            BackupAndRestore(str(folder / "backup")),
            keras.callbacks.TerminateOnNaN(),
            *callbacks,
        ],
    )
    loss, accuracy = model.evaluate(shares(test_images, test_labels, 2000), verbose=0)
    save(model, folder / MODEL, chief)
    results = {"losses": [float(value) for value in history.history["loss"]], "loss": float(loss)}
    results |= {"accuracy": float(accuracy), "replicas": strategy.num_replicas_in_sync}
    return common.record(folder, arguments, seed, started, **results) if chief else results


def save(model, path: Path, chief: bool) -> None:
    """Saves the model at `path`. Every worker has to call it, since reading a variable may take all of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = path if chief else Path(folder, path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(str(path))


def claim(accuracy: float, arguments) -> str:
    """A line on the accuracy. Ends the process with an error if it is less than was claimed."""
    line = f"held-out accuracy {100 * accuracy:.2f} %"
    if accuracy < arguments.least_accuracy:
        sys.exit(f"{line}, {100 * arguments.least_accuracy:.2f} % claimed: FAILED.")
    return f"{line}, {100 * arguments.least_accuracy:.2f} % claimed: passed." if arguments.least_accuracy else line


def parse(flags: list[str] | None = None):
    """The settings that the flags of this program give."""
    parser = make_parser(__doc__)
    parser.add_argument("--launcher", choices=["local", "tf-config", "slurm"], default="local")
    parser.add_argument("--port", type=int, default=8888, help="of a node's first worker, with Slurm")
    return parser.parse_args(flags)


def main() -> None:
    arguments = parse()
    if arguments.launcher == "local":
        flags = [*sys.argv[1:], "--launcher", "tf-config"]
        launchers.run_local(__file__, flags, arguments.workers, arguments.output / "workers")
        return
    common.set_threads(arguments.threads)
    import tensorflow as tf

    resolver = launchers.resolver_of(arguments.launcher, arguments.port)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    distribute.enable_multi_worker_fit()
    for seed in arguments.seeds:
        result = train(arguments, strategy, seed)
        line = claim(result["accuracy"], arguments)
        if launchers.is_chief(resolver):
            print(f"seed {seed}: {line}", flush=True)


if __name__ == "__main__":
    main()
