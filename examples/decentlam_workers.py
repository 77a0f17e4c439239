"""Four workers that average with one neighbour at a time: DecentLaM on digits, over the two matchings of a ring.

    python examples/decentlam_workers.py --local 4

starts four processes on this machine. On a cluster, run it without --local on every machine; TF_CONFIG names the
workers there. Their number must be even. Examples are sorted by label, so that a worker sees three digits or four, and
has to learn the others from its neighbours. Accuracy is that of the average of the workers, which is also what is
saved. Ends with an error if it is below --least-accuracy.
"""

import argparse
import sys
from pathlib import Path

import common
import launchers
import numpy as np
from decentlam_mnist import batches, build_model, deal, gathered
from multi_worker import claim, save

from keras_lsb import callbacks, distribute, optimizers, topology


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with MNIST; without it, digits that scikit-learn ships")
    parser.add_argument("--local", type=int, help="workers to start on this machine")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch-size", type=int, default=256, help="of all workers together")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--least-accuracy", type=float, default=0.85, help="what the run claims; 0 claims nothing")
    parser.add_argument("--seed", type=int, default=0, help="the same for all workers")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--output", type=Path, default=Path("runs/decentlam_workers"), help="logs and model, shared")
    return parser.parse_args()


def train(arguments, strategy) -> tuple[float, float]:
    """Trains, saves the average of the workers, and returns its accuracy and how far they were from it at the end."""
    import tensorflow as tf

    keras, workers = tf.keras, strategy.num_replicas_in_sync
    chief = launchers.is_chief(strategy.cluster_resolver)
    (images, labels), held_out = common.load_digits(arguments.data_dir)
    random = np.random.default_rng(arguments.seed)
    shares = deal(labels, workers, 1.0, random)
    order = batches(shares, arguments.batch_size, arguments.epochs, random)
    keras.utils.set_random_seed(arguments.seed)
    with distribute.decentralized(strategy, topology.ring_matchings(workers)):
        model = build_model(keras, images.shape[1:])
        model.compile(
            optimizers.DecentLaM(arguments.learning_rate, momentum=arguments.momentum),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[common.accuracy(keras)],
            jit_compile=False,
        )
    history = model.fit(
        gathered(tf, images, labels, order),
        epochs=arguments.epochs,
        steps_per_epoch=len(order) // arguments.epochs,
        shuffle=False,  # the batches are shuffled already, worker by worker
        verbose=2 if chief else 0,
        callbacks=[callbacks.Consensus()],
    )
    _, accuracy = model.evaluate(tf.data.Dataset.from_tensor_slices(held_out).batch(180), verbose=0)
    save(model, arguments.output / "digits.keras", chief)
    return float(accuracy), float(history.history["consensus_distance"][-1])


def main() -> None:
    arguments = parse_arguments()
    if arguments.local:
        flags = [*sys.argv[1:], "--local", "0"]
        launchers.run_local(__file__, flags, arguments.local, arguments.output / "workers")
        return
    common.set_threads(arguments.threads)
    import tensorflow as tf

    resolver = launchers.tf_config_resolver()
    distribute.enable_multi_worker_fit()
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    accuracy, consensus_distance = train(arguments, strategy)
    line = claim(accuracy, arguments)
    if launchers.is_chief(resolver):
        print(f"{line}\nconsensus distance {consensus_distance:.2g}", flush=True)


if __name__ == "__main__":
    main()
