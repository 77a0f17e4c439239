"""ResNet-20 on CIFAR-10 with AutoWU: LAMB and AdamP at two batch sizes, without a learning rate to tune.

    python examples/autowu_cifar10.py --data-dir DATA
    python examples/autowu_cifar10.py                   # scikit-learn's 8 x 8 digits, at smaller batches

DATA is a TensorFlow Datasets folder. The accuracy is that of training images kept aside, as in cifar10_resnet.py, from
which network and weight decays come. The learning rate of a run comes from its own losses: it rises until they have
stopped falling, and decays from the rate at which they were lowest.

Prints every decision and a table at the end, and draws each run. An interrupted run continues at the epoch it had
reached, with the decisions made so far; a finished one is not repeated.
"""

import argparse
import time
from pathlib import Path

import cifar10_resnet
import common
import numpy as np

from keras_lsb import callbacks, schedules

CHECKS = 120  # decisions per run: the paper decides once per epoch and trains for 120
MOMENTUM = 0.9  # of batch normalization, for runs of few steps


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with CIFAR-10; without it, digits that scikit-learn ships")
    # Not LARS: its good rates are above 1, the largest that AutoWU tries by default.
    parser.add_argument("--optimizers", nargs="+", choices=("lamb", "adamp"), default=["lamb", "adamp"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="default: 1024 4096; for digits 128 512")
    parser.add_argument("--epochs", type=int, help="default: 90; for digits 60")
    parser.add_argument("--steps-per-check", type=int, help=f"steps between decisions; default: 1 / {CHECKS} of a run")
    # While there are few losses, a probability of 0.95 may be that of their noise.
    parser.add_argument("--confidence", type=float, help="least probability of a vote; default: 0.95; for digits 0.999")
    parser.add_argument("--blocks", type=int, default=3, help="in each stage of the network; 1 makes ResNet-8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit-steps", type=int, help="steps per epoch at most, for a quick look")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--output", type=Path, default=Path("runs/autowu"), help="checkpoints, logs, results, pictures")
    arguments = parser.parse_args()
    arguments.batch_sizes = arguments.batch_sizes or ([1024, 4096] if arguments.data_dir else [128, 512])
    arguments.epochs = arguments.epochs or (90 if arguments.data_dir else 60)
    arguments.confidence = arguments.confidence or (0.95 if arguments.data_dir else 0.999)
    return arguments


def train(arguments, data) -> dict:
    """The record of one run, made if there is none yet."""
    import tensorflow as tf
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    keras = tf.keras
    (images, labels), (held_out_images, held_out_labels) = data
    optimizer, batch_size, seed = arguments.optimizer, arguments.batch_size, arguments.seed
    steps = common.steps_in_epoch(len(images), arguments)
    total = steps * arguments.epochs
    check = arguments.steps_per_check or max(1, total // CHECKS)
    task = "cifar10" if arguments.data_dir else "digits"
    length = f"n{steps}-e{arguments.epochs}-check{check}-p{arguments.confidence:g}"
    length += "" if arguments.blocks == 3 else f"-blocks{arguments.blocks}"
    name = f"{task}-{common.flavour()}-{optimizer}-b{batch_size}-{length}-s{seed}"
    folder = arguments.output / name
    result = common.finished(folder)
    if result is not None:
        return result
    print(f"{optimizer}, batch {batch_size}, seed {seed}: {total} steps, a decision every {check}", flush=True)
    started = time.time()
    keras.utils.set_random_seed(seed)
    model = cifar10_resnet.build_model(keras, images.shape[1:], MOMENTUM, arguments.blocks)
    kind, recipe = cifar10_resnet.OPTIMIZERS[optimizer]
    schedule = schedules.AutoWU(total, steps_per_check=check, confidence=arguments.confidence)
    model.compile(
        optimizer=kind(schedule, weight_decay=recipe["weight_decay"]),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[common.accuracy(keras)],
        jit_compile=False,
    )
    autowu = callbacks.AutoWU(schedule)
    history = model.fit(
        cifar10_resnet.batches(tf, images, labels, batch_size, seed=seed, steps=steps).repeat(),
        epochs=arguments.epochs,
        steps_per_epoch=steps,
        shuffle=False,  # the data set is shuffled already
        verbose=2,
        callbacks=[autowu, *common.callbacks(keras, folder)],  # first, so that the logs hold what it reports
    )
    held_out = cifar10_resnet.batches(tf, held_out_images, held_out_labels, 1000)
    loss, accuracy = model.evaluate(held_out, verbose=0)
    autowu.plot()[0].figure.savefig(arguments.output / f"{name}.png", dpi=150)
    plt.close()
    controller = schedule.controller
    return common.record(
        folder,
        arguments,
        seed,
        started,
        steps=total,
        check=check,
        switch_step=controller.switch_step,
        peak=controller.peak,
        reason=controller.reason or "none, it ended before",
        held_out_accuracy=float(accuracy),
        held_out_loss=float(loss),
        losses=[float(value) for value in history.history["loss"]],
        diverged=not np.isfinite(loss),
    )


def main() -> None:
    arguments = parse_arguments()
    common.set_threads(arguments.threads)
    data = cifar10_resnet.load(arguments.data_dir)
    runs = [
        train(argparse.Namespace(**vars(arguments), batch_size=batch_size, optimizer=optimizer, seed=seed), data)
        for batch_size in arguments.batch_sizes
        for optimizer in arguments.optimizers
        for seed in arguments.seeds
    ]
    print(f"{'optimizer':>9} {'batch':>6} {'seed':>4} {'steps':>6} {'switch':>6} {'rate':>9} {'held-out':>9}  reason")
    for run in runs:
        switch = "-" if run["switch_step"] is None else run["switch_step"]
        rate = "-" if run["peak"] is None else f"{run['peak']:.3g}"
        print(
            f"{run['optimizer']:>9} {run['batch_size']:>6} {run['seed']:>4} {run['steps']:>6} {switch:>6} {rate:>9} "
            f"{100 * run['held_out_accuracy']:>7.2f} %  {run['reason']}"
        )


if __name__ == "__main__":
    main()
