"""One update over ResNet-50's 214 variables (25.6 million numbers): ours and Keras' optimizers, interleaved.

    python benchmarks/optimizer_step.py [--quick]

Each optimizer updates its own copy of the weights from the same gradients, as a graph and compiled by XLA; then under
MirroredStrategy over 8 virtual devices. Every baseline runs twice, as a null pair: its ratio shows the noise. First
calls (tracing and compiling) are reported apart. Writes `benchmarks/results/optimizer_step.json`.

A ratio is checked against two numbers: the goal, and the ratio of bytes that the two rules must move, where memory is
the limit. LARS reads w and g for the norms, then w, g and v, and writes w and v: 7 passes where momentum SGD needs 5;
LAMB needs 10 where Adam needs 7.
"""

import functools
import os
import platform
import statistics
import time
from importlib import metadata

import interleaved
import numpy as np
import records
import tensorflow as tf

import keras_lsb
from keras_lsb.optimizers import LAMB, LARS, AdamP

keras = tf.keras
DECAY = 1e-4
REPLICAS = 8

OPTIMIZERS = {
    "keras SGD momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "keras SGD momentum decay": lambda: keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=DECAY),
    "LARS decay": lambda: LARS(0.01, weight_decay=DECAY),
    "keras Adam": lambda: keras.optimizers.Adam(0.001),
    "keras AdamW": lambda: keras.optimizers.AdamW(0.001, weight_decay=DECAY),
    "LAMB decay": lambda: LAMB(0.001, weight_decay=DECAY),
    "AdamP decay": lambda: AdamP(0.001, weight_decay=DECAY),
}
if hasattr(keras.optimizers, "Lamb"):
    OPTIMIZERS["keras Lamb decay"] = lambda: keras.optimizers.Lamb(0.001, weight_decay=DECAY)

# variant, baseline, goal in graph mode, goal under XLA, bytes of the variant over bytes of the baseline
COMPARISONS = [
    ("LARS decay", "keras SGD momentum decay", 1.3, 2.0, 7 / 5),
    ("LARS decay", "keras SGD momentum", None, None, 7 / 5),
    ("LAMB decay", "keras Lamb decay", 0.75, 0.6, None),
    ("LAMB decay", "keras Adam", None, None, 10 / 7),
    ("AdamP decay", "keras AdamW", None, None, None),
]
MIRRORED = (("LARS decay", "keras SGD momentum"), ("LAMB decay", "keras Adam"))


def resnet50_variables() -> list[tuple[str, tuple[int, ...]]]:
    """Paths and shapes of ResNet-50's trainable variables."""
    model = keras.applications.ResNet50(weights=None)
    return [(getattr(v, "path", v.name.split(":")[0]), tuple(v.shape)) for v in model.trainable_variables]


def step_function(make_optimizer, variables, gradients, jit_compile: bool):
    """A function that runs one update, and the seconds of its first call."""
    generator = np.random.default_rng(0)
    weights = [tf.Variable(generator.normal(0, 0.05, shape).astype("float32"), name=path) for path, shape in variables]
    optimizer = make_optimizer()
    optimizer.build(weights)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def update():
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    started = time.perf_counter()
    update()
    return update, time.perf_counter() - started


def mirrored_step_function(make_optimizer, variables, gradients):
    """The same over `REPLICAS` virtual devices: each replica brings the gradients, their sum is applied."""
    devices = [f"CPU:{index}" for index in range(REPLICAS)]
    strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        weights = [tf.Variable(tf.random.normal(shape, stddev=0.05), name=path) for path, shape in variables]
        optimizer = make_optimizer()
        optimizer.build(weights)

    def apply():
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    @tf.function(autograph=False)
    def update():
        strategy.run(apply)

    started = time.perf_counter()
    update()
    return update, time.perf_counter() - started


