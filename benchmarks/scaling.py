"""What the package adds to a training step on replicas: ResNet-20 at global batch 1024, interleaved, as ratios.

    python benchmarks/scaling.py [--replicas 1 2 4 8] [--processes 2 4] [--quick]

Our optimizers against those that Keras users would pick instead, AutoWU against a schedule that is given, and the noise
scale against plain training, each in whole steps of `fit`. Replicas are virtual devices of one process under
MirroredStrategy, processes are workers on this machine under MultiWorkerMirroredStrategy. A baseline that runs twice
is the null pair. Writes `benchmarks/results/scaling.json`, a row at a time: rows of other settings stay.

Seconds are those of the processor, with one thread a process. With virtual devices `fit` waits for the end of the
iterators of its input pipeline, one for each device, up to four times as long as it works; how long differs between two
models that do the same.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import interleaved
import numpy as np
import records

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import cifar10_resnet  # noqa: E402
import common  # noqa: E402
import launchers  # noqa: E402

SETTING = ("keras", "replicas", "processes", "batch_size", "variant", "baseline")
BATCH, SHAPE, STEPS = 1024, (32, 32, 3), 2  # steps of one call of `fit`
RATE = 1e-6  # so that all train the same network: one that has died takes another time

# variant, baseline, the most that the ratio may be with 8 replicas
COMPARISONS = (
    ("LARS", "SGD momentum", 1.10),
    ("LAMB", "Adam", 1.05),
    ("AdamP", "Adam", None),
    ("SGD momentum, AutoWU", "SGD momentum", None),
    ("SGD momentum, noise scale", "SGD momentum", None),
)


def variants(keras) -> dict:
    """Optimizer, callbacks and whether gradients are measured, by name; each is made anew when it is called."""
    from keras_lsb import callbacks, optimizers, schedules

    def autowu():
        schedule = schedules.AutoWU(10**6, steps_per_check=10**4)  # no decision falls into what is timed
        return keras.optimizers.SGD(schedule, momentum=0.9), [callbacks.AutoWU(schedule, verbose=0)], False

    def noise_scale():
        return keras.optimizers.SGD(RATE, momentum=0.9), [callbacks.NoiseScale(verbose=0)], True

    return {
        "SGD momentum": lambda: (keras.optimizers.SGD(RATE, momentum=0.9), [], False),
        "Adam": lambda: (keras.optimizers.Adam(RATE), [], False),
        "LARS": lambda: (optimizers.LARS(RATE, weight_decay=1e-4), [], False),
        "LAMB": lambda: (optimizers.LAMB(RATE, weight_decay=0.1), [], False),
        "AdamP": lambda: (optimizers.AdamP(RATE, weight_decay=0.01), [], False),
        "SGD momentum, AutoWU": autowu,
        "SGD momentum, noise scale": noise_scale,
    }


def training(strategy, make, arguments):
    """A function that trains for `STEPS` steps."""
    import tensorflow as tf

    from keras_lsb import training as wrappers

    random = np.random.default_rng(0)
    batch_size = arguments.batch_size
    images = random.normal(size=(batch_size, *SHAPE)).astype("float32")
    labels = random.integers(0, cifar10_resnet.CLASSES, batch_size)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensors((images, labels)).cache().repeat().with_options(options)
    with strategy.scope():
        optimizer, listeners, measured = make()
        model = cifar10_resnet.build_model(tf.keras, SHAPE, blocks=1 if arguments.quick else 3)
        if measured:
            model = wrappers.Microbatched(model, 1 if strategy.num_replicas_in_sync > 1 else 2)
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, jit_compile=False)

    def train():
        model.fit(data, epochs=1, steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=listeners)

    return train


def measure(strategy, comparisons, arguments):
    """A row for each comparison, measured one after the other: few models are in memory at a time."""
    import tensorflow as tf

    made = variants(tf.keras)
    for variant, baseline, goal in comparisons:
        makers = {"variant": made[variant], "baseline": made[baseline], "again": made[baseline]}
        functions = [training(strategy, make, arguments) for make in makers.values()]
        found = interleaved.compare(*functions, arguments.rounds, time.process_time)
        del functions
        tf.keras.backend.clear_session()
        yield {
            "variant": variant,
            "baseline": baseline,
            "ratio": found.ratio,
            "null": found.null,
            "goal": goal,
            "milliseconds": round(1e3 * found.seconds / STEPS),
        }


def run(arguments) -> None:
    """Measures in this process, whose devices and workers are fixed, and writes what it found."""
    common.set_threads(arguments.threads)
    import tensorflow as tf

    from keras_lsb import distribute

    if "TF_CONFIG" in os.environ:
        strategy, kind = tf.distribute.MultiWorkerMirroredStrategy(), "processes"
        distribute.enable_multi_worker_fit()
        reports = launchers.is_chief(strategy.cluster_resolver)
    else:
        common.set_virtual_devices(arguments.run)
        strategy, kind, reports = common.mirrored(arguments.run), "replicas", True
    comparisons = [comparison for comparison in COMPARISONS if comparison[0] in arguments.variants]
    settings = {"keras": common.flavour(), "replicas": None, "processes": None, kind: strategy.num_replicas_in_sync}
    for row in measure(strategy, comparisons, arguments):
        if strategy.num_replicas_in_sync < 8:
            row["goal"] = None
        row = {**settings, "batch_size": arguments.batch_size, **row}
        if reports:
            print(row, flush=True)
            records.keep(arguments, "scaling", [row], SETTING, versions=common.versions(), order=order)


def order(row: dict) -> tuple:
    """Of the rows in the results."""
    return row["keras"], row["processes"] or 0, row["replicas"] or 0


def main() -> None:
    names = [variant for variant, _, _ in COMPARISONS]
    parser = records.parser(__doc__, "ResNet-8, a small batch and few rounds")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 2, 4, 8], help="virtual devices of one process")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4], help="workers on this machine")
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    parser.add_argument("--batch-size", type=int, default=BATCH, help="global")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process; 0 takes all")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch_size, arguments.rounds = 64, 1
    if arguments.run:
        run(arguments)
        return
    flags = ["--variants", *arguments.variants, "--threads", str(arguments.threads)]
    flags += ["--batch-size", str(arguments.batch_size), "--rounds", str(arguments.rounds)]
    flags += records.flags(arguments)
    for replicas in arguments.replicas:
        subprocess.run([sys.executable, __file__, *flags, "--run", str(replicas)], check=True)
    for processes in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            launchers.run_local(__file__, [*flags, "--run", "1"], processes, Path(folder))


if __name__ == "__main__":
    main()
