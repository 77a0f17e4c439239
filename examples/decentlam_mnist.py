"""Nodes that see different digits, on MNIST: DecentLaM, DmSGD, and momentum SGD with an all-reduce (PmSGD).

    python examples/decentlam_mnist.py --data-dir DATA
    python examples/decentlam_mnist.py                  # scikit-learn's 8 x 8 digits

The nodes are virtual devices of one process. Examples are sorted by label and cut into as many pieces as there are
nodes, so that each node sees two digits or three. All methods train the same network from the same weights on the same
batches, with the same momentum and the same learning rate, a linear warm-up and a cosine. Accuracy is that of the
average of the nodes on the test set, or with --hold-out on training images kept aside, for tuning.

Prints a table and draws the accuracy by epoch. Finished runs are kept and not repeated.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import common
import numpy as np
from tqdm import tqdm

from keras_lsb import callbacks, distribute, optimizers, topology

METHODS = ("DecentLaM", "DmSGD", "PmSGD")
TOPOLOGIES = ("ring", "ring_matchings", "grid", "exponential", "complete")
WARMUP = 12  # part of the steps in which the learning rate rises: one in so many
COLORS = {"DecentLaM": "#0072b2", "DmSGD": "#d55e00", "PmSGD": "#777777"}
RECIPE = {"topology": "exponential", "learning_rate": 0.3, "batch_size": 4096, "epochs": 60}
RECIPE_OF_DIGITS = {"topology": "ring", "learning_rate": 0.1, "batch_size": 256, "epochs": 8}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with MNIST; without it, digits that scikit-learn ships")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--topology", choices=TOPOLOGIES, help="default: exponential; for digits ring")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--learning-rate", type=float, help="at its peak; default: 0.3; for digits 0.1")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch-size", type=int, help="of all nodes together; default: 4096; for digits 256")
    parser.add_argument("--epochs", type=int, help="default: 60; for digits 8")
    parser.add_argument("--skew", type=float, default=1.0, help="share of the examples that are sorted by label")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hold-out", action="store_true", help="evaluate on training images kept aside, for tuning")
    parser.add_argument("--quick", action="store_true", help="one seed, three epochs")
    parser.add_argument("--threads", type=int, default=1, help="virtual devices on several may wait for one another")
    parser.add_argument("--output", type=Path, default=Path("runs/decentlam_mnist"), help="results and picture")
    arguments = parser.parse_args()
    for name, value in (RECIPE if arguments.data_dir else RECIPE_OF_DIGITS).items():
        setattr(arguments, name, getattr(arguments, name) or value)
    if arguments.quick:
        arguments.seeds, arguments.epochs = arguments.seeds[:1], 3
    if arguments.batch_size % arguments.nodes:
        parser.error(f"--batch-size is divided among {arguments.nodes} nodes. Received: {arguments.batch_size}")
    return arguments


def deal(labels: np.ndarray, nodes: int, skew: float, random) -> np.ndarray:
    """The examples of each node, (nodes, examples) indices: a share `skew` dealt by label, the others at random."""
    order = random.permutation(len(labels))[: len(labels) // nodes * nodes]
    count = int(skew * len(order)) // nodes * nodes
    by_label = order[:count][np.argsort(labels[order[:count]], kind="stable")]
    return np.concatenate([by_label.reshape(nodes, -1), order[count:].reshape(nodes, -1)], axis=1)


def batches(shares: np.ndarray, batch_size: int, epochs: int, random) -> np.ndarray:
    """(epochs * steps, batch_size) indices: the i-th part of each batch holds examples of node i only."""
    nodes, examples = shares.shape
    share = batch_size // nodes
    steps = examples // share
    orders = [random.permuted(shares, axis=1)[:, : steps * share] for _ in range(epochs)]
    return np.concatenate([order.reshape(nodes, steps, share).swapaxes(0, 1) for order in orders]).reshape(
        -1, batch_size
    )


def gathered(tf, images, labels, order: np.ndarray):
    """A dataset of the batches whose examples are the rows of `order`."""
    images, labels = tf.constant(images), tf.constant(labels)
    data = tf.data.Dataset.from_tensor_slices(order.reshape(-1)).batch(order.shape[1], drop_remainder=True)
    return data.map(lambda chosen: (tf.gather(images, chosen), tf.gather(labels, chosen))).prefetch(2)


def build_model(keras, shape: tuple[int, ...]):
    """One hidden layer, without batch normalization: statistics of one digit would not serve the average."""
    layers = keras.layers
    return keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(64, "relu"), layers.Dense(10)])


def compiled(tf, arguments, shape: tuple[int, ...], steps: int):
    """The network, with the optimizer of the method under the strategy that belongs to it."""
    keras = tf.keras
    strategy = common.mirrored(arguments.nodes)
    if arguments.method == "PmSGD":
        scope, kind = strategy.scope(), keras.optimizers.SGD
    else:
        graph = getattr(topology, arguments.topology)(arguments.nodes)
        scope, kind = distribute.decentralized(strategy, graph), getattr(optimizers, arguments.method)
    total = steps * arguments.epochs
    warmup = {"warmup_steps": total // WARMUP, "warmup_target": arguments.learning_rate}
    schedule = keras.optimizers.schedules.CosineDecay(0.0, total - total // WARMUP, **warmup)
    with scope:
        model = build_model(keras, shape)
        model.compile(
            kind(schedule, momentum=arguments.momentum),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[common.accuracy(keras)],
            steps_per_execution=steps,  # `fit`'s own time would outweigh the model's
            jit_compile=False,
        )
    return model


def accuracy_of(model, images, labels) -> float:
    """In percent. Not `evaluate` under the strategy: on many virtual devices that takes longer than an epoch does."""
    return 100 * float(np.mean(np.argmax(model(images), axis=-1) == labels))


def name_of(arguments) -> str:
    """The folder of a run, whose name differs whenever the result may."""
    task = "mnist" if arguments.data_dir else "digits"
    numbers = f"lr{arguments.learning_rate:g}-m{arguments.momentum:g}-b{arguments.batch_size}-e{arguments.epochs}"
    graph = f"{arguments.topology}{arguments.nodes}-skew{arguments.skew:g}"
    parts = [task, common.flavour(), arguments.method, graph, numbers, f"s{arguments.seed}"]
    return "-".join([*parts, *(["holdout"] if arguments.hold_out else [])])


def train(arguments, data, on_epoch) -> dict:
    """The record of one run, made if there is none yet."""
    import tensorflow as tf

    folder = arguments.output / name_of(arguments)
    result = common.finished(folder)
    if result is not None:
        return result
    (images, labels), held_out = data
    random, started = np.random.default_rng(arguments.seed), time.time()
    shares = deal(labels, arguments.nodes, arguments.skew, random)
    order = batches(shares, arguments.batch_size, arguments.epochs, random)
    steps = len(order) // arguments.epochs
    tf.keras.backend.clear_session()
    average = build_model(tf.keras, images.shape[1:])
    tf.keras.utils.set_random_seed(arguments.seed)
    model = compiled(tf, arguments, images.shape[1:], steps)

    accuracies = []

    def evaluate(epoch, logs):
        average.set_weights(model.get_weights())
        accuracies.append(accuracy_of(average, *held_out))
        on_epoch()

    measured = [] if arguments.method == "PmSGD" else [callbacks.Consensus()]
    history = model.fit(
        gathered(tf, images, labels, order),
        epochs=arguments.epochs,
        steps_per_epoch=steps,
        shuffle=False,  # the batches are shuffled already, node by node
        verbose=0,
        callbacks=[*measured, tf.keras.callbacks.LambdaCallback(on_epoch_end=evaluate)],
    ).history
    folder.mkdir(parents=True, exist_ok=True)
    return common.record(
        folder,
        arguments,
        arguments.seed,
        started,
        steps=len(order),
        labels_per_node=[len(np.unique(labels[share])) for share in shares],
        accuracies=accuracies,
        losses=[float(value) for value in history["loss"]],
        consensus_distances=[float(value) for value in history.get("consensus_distance", [0.0] * arguments.epochs)],
    )


def summary(runs: list[dict]) -> dict:
    """Mean and range of the final accuracy over the seeds of one method."""
    finals = [run["accuracies"][-1] for run in runs]
    settings = ("method", "topology", "nodes", "skew", "batch_size", "learning_rate", "momentum", "epochs", "steps")
    return {
        **{key: runs[0][key] for key in settings},
        "seeds": len(finals),
        "mean": statistics.fmean(finals),
        "stdev": statistics.stdev(finals) if len(finals) > 1 else 0.0,
        "lowest": min(finals),
        "highest": max(finals),
        "consensus_distance": statistics.fmean(run["consensus_distances"][-1] for run in runs),
    }


def table(rows: list[dict]) -> str:
    lines = [
        f"{'method':>9} {'seeds':>5} {'steps':>5} {'accuracy, %':>15} {'lowest':>7} {'highest':>7} {'distance':>9}"
    ]
    for row in rows:
        accuracy = f"{row['mean']:.2f} +- {row['stdev']:.2f}"
        lines.append(
            f"{row['method']:>9} {row['seeds']:>5} {row['steps']:>5} {accuracy:>15} {row['lowest']:>7.2f} "
            f"{row['highest']:>7.2f} {row['consensus_distance']:>9.2g}"
        )
    return "\n".join(lines)


def plot(runs: list[dict], path: Path) -> None:
    """Accuracy by epoch: a line for the mean of each method, a band from its lowest to its highest seed."""
    with common.picture(path) as axes:
        for method in dict.fromkeys(run["method"] for run in runs):
            accuracies = np.array([run["accuracies"] for run in runs if run["method"] == method])
            epochs, color = np.arange(1, accuracies.shape[1] + 1), COLORS[method]
            axes.plot(epochs, accuracies.mean(0), color=color, label=f"{method}: {accuracies[:, -1].mean():.2f} %")
            axes.fill_between(epochs, accuracies.min(0), accuracies.max(0), color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel="epoch", ylabel="held-out accuracy of the average, %")
        axes.legend(loc="lower right")


def main() -> None:
    arguments = parse_arguments()
    common.set_threads(arguments.threads)
    common.set_virtual_devices(arguments.nodes)
    data = common.load_digits(arguments.data_dir, arguments.hold_out)
    variants = [(method, seed) for method in arguments.methods for seed in arguments.seeds]
    runs = []
    with tqdm(total=len(variants) * arguments.epochs, unit="epoch", dynamic_ncols=True) as bar:
        for number, (method, seed) in enumerate(variants):
            bar.set_description(f"{method}, seed {seed}")
            settings = argparse.Namespace(**vars(arguments), method=method, seed=seed)
            runs.append(train(settings, data, bar.update))
            bar.update((number + 1) * arguments.epochs - bar.n)  # of a run that had finished before
    rows = [summary([run for run in runs if run["method"] == method]) for method in arguments.methods]
    record = {"versions": common.versions(), "rows": rows, "runs": runs}
    (arguments.output / "decentlam_mnist.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(runs, arguments.output / "decentlam_mnist.png")
    print(table(rows))
    print(f"accuracy by epoch: {arguments.output / 'decentlam_mnist.png'}")


if __name__ == "__main__":
    main()
