"""Train scikit-learn's digits at 1, 8 and 32 times the batch size, with four rules for the learning rate.

    python examples/demo.py

The recipe (learning rate, warm-up) was tuned at the base batch size only, on images taken from the training set. The
rules carry it to the larger batches:

    legw            sqrt(k) times the learning rate, k times the warm-up epochs
    linear          k times the learning rate, no warm-up
    linear-warmup   k times the learning rate, the recipe's own warm-up epochs
    sqrt            sqrt(k) times the learning rate, no warm-up

Prints a table and writes demo.png and result.json. Ends with an error if LEGW at 32 times the batch size is more than
2 points of test accuracy below the baseline. Nothing is downloaded.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import common
import numpy as np

BASE_BATCH_SIZE = 8
LEARNING_RATE = 0.02
WARMUP_EPOCHS = 0.2
EPOCHS = 40
FACTORS = (8, 32)
TEST_IMAGES = 360
TOLERANCE = 2.0  # points of test accuracy
TITLES = {"legw": "LEGW", "linear": "linear", "linear-warmup": "linear + warm-up", "sqrt": "square root"}
COLORS = {"legw": "#0072b2", "linear": "#d55e00", "linear-warmup": "#e69f00", "sqrt": "#009e73"}


def load():
    """(train images, test images, train labels, test labels) of the 8 x 8 digits, float32 in [0, 1]."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.astype("float32") / 16
    return train_test_split(images, labels, test_size=TEST_IMAGES, stratify=labels, random_state=0)


def build_model(keras):
    """Four hidden layers without normalization: deep enough that too large a learning rate hurts."""
    hidden = [keras.layers.Dense(64, activation="relu", kernel_initializer="he_normal") for _ in range(4)]
    return keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10)])


def make_schedule(keras, rule: str, factor: int, examples: int, epochs: int):
    """The recipe, a cosine decay over the epochs, at `factor` times the base batch size."""
    recipe = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, decay_steps=epochs)
    settings = argparse.Namespace(
        batch_size=factor * BASE_BATCH_SIZE,
        base_batch_size=BASE_BATCH_SIZE,
        warmup_epochs=WARMUP_EPOCHS,
        epochs=epochs,
        limit_steps=None,
    )
    return common.scaled_schedule(rule, recipe, settings, common.steps_in_epoch(examples, settings))


def steps_per_execution(steps: int, most: int = 32) -> int:
    """The largest number of steps, up to `most`, that divides an epoch: `fit`'s own time would outweigh the model's."""
    return max(count for count in range(1, most + 1) if steps % count == 0)


def train(keras, schedule, data, *, batch_size: int, epochs: int, seed: int, on_epoch) -> dict:
    """One run: the usual compile and fit."""
    images, test_images, labels, test_labels = data
    started = time.time()
    keras.utils.set_random_seed(seed)
    model = build_model(keras)
    model.compile(
        optimizer=keras.optimizers.SGD(schedule, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[common.accuracy(keras)],
        steps_per_execution=steps_per_execution(math.ceil(len(images) / batch_size)),
        jit_compile=False,
    )
    progress = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch())
    history = model.fit(images, labels, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[progress])
    loss, accuracy = model.evaluate(test_images, test_labels, batch_size=TEST_IMAGES, verbose=0)
    losses = [float(value) for value in history.history["loss"]]
    return {
        "seed": seed,
        "accuracy": 100 * float(accuracy),
        "losses": losses,
        "finite": bool(np.isfinite([*losses, loss]).all()),
        "seconds": time.time() - started,
    }


def compare(keras, seeds: int, epochs: int) -> list[dict]:
    """All runs, one entry per batch size and rule; the first one is the baseline."""
    from tqdm import tqdm

    data = load()
    examples = len(data[0])
    variants = [("legw", 1), *((rule, factor) for factor in FACTORS for rule in common.METHODS)]
    results = []
    with tqdm(total=len(variants) * seeds * epochs, unit="epoch", dynamic_ncols=True) as bar:
        for rule, factor in variants:
            batch_size = factor * BASE_BATCH_SIZE
            schedule = make_schedule(keras, rule, factor, examples, epochs)
            steps = int(schedule.steps_per_epoch) * epochs
            runs = []
            for seed in range(seeds):
                bar.set_description(f"batch {batch_size}, {'baseline' if factor == 1 else TITLES[rule]}, seed {seed}")
                settings = {"batch_size": batch_size, "epochs": epochs, "seed": seed, "on_epoch": bar.update}
                runs.append(train(keras, schedule, data, **settings))
            accuracies = [run["accuracy"] for run in runs]
            results.append(
                {
                    "rule": rule,
                    "factor": factor,
                    "batch_size": batch_size,
                    "accuracy": float(np.mean(accuracies)),
                    "spread": float(np.std(accuracies, ddof=1)) if seeds > 1 else 0.0,
                    "steps": steps,
                    "seconds": float(np.mean([run["seconds"] for run in runs])),
                    "learning_rates": [float(schedule(step)) for step in range(steps)],
                    "runs": runs,
                }
            )
    return results


