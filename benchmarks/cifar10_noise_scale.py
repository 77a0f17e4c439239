"""The noise scale of ResNet-20 on CIFAR-10: it grows while the loss falls.

    python benchmarks/cifar10_noise_scale.py --data-dir DATA

Momentum SGD at a constant learning rate, batch 128 in 4 microbatches of 32, whose statistics batch normalization takes.
Writes `benchmarks/results/cifar10_noise_scale.json` and `docs/images/cifar10_noise_scale.png`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import common  # noqa: E402
from cifar10_resnet import batches, build_model, load  # noqa: E402

BATCH_SIZE, MICROBATCHES, LEARNING_RATE, MOMENTUM = 128, 4, 0.1, 0.9


def train(tf, arguments):
    """The history of `fit` and the callback that measured."""
    from keras_lsb.callbacks import NoiseScale
    from keras_lsb.training import Microbatched

    keras = tf.keras
    keras.utils.set_random_seed(0)
    keras.mixed_precision.set_global_policy(arguments.policy)
    (images, labels), held_out = load(arguments.data_dir)
    model = Microbatched(build_model(keras, images.shape[1:]), MICROBATCHES)
    optimizer = keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    noise = NoiseScale(history_interval=25)
    logger = keras.callbacks.CSVLogger(str(arguments.output / "log.csv"))
    history = model.fit(
        batches(tf, images, labels, BATCH_SIZE, seed=0).repeat(),
        epochs=arguments.epochs,
        steps_per_epoch=-(-len(images) // BATCH_SIZE),
        validation_data=batches(tf, *held_out, 1000),
        shuffle=False,
        verbose=2,
        callbacks=[noise, logger],
    )
    return history.history, noise


def plot(history: dict, noise, target: Path) -> None:
    """Noise scale with its interval above the losses, over the steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, sharex=True, figsize=(7, 5.5), layout="constrained")
    noise.plot(top)
    ends = np.arange(1, len(history["loss"]) + 1) * (noise.history[-1].step / len(history["loss"]))
    bottom.plot(ends, history["loss"], "o-", label="training loss")
    bottom.plot(ends, history["val_loss"], "o-", label="held-out loss")
    bottom.set(xlabel="steps", ylabel="loss, mean of the epoch")
    top.set(xlabel="")
    bottom.legend()
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder with CIFAR-10 of tensorflow-datasets")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--policy", default="float32", help="Keras dtype policy, such as mixed_bfloat16")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/cifar10_noise_scale"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    common.set_threads(arguments.threads)
    import tensorflow as tf

    history, noise = train(tf, arguments)
    plot(history, noise, ROOT.parent / "docs" / "images" / "cifar10_noise_scale.png")
    columns = {"loss": 4, "val_accuracy": 4, "noise_scale": 1, "noise_scale_low": 1, "noise_scale_high": 1}
    rows = [
        {"epoch": epoch + 1, **{name: round(float(history[name][epoch]), digits) for name, digits in columns.items()}}
        for epoch in range(len(history["loss"]))
    ]
    result = {
        "versions": common.versions(),
        "policy": arguments.policy,
        "rows": rows,
        "first": round(noise.history[0].estimate.simple, 1),
    }
    (ROOT / "results" / "cifar10_noise_scale.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