def compare(mode: str, comparisons, prepare, rounds: int, goal_column: int | None) -> list[dict]:
    """Rows of ratios for one mode; each baseline has a twin for the null pair."""
    functions, first_calls = {}, {}
    baselines = dict.fromkeys(comparison[1] for comparison in comparisons)
    variants = dict.fromkeys(comparison[0] for comparison in comparisons)
    for name in [*variants, *baselines, *(f"{baseline} (null)" for baseline in baselines)]:
        functions[name], first_calls[name] = prepare(OPTIMIZERS[name.removesuffix(" (null)")])
    for function in functions.values():
        function()
    seconds = interleaved.measure(functions, rounds)
    rows = []
    for comparison in comparisons:
        variant, baseline, bytes_ratio = comparison[0], comparison[1], comparison[4]
        row = {
            "mode": mode,
            "variant": variant,
            "baseline": baseline,
            "ratio": round(interleaved.ratio(seconds, variant, baseline), 3),
            "goal": comparison[goal_column] if goal_column else None,
            "bytes": None if bytes_ratio is None else round(bytes_ratio, 2),
            "null": round(interleaved.ratio(seconds, baseline, f"{baseline} (null)"), 3),
            "milliseconds": round(1e3 * statistics.median(seconds[variant]), 1),
            "baseline_milliseconds": round(1e3 * statistics.median(seconds[baseline]), 1),
            "first_call_seconds": round(first_calls[variant], 1),
            "baseline_first_call_seconds": round(first_calls[baseline], 1),
        }
        print(format_row(row), flush=True)
        rows.append(row)
    return rows


def format_row(row: dict) -> str:
    goal = (
        "" if row["goal"] is None else f", goal {row['goal']:.2f} {'met' if row['ratio'] <= row['goal'] else 'MISSED'}"
    )
    passes = "" if row["bytes"] is None else f", bytes {row['bytes']:.2f}"
    return (
        f"{row['mode']:8} {row['variant']:12} / {row['baseline']:25} {row['ratio']:.3f}{goal}{passes} "
        f"(null {row['null']:.3f}; {row['milliseconds']:.0f} / {row['baseline_milliseconds']:.0f} ms; "
        f"first call {row['first_call_seconds']:.1f} / {row['baseline_first_call_seconds']:.1f} s)"
    )


def record(arguments, rows: list[dict]) -> None:
    """Puts `rows` into the results in place of those of the same comparisons; the others stay."""
    versions = {
        "keras_lsb": keras_lsb.__version__,
        "tensorflow": tf.__version__,
        "keras": metadata.version(keras.Model.__module__.split(".")[0]),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }

    records.keep(arguments, "optimizer_step", rows, ("mode", "variant", "baseline"), versions=versions)


def main() -> None:
    parser = records.parser(__doc__, "a few rounds over a tenth of the variables")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--modes", nargs="+", choices=("graph", "xla", "mirrored"), default=["graph", "xla", "mirrored"]
    )
    arguments = parser.parse_args()
    if "mirrored" in arguments.modes:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * REPLICAS)

    variables = resnet50_variables()
    if arguments.quick:
        variables, arguments.rounds = variables[::10], 3
    generator = np.random.default_rng(1)
    gradients = [tf.constant(generator.normal(0, 0.01, shape).astype("float32")) for _, shape in variables]
    count = sum(int(np.prod(shape)) for _, shape in variables)
    print(f"{len(variables)} variables, {count / 1e6:.1f} million numbers, {arguments.rounds} rounds")

    comparisons = [comparison for comparison in COMPARISONS if comparison[1] in OPTIMIZERS]
    for mode, goal_column in (("graph", 2), ("xla", 3)):
        if mode in arguments.modes:
            step = functools.partial(step_function, variables=variables, gradients=gradients, jit_compile=mode == "xla")
            record(arguments, compare(mode, comparisons, step, arguments.rounds, goal_column))
    if "mirrored" in arguments.modes:
        step = functools.partial(mirrored_step_function, variables=variables, gradients=gradients)
        for comparison in comparisons:  # one at a time: eight copies of everything fill the memory
            if comparison[:2] in MIRRORED:
                record(arguments, compare("mirrored", [comparison], step, max(3, arguments.rounds // 5), None))


if __name__ == "__main__":
    main()