def table(results: list[dict]) -> str:
    """Test accuracy in percent, mean and standard deviation over seeds; time is that of one run."""
    rows = [f"{'batch':>5}  {'rule':16}  {'peak rate':>9}  {'test accuracy, %':>16}  {'steps':>5}  {'seconds':>7}"]
    for result in results:
        rule = "baseline" if result["factor"] == 1 else TITLES[result["rule"]]
        accuracy = f"{result['accuracy']:.2f} +- {result['spread']:5.2f}"
        overflows = sum(not run["finite"] for run in result["runs"])
        rows.append(
            f"{result['batch_size']:5}  {rule:16}  {max(result['learning_rates']):9.4f}  {accuracy:>16}  "
            f"{result['steps']:5}  {result['seconds']:7.2f}" + (f"  {overflows} diverged to NaN" if overflows else "")
        )
    return "\n".join(rows)


def plot(results: list[dict], path: Path) -> None:
    """One row per large batch: learning rates on the left, training losses on the right, the baseline in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
    with pyplot.rc_context({**style, "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"}):
        figure, panels = pyplot.subplots(len(FACTORS), 2, figsize=(11, 7.5), layout="constrained")
        for (rates, losses), factor in zip(panels, FACTORS, strict=True):
            for result in results:
                if result["factor"] in (1, factor):
                    draw(rates, losses, result)
            batch_size = factor * BASE_BATCH_SIZE
            rates.set(title=f"Batch {batch_size} (x{factor}): learning rate", xlabel="epoch", ylabel="learning rate")
            losses.set(title=f"Batch {batch_size} (x{factor}): training loss", xlabel="epoch", ylabel="loss")
            losses.set(yscale="log", ylim=(1e-4, 10))
            losses.legend(title="test accuracy, mean over seeds", loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def draw(rates, losses, result: dict) -> None:
    """One variant's curves in both panels; the band spans the seeds."""
    baseline = result["factor"] == 1
    title = f"baseline, batch {result['batch_size']}" if baseline else TITLES[result["rule"]]
    line = {"color": "#777777", "linestyle": "--"} if baseline else {"color": COLORS[result["rule"]]}
    line["linewidth"] = 2.4 if result["rule"] == "legw" and not baseline else 1.6
    epochs = len(result["runs"][0]["losses"])
    rates.plot(np.arange(result["steps"]) * epochs / result["steps"], result["learning_rates"], **line)
    values = np.asarray([run["losses"] for run in result["runs"]])
    values = np.where(np.isfinite(values), values, np.nan)
    ends = np.arange(1, epochs + 1)
    # The mean of a log scale is the geometric one; an epoch in which any seed is NaN has no point.
    losses.plot(ends, np.exp(np.log(values).mean(axis=0)), label=f"{title}: {result['accuracy']:.1f} %", **line)
    losses.fill_between(ends, values.min(axis=0), values.max(axis=0), color=line["color"], alpha=0.12, linewidth=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for demo.png and result.json")
    parser.add_argument("--seeds", type=int, default=3, help="runs per batch size and rule (default: 3)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"length of each run (default: {EPOCHS})")
    parser.add_argument("--quick", action="store_true", help="one seed, four epochs, no claim checked: for tests")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")
    seeds, epochs = (1, 4) if arguments.quick else (arguments.seeds, arguments.epochs)
    common.set_threads(1)  # the model is too small for more
    import tensorflow as tf

    started = time.time()
    results = compare(tf.keras, seeds, epochs)
    baseline = results[0]
    scaled = next(result for result in results if result["rule"] == "legw" and result["factor"] == max(FACTORS))
    loss_of_accuracy = baseline["accuracy"] - scaled["accuracy"]
    passed = math.isfinite(loss_of_accuracy) and loss_of_accuracy <= TOLERANCE
    arguments.output.mkdir(parents=True, exist_ok=True)
    recipe = {"learning_rate": LEARNING_RATE, "warmup_epochs": WARMUP_EPOCHS, "base_batch_size": BASE_BATCH_SIZE}
    summary = {
        "recipe": recipe,
        "epochs": epochs,
        "seeds": seeds,
        "claim": None if arguments.quick else passed,
        "seconds": time.time() - started,
        "versions": common.versions(),
        "results": results,
    }
    (arguments.output / "result.json").write_text(json.dumps(summary, indent=1))
    plot(results, arguments.output / "demo.png")
    print(table(results))
    print(f"{summary['seconds']:.0f} s in total; curves in {arguments.output / 'demo.png'}")
    verdict = (
        f"LEGW at {max(FACTORS)} times the batch: {scaled['accuracy']:.2f} %, baseline {baseline['accuracy']:.2f} %, "
        f"{loss_of_accuracy:+.2f} points lost, {TOLERANCE:.1f} allowed"
    )
    if arguments.quick:
        print("Quick look: too short for the claim to hold, so it is not checked.")
    elif passed:
        print(f"{verdict}: passed.")
    else:
        sys.exit(f"{verdict}: FAILED.")


if __name__ == "__main__":
    main()
