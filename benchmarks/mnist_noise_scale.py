"""The noise scale on MNIST with the paper's network: is the estimate right, is its error bar, and how does it grow?

    python benchmarks/mnist_noise_scale.py --data-dir DATA

Plain SGD at the learning rate that the sweep of `examples/critical_batch.py` found for the batch size. Before the first
step, after one epoch and at the end the weights are frozen, and
- the trace of the gradient covariance from microbatches is compared with the one from the gradients of single examples,
  both over the same 4,096 examples, with the dropout of the training;
- ten times, the 90 % interval from 40 batches is checked against the noise scale of those 4,096 examples computed one
  by one. A batch is drawn from them without replacement, as in an epoch, and without dropout, so that the expected
  value of both averages is exactly known.
During the run the noise scale, the curvature along the gradient and the loss are recorded. Writes
`benchmarks/results/mnist_noise_scale.json` and `docs/images/mnist_noise_scale.png`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import common  # noqa: E402
from critical_batch import first_steps  # noqa: E402
from mnist_cnn import build_model  # noqa: E402

EXAMPLES = 4096
REPEATS, BATCHES, CHECK_BATCH, MICROBATCHES = 10, 40, 256, 8
GOALS = [1.0, 0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05]


def compiled(tf, model, microbatches: int, learning_rate: float, **arguments):
    """`model` as Microbatched with plain SGD."""
    from keras_lsb.training import Microbatched

    wrapped = Microbatched(model, microbatches, **arguments)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapped.compile(tf.keras.optimizers.SGD(learning_rate), loss, jit_compile=False)
    return wrapped


def per_example(tf, model, images, labels) -> tuple[float, float]:
    """(squared norm of the mean gradient, mean squared norm of the gradients of single examples), one at a time."""
    loss_of = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = model.trainable_variables
    sums = [tf.Variable(tf.zeros(variable.shape, tf.float64)) for variable in variables]
    squares = tf.Variable(tf.zeros([], tf.float64))

    @tf.function
    def add(images, labels):
        for index in tf.range(tf.shape(images)[0]):
            part = slice(index, index + 1)
            with tf.GradientTape() as tape:
                loss = loss_of(labels[part], model(images[part], training=True))
            for total, gradient in zip(sums, tape.gradient(loss, variables), strict=True):
                total.assign_add(tf.cast(gradient, tf.float64))
                squares.assign_add(2 * tf.cast(tf.nn.l2_loss(gradient), tf.float64))

    add(tf.constant(images), tf.constant(labels))
    means = [total.numpy() / len(images) for total in sums]
    return sum(float(np.sum(mean**2)) for mean in means), float(squares) / len(images)


def check(tf, weights, images, labels, policy: str) -> dict:
    """The estimate and its error bar at fixed weights, against single examples."""
    population = images[:EXAMPLES], labels[:EXAMPLES]
    with_dropout = build_model(tf.keras, images.shape[1:3], policy)
    with_dropout.set_weights(weights)
    sq_norm, squares = per_example(tf, with_dropout, *population)
    direct_trace = (squares - sq_norm) * EXAMPLES / (EXAMPLES - 1)
    wrapped = compiled(tf, with_dropout, MICROBATCHES, 0.0, decay=1.0)
    wrapped.fit(*population, batch_size=64, shuffle=True, verbose=0)
    estimated = wrapped.noise_scale_estimate()

    plain = build_model(tf.keras, images.shape[1:3], policy, dropout=0.0)
    plain.set_weights(weights)
    sq_norm, squares = per_example(tf, plain, *population)
    trace = (squares - sq_norm) * EXAMPLES / (EXAMPLES - 1)
    direct = trace / (sq_norm - trace / EXAMPLES)
    results = {size: intervals(tf, plain, population, size, direct) for size in (CHECK_BATCH, MICROBATCHES)}
    return {
        "direct_trace": direct_trace,
        "estimated_trace": estimated.trace,
        "trace_ratio": estimated.trace / direct_trace,
        "direct_noise_scale": direct,
        **{f"{name}_{size}": value for size, found in results.items() for name, value in found.items()},
    }


def intervals(tf, model, population, batch_size: int, direct: float) -> dict:
    """How many of ten intervals from 40 batches hold the direct value, and how many have an upper end."""
    wrapped = compiled(tf, model, MICROBATCHES, 0.0, decay=1.0)
    random = np.random.default_rng(0)
    held, resolved, estimates = 0, 0, []
    for _ in range(REPEATS):
        wrapped.averages.assign(np.zeros(wrapped.averages.shape, "float32"))
        drawn = np.concatenate([random.choice(EXAMPLES, batch_size, replace=False) for _ in range(BATCHES)])
        wrapped.fit(population[0][drawn], population[1][drawn], batch_size=batch_size, shuffle=False, verbose=0)
        estimate = wrapped.noise_scale_estimate(confidence=0.9)
        held += estimate.low <= direct <= estimate.high
        resolved += estimate.resolved
        estimates.append(round(estimate.simple, 1))
    return {"held": int(held), "resolved": int(resolved), "estimates": estimates}


def train(tf, images, labels, arguments) -> tuple[list, dict]:
    """Trains, and returns the weights at three points and what was recorded at each interval."""
    from keras_lsb.callbacks import Curvature, NoiseScale

    model = build_model(tf.keras, images.shape[1:3], arguments.policy)
    wrapped = compiled(tf, model, MICROBATCHES, arguments.learning_rate, decay=0.99)
    losses, points = [], [model.get_weights()]

    class Losses(tf.keras.callbacks.Callback):
        """Loss of each batch, from the running mean of the epoch that Keras logs."""

        def on_epoch_begin(self, epoch, logs=None):
            self.total = 0.0

        def on_train_batch_end(self, batch, logs=None):
            total = (batch + 1) * float(logs["loss"])
            losses.append(total - self.total)
            self.total = total

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                points.append(model.get_weights())

    noise = NoiseScale(history_interval=10)
    # The Hessian is taken in float32 on a copy: products of second order lose too much in half precision.
    curvature = Curvature(images[-1024:], labels[-1024:], interval=50)
    history = wrapped.fit(
        images,
        labels,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        verbose=2,
        callbacks=[noise, curvature, Losses()],
    )
    points.append(model.get_weights())
    estimates = [record.estimate for record in noise.history]
    record = {
        "losses": losses,
        "steps": [record.step for record in noise.history],
        "simple": [estimate.simple for estimate in estimates],
        "low": [estimate.low for estimate in estimates],
        "high": [estimate.high for estimate in estimates],
        "trace": [estimate.trace for estimate in estimates],
        "grad_sq_norm": [estimate.grad_sq_norm for estimate in estimates],
        "curvature": [(step, found.lipschitz, found.best_learning_rate) for step, found in curvature.history],
        "epochs": {name: [float(value) for value in values] for name, values in history.history.items()},
        "verdict": noise.verdict,
    }
    return points, record


def summary(record: dict, batch_size: int) -> list[dict]:
    """The noise scale where the smoothed loss first reaches each goal, and the critical batch size of the sweep."""
    sweep_file = ROOT / "results" / "mnist_critical_batch.json"
    fits = {row["goal"]: row for row in json.loads(sweep_file.read_text())["rows"]} if sweep_file.exists() else {}
    rows = []
    for goal, step in zip(GOALS, first_steps(np.array(record["losses"]), GOALS), strict=True):
        if step is None:
            continue
        index = int(np.argmin(np.abs(np.array(record["steps"]) - step)))
        fit = fits.get(goal, {})
        rows.append(
            {
                "loss": goal,
                "step": step,
                "B_simple": round(record["simple"][index], 1),
                "low": round(record["low"][index], 1),
                "high": round(record["high"][index], 1),
                "B_crit": fit.get("critical_batch"),
                "stderr": fit.get("stderr"),
            }
        )
    return rows


def plot(record: dict, rows: list[dict], target: Path) -> None:
    """Noise scale and its interval, the critical batch sizes, the loss, and the curvature, over the steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (top, middle, bottom) = pyplot.subplots(3, sharex=True, figsize=(7, 8), layout="constrained")
    steps = record["steps"]
    top.plot(steps, record["simple"], label="B_simple", color="#0072b2")
    top.fill_between(
        steps, record["low"], record["high"], alpha=0.3, linewidth=0, color="#0072b2", label="90 % interval"
    )
    known = [row for row in rows if row["B_crit"]]
    top.errorbar(
        [row["step"] for row in known],
        [row["B_crit"] for row in known],
        yerr=[row["stderr"] for row in known],
        fmt="o",
        color="#d55e00",
        label="B_crit of the sweep, to the loss reached here",
    )
    top.set(yscale="log", ylabel="examples")
    top.legend()
    means = np.convolve(record["losses"], np.ones(50) / 50, mode="valid")
    middle.plot(np.arange(len(means)) + 50, means, color="#009e73")
    middle.set(yscale="log", ylabel="loss, mean of 50 steps")
    bottom.plot(
        [point[0] for point in record["curvature"]], [point[1] for point in record["curvature"]], color="#cc79a7"
    )
    bottom.set(xscale="log", yscale="log", xlabel="steps", ylabel="curvature along the gradient")
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="folder with MNIST of tensorflow-datasets")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--policy", default="float32")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/mnist_noise_scale"), help="keeps what has been done")
    arguments = parser.parse_args()
    common.set_threads(arguments.threads)
    import tensorflow as tf

    arguments.output.mkdir(parents=True, exist_ok=True)
    tf.keras.utils.set_random_seed(0)
    (images, labels), _ = common.load_digits(arguments.data_dir)
    images = images[..., None]
    run_file, weights_file = arguments.output / "run.json", arguments.output / "weights.npz"
    if not run_file.exists():
        points, record = train(tf, images, labels, arguments)
        np.savez(weights_file, **{f"{i}_{j}": value for i, point in enumerate(points) for j, value in enumerate(point)})
        run_file.write_text(json.dumps(record))
    record, stored = json.loads(run_file.read_text()), np.load(weights_file)
    checks = []
    for index, name in enumerate(("start", "after one epoch", "end")):
        done = arguments.output / f"check_{index}.json"
        if not done.exists():
            weights = [stored[f"{index}_{j}"] for j in range(len(stored.files) // 3)]
            done.write_text(json.dumps({"weights": name, **check(tf, weights, images, labels, "float32")}))
        checks.append(json.loads(done.read_text()))
        print(checks[-1], flush=True)
    rows = summary(record, arguments.batch_size)
    plot(record, rows, ROOT.parent / "docs" / "images" / "mnist_noise_scale.png")
    peak = max(record["curvature"], key=lambda found: found[1])
    finite = np.array([value for value in record["simple"] if np.isfinite(value)])
    start = record["simple"][record["steps"].index(20)]
    result = {
        "versions": common.versions(),
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "rows": rows,
        "checks": checks,
        "start": round(start, 1),
        "mean_over_steps": round(float(finite.mean()), 1),
        "ratio_of_means": round(float(np.mean(record["trace"]) / np.mean(record["grad_sq_norm"])), 1),
        "end": round(record["simple"][-1], 1),
        "curvature_first": round(record["curvature"][0][1], 2),
        "curvature_peak": round(peak[1], 2),
        "curvature_peak_step": peak[0],
        "curvature_end": round(float(np.median([found[1] for found in record["curvature"][-10:]])), 2),
    }
    (ROOT / "results" / "mnist_noise_scale.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
