"""ResNet-20 on CIFAR-10 with ConAdv: plain training beside training on adversarial examples as well, at a large batch.

    python examples/conadv_cifar10.py --data-dir DATA --batch-size 4096
    python examples/conadv_cifar10.py                   # scikit-learn's 8 x 8 digits

DATA is a TensorFlow Datasets folder. The accuracy is that of training images kept aside, as in cifar10_resnet.py, from
which network and recipe come: LARS at batch 128, scaled by LEGW. Modes: `none` trains on clean images alone,
`sequential` makes the adversarial examples of a step before it, `concurrent` makes them with weights that are
`--staleness` updates old. The accuracy under attack is that of the same held-out images, attacked as in training,
on the trained network.

Prints a table, and leaves results and a picture of images before and after the attack for each run. An interrupted run
continues at the epoch it had reached; a finished one is not repeated.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import cifar10_resnet
import common
import numpy as np

from keras_lsb.training import ConAdv, input_units

MODES = ("none", "sequential", "concurrent")
MOMENTUM = 0.9  # of batch normalization, for runs of few steps
RECIPE = cifar10_resnet.OPTIMIZERS["lars"][1]
SETTING = {"batch_size": 4096, "epochs": 90, "epsilon": 4.0}
SETTING_OF_DIGITS = {"batch_size": 128, "epochs": 20, "epsilon": 32.0}
NAMES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with CIFAR-10; without it, digits that scikit-learn ships")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--batch-size", type=int, help="default: 4096; for digits 128")
    parser.add_argument("--epochs", type=int, help="default: 90; for digits 20")
    parser.add_argument("--epsilon", type=float, help="radius of the attack, of 255; default: 4; for digits 32")
    parser.add_argument("--attack-steps", type=int, default=1)
    parser.add_argument("--staleness", type=int, default=1, help="updates between attack and training, if concurrent")
    # Halves, so that gradients keep the size that the recipe was made for.
    parser.add_argument("--loss-weights", type=float, nargs=2, default=[0.5, 0.5], help="clean, adversarial")
    parser.add_argument("--learning-rate", type=float, default=RECIPE["learning_rate"], help="of the recipe")
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True, help="crops and flips")
    parser.add_argument("--blocks", type=int, default=3, help="in each stage of the network; 1 makes ResNet-8")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit-steps", type=int, help="steps per epoch at most, for a quick look")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes all")
    parser.add_argument("--output", type=Path, default=Path("runs/conadv"), help="checkpoints, logs, results, pictures")
    return common.with_defaults(parser.parse_args(), SETTING, SETTING_OF_DIGITS)


def build_model(keras, shape: tuple[int, ...], dtype: str, blocks: int):
    """The network; where it computes in bfloat16, its last layer computes in float32."""
    if dtype == "float32":
        return cifar10_resnet.build_model(keras, shape, MOMENTUM, blocks)
    keras.mixed_precision.set_global_policy(f"mixed_{dtype}")
    model = cifar10_resnet.build_model(keras, shape, MOMENTUM, blocks)
    last = keras.layers.Dense(cifar10_resnet.CLASSES, kernel_initializer="he_normal", dtype="float32")
    return keras.Model(model.inputs, last(model.layers[-1].input))


def compiled(keras, arguments, shape: tuple[int, ...], steps: int):
    """The network of one run, with the recipe at its batch size."""
    model = build_model(keras, shape, arguments.dtype, arguments.blocks)
    units = input_units(arguments.epsilon, mean=cifar10_resnet.MEAN, std=cifar10_resnet.STD)
    model = ConAdv(
        model,
        units.epsilon,
        value_range=units.value_range,
        mode=arguments.mode,
        attack_steps=arguments.attack_steps,
        staleness=arguments.staleness,
        loss_weights=arguments.loss_weights,
        seed=arguments.seed,
    )
    model.compile(
        cifar10_resnet.scaled_lars(keras, arguments, steps, arguments.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


def name_of(arguments, steps: int) -> str:
    """The folder of a run, whose name differs whenever the result may."""
    task = "cifar10" if arguments.data_dir else "digits"
    attack = f"eps{arguments.epsilon:g}-x{arguments.attack_steps}"
    parts = [task, common.flavour(), arguments.mode, attack]
    parts += [f"stale{arguments.staleness}"] if arguments.mode == "concurrent" else []
    parts += ["w{:g}and{:g}".format(*arguments.loss_weights)] if arguments.mode != "none" else []
    parts += [f"b{arguments.batch_size}", f"n{steps}", f"e{arguments.epochs}", f"lr{arguments.learning_rate:g}"]
    parts += [] if arguments.augment else ["plain"]
    parts += [] if arguments.blocks == 3 else [f"blocks{arguments.blocks}"]
    return "-".join([*parts, arguments.dtype, f"s{arguments.seed}"])


def train(arguments, data) -> dict:
    """The record of one run, made if there is none yet."""
    import tensorflow as tf

    keras = tf.keras
    (images, labels), (held_out_images, held_out_labels) = data
    steps = common.steps_in_epoch(len(images), arguments)
    folder = arguments.output / name_of(arguments, steps)
    result = common.finished(folder)
    if result is not None:
        return result
    print(f"{arguments.mode}, seed {arguments.seed}: {steps * arguments.epochs} steps", flush=True)
    started = time.time()
    keras.backend.clear_session()
    keras.utils.set_random_seed(arguments.seed)
    model = compiled(keras, arguments, images.shape[1:], steps)
    marks = [time.perf_counter()]
    model.fit(
        cifar10_resnet.batches(
            tf,
            images,
            labels,
            arguments.batch_size,
            seed=arguments.seed,
            steps=steps,
            augmented=arguments.augment,
        ).repeat(),
        epochs=arguments.epochs,
        steps_per_epoch=steps,
        shuffle=False,  # the data set is shuffled already
        verbose=2,
        callbacks=[
            *common.callbacks(keras, folder),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: marks.append(time.perf_counter())),
        ],
    )
    held_out = cifar10_resnet.scaled(held_out_images.astype("float32"))
    loss, accuracy = model.evaluate(held_out, held_out_labels, batch_size=500, verbose=0)[:2]
    attacked = model.adversarial_examples(held_out, held_out_labels, batch_size=500)
    attacked_loss, attacked_accuracy = model.evaluate(attacked, held_out_labels, batch_size=500, verbose=0)[:2]
    predicted = [model.predict(pictures[:8], verbose=0).argmax(axis=1) for pictures in (held_out, attacked)]
    plot(held_out[:8], attacked[:8], predicted, NAMES if arguments.data_dir else range(10), folder / "images.png")
    return common.record(
        folder,
        arguments,
        arguments.seed,
        started,
        steps=steps * arguments.epochs,
        held_out_accuracy=float(accuracy),
        held_out_loss=float(loss),
        attacked_accuracy=float(attacked_accuracy),
        attacked_loss=float(attacked_loss),
        seconds_per_epoch=float(np.median(np.diff(marks))),
        history=common.history(folder),
        diverged=not np.isfinite(loss),
    )


def plot(clean, attacked, predicted, names, path: Path) -> None:
    """Images, the same attacked, and the difference, enlarged until it fills the range; above each what is seen."""
    difference = np.asarray(attacked) - clean
    largest = np.abs(difference).max() or 1.0
    rows = {
        "clean": (clean * cifar10_resnet.STD + cifar10_resnet.MEAN) / 255,
        "attacked": (np.asarray(attacked) * cifar10_resnet.STD + cifar10_resnet.MEAN) / 255,
        f"difference\n x {255 / cifar10_resnet.STD / 2 / largest:.1f}": 0.5 + difference / largest / 2,
    }
    size = (len(clean), 1.3 * len(rows))
    with common.pictures(path, len(rows), len(clean), size=size, dpi=120) as axes:
        for row, ((title, images), places) in enumerate(zip(rows.items(), axes, strict=True)):
            places[0].set_ylabel(title)
            for column, (place, image) in enumerate(zip(places, images, strict=True)):
                place.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1)
                place.set(xticks=[], yticks=[])
                if row < len(predicted):
                    place.set_title(names[predicted[row][column]], fontsize=9)


def summary(runs: list[dict]) -> dict:
    """Means over the seeds of one mode, accuracies in percent."""
    settings = ("mode", "batch_size", "epochs", "steps", "epsilon", "attack_steps", "augment", "dtype")
    histories, attacks = [run["history"] for run in runs], runs[0]["mode"] != "none"
    clean, attacked = ([100 * run[name] for run in runs] for name in ("held_out_accuracy", "attacked_accuracy"))
    return {
        **{key: runs[0][key] for key in settings},
        "staleness": runs[0]["staleness"] if runs[0]["mode"] == "concurrent" else None,
        "seeds": len(runs),
        "mean": statistics.fmean(clean),
        "stdev": statistics.stdev(clean) if len(runs) > 1 else 0.0,
        "attacked": statistics.fmean(attacked),
        "attacked_stdev": statistics.stdev(attacked) if len(runs) > 1 else 0.0,
        # In training, of the last epoch; adversarial examples see statistics of their own.
        "clean_loss": statistics.fmean(one.get("clean_loss", one["loss"])[-1] for one in histories),
        "adversarial_loss": statistics.fmean(one["adversarial_loss"][-1] for one in histories) if attacks else None,
        "held_out_loss": statistics.fmean(run["held_out_loss"] for run in runs),
        "seconds_per_epoch": statistics.median(run["seconds_per_epoch"] for run in runs),
    }


def table(rows: list[dict]) -> str:
    lines = [f"{'mode':>10} {'seeds':>5} {'held-out, %':>15} {'under attack, %':>15} {'seconds per epoch':>17}"]
    for row in rows:
        clean, attacked = (f"{row[mean]:.2f} +- {row[spread]:.2f}" for mean, spread in SPREADS)
        lines.append(
            f"{row['mode']:>10} {row['seeds']:>5} {clean:>15} {attacked:>15} {row['seconds_per_epoch']:>17.2f}"
        )
    return "\n".join(lines)


SPREADS = (("mean", "stdev"), ("attacked", "attacked_stdev"))


def main() -> None:
    arguments = parse_arguments()
    common.set_threads(arguments.threads)
    data = cifar10_resnet.load(arguments.data_dir)
    rows, runs = [], []
    for mode in arguments.modes:
        found = [train(argparse.Namespace(**vars(arguments), mode=mode, seed=seed), data) for seed in arguments.seeds]
        rows.append(summary(found))
        runs += found
    record = {"versions": common.versions(), "rows": rows, "runs": runs}
    (arguments.output / "conadv_cifar10.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows))
    print(f"images before and after the attack: {arguments.output}/*/images.png")


if __name__ == "__main__":
    main()
