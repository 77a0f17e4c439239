"""What ConAdv gains where its attack runs beside the update, and what it keeps in memory: ResNet-20, whole steps.

    python benchmarks/conadv.py [--rounds 12] [--quick]

Training with staleness 0 (`sequential`) against staleness 1 with the attack on a second device, with the attack on the
device of the update, and plain training; on three kinds of `--devices`:

- each: two devices of one core each. The second is that of another process, which holds to a core of its own, so that
  neither can use the core of the other, and inputs and weights are sent.
- shared: two virtual devices of one process on two cores, with one thread to an operation and two operations at a time.
- one: a single core, where nothing can run beside anything.

Variants take turns; `sequential` twice is the null pair. A round goes in both directions, and counts only if the
threads of the training process waited for a processor for less than `--waiting` of it: on a machine that others use, a
real-time priority helps (`chrt -r 1` as root). TF_USE_LEGACY_KERAS=1 measures tf_keras.

Memory: bytes that staleness 1 keeps, and the largest resident size of a process that trains in each mode. Writes
`benchmarks/results/conadv.json` and `conadv_memory.json`, where rows of the other Keras stay.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import interleaved
import numpy as np
import records
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import cifar10_resnet  # noqa: E402
import common  # noqa: E402

SHAPE = (32, 32, 3)
EPSILON = 4 / 64  # of inputs with a standard deviation of about 1
BASELINE, AGAIN, GOAL = "sequential", "sequential again", 0.78
BESIDE = "concurrent, attack on a second device"
DEVICES = {"each": "one core each", "shared": "two cores shared", "one": "one core"}


def variants_on(second_device: str | None) -> dict[str, dict]:
    """Arguments of `ConAdv` by name, with what a second device makes possible if there is one."""
    found = {BASELINE: {"mode": "sequential"}, AGAIN: {"mode": "sequential"}}
    if second_device:
        found[BESIDE] = {"mode": "concurrent", "attack_device": second_device}
    return {**found, "concurrent": {"mode": "concurrent"}, "plain training": {"mode": "none"}}


def build(settings: dict, batch_size: int, blocks: int):
    """A network that trains with `ConAdv`, and an endless iterator of one batch."""
    import tensorflow as tf

    from keras_lsb.training import ConAdv

    keras = tf.keras
    random = np.random.default_rng(0)
    images = random.normal(size=(batch_size, *SHAPE)).astype("float32")
    labels = random.integers(0, cifar10_resnet.CLASSES, batch_size)
    data = tf.data.Dataset.from_tensors((images, labels)).cache().repeat()
    model = ConAdv(cifar10_resnet.build_model(keras, SHAPE, blocks=blocks), EPSILON, **settings)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-6, momentum=0.9), loss, jit_compile=False)
    model.fit(data, epochs=1, steps_per_epoch=3, shuffle=False, verbose=0)
    return model, iter(data)


def training(settings: dict, batch_size: int, blocks: int, steps: int):
    """A function that trains for some steps, as one epoch without an end does: always with a batch to look ahead to."""
    model, iterator = build(settings, batch_size, blocks)

    def train():
        for _ in range(steps):
            logs = model.train_function(iterator)
        return float(logs["loss"])

    return train


def waiting_seconds() -> float:
    """That the threads of this process have waited for a processor, summed."""
    found = [path.read_text() for path in Path("/proc/self/task").glob("*/schedstat")]
    return sum(int(text.split()[1]) for text in found) / 1e9


def calm_rounds(variants: dict, rounds: int, most: float, minutes: float) -> tuple[dict, float]:
    """Seconds by variant of rounds in which the process had the processors it asked for, and the longest wait of them.

    Args:
        rounds: wanted; each has two turns, of opposite order.
        most: share of a round that threads may wait for a processor because others have it.
        minutes: after which it ends in an error.
    """
    seconds, shares, deadline = {name: [] for name in variants}, [], time.monotonic() + 60 * minutes
    with tqdm(total=rounds, unit="round", dynamic_ncols=True) as bar:
        while len(shares) < rounds:
            if time.monotonic() > deadline:
                raise SystemExit(f"Others used the machine: {len(shares)} of {rounds} rounds in {minutes:g} minutes.")
            waited, started = waiting_seconds(), time.perf_counter()
            found = interleaved.measure(variants, 2)
            share = (waiting_seconds() - waited) / (time.perf_counter() - started)
            bar.set_description(f"waiting for processors {100 * share:.0f} %")
            if share > most:
                time.sleep(5)
                continue
            shares.append(share)
            for name, values in found.items():
                seconds[name] += values
            bar.update()
    return seconds, max(shares)


def serve(core: int) -> None:
    """Lets another process compute on the CPU of this one, which holds to one core, until that one ends."""
    os.sched_setaffinity(0, {core})
    import tensorflow as tf

    threads = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    server = tf.distribute.Server.create_local_server(config=threads)
    print(server.target, flush=True)
    sys.stdin.read()


@contextlib.contextmanager
def second_device(kind: str):
    """Sets the cores, devices and threads of this process; the name of the device for attacks, if there is one."""
    import tensorflow as tf

    first, *others = sorted(os.sched_getaffinity(0))
    if kind != "one" and not others:
        raise SystemExit(f"Two cores are needed for --devices {kind}; this process may use one.")
    if kind != "shared":
        os.sched_setaffinity(0, {first})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2 if kind == "shared" else 1)
    if kind == "each":
        command = [sys.executable, __file__, "--one", f"serve {others[0]}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            address = server.stdout.readline().strip().removeprefix("grpc://")
            tf.config.experimental_connect_to_host(address, job_name="second")
            yield "/job:second/replica:0/task:0/device:CPU:0"
        return
    common.set_virtual_devices(2)
    yield "CPU:1" if kind == "shared" else None


def measure(arguments, kind: str) -> list[dict]:
    """Rows of one kind of devices, measured in this process."""
    size = (arguments.batch_size, arguments.blocks)
    with second_device(kind) as device:
        variants = {name: training(given, *size, arguments.steps) for name, given in variants_on(device).items()}
        interleaved.measure(variants, 1)
        seconds, waiting = calm_rounds(variants, arguments.rounds, arguments.waiting, arguments.minutes)
    null = interleaved.ratio(seconds, AGAIN, BASELINE)
    return [
        {
            "keras": common.flavour(),
            "devices": DEVICES[kind],
            "batch_size": arguments.batch_size,
            "blocks": arguments.blocks,
            "variant": name,
            "ratio": round(interleaved.ratio(seconds, name, BASELINE), 3),
            "null": round(null, 3),
            "goal": GOAL if (kind, name) == ("each", BESIDE) else None,
            "milliseconds": round(1e3 * statistics.median(seconds[name]) / arguments.steps),
            "rounds": arguments.rounds,
            "waiting": round(waiting, 3),
        }
        for name in variants
        if name != AGAIN
    ]


def memory(mode: str, batch_size: int, blocks: int) -> dict:
    """What training in one mode takes, measured in this process, in megabytes."""
    model, iterator = build({"mode": mode}, batch_size, blocks)
    for _ in range(3):
        model.train_function(iterator)
    kept = [variable for weights in model._memory.kept.steps for variable in weights]
    second = model.adversarial_set.weights
    batch = batch_size * int(np.prod(SHAPE)) * 4
    return {
        "keras": common.flavour(),
        "mode": mode,
        "batch_size": batch_size,
        "blocks": blocks,
        "kept_weights_mb": megabytes(sum(4 * int(np.prod(variable.shape)) for variable in kept)),
        "second_normalization_mb": megabytes(sum(4 * int(np.prod(variable.shape)) for variable in second)),
        "batches_ahead_mb": megabytes(2 * batch * model.look_ahead),  # each with its adversarial version
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def megabytes(count: int) -> float:
    return round(count / 1e6, 3)


def in_a_process(arguments, *flags: str) -> list[dict]:
    """Rows that another process of this script measures: devices and threads of a process are fixed."""
    names = ("batch_size", "blocks", "rounds", "steps", "waiting", "minutes")
    given = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    output = subprocess.run([sys.executable, __file__, *given, *flags], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = records.parser(__doc__, "ResNet-8, a small batch, one round, whatever the load")
    parser.add_argument("--devices", nargs="*", default=[*DEVICES], choices=DEVICES)
    parser.add_argument("--modes", nargs="*", default=["none", "sequential", "concurrent"], help="to measure memory of")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=3, help="in each stage of the network: 3 make ResNet-20")
    parser.add_argument("--steps", type=int, default=1, help="of one turn of a variant")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--waiting", type=float, default=0.12, help="share of a round to wait for processors at most")
    parser.add_argument("--minutes", type=float, default=30, help="to wait for so many rounds")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch_size, arguments.blocks, arguments.rounds, arguments.waiting = 8, 1, 1, 100.0
    if arguments.one:
        what, _, core = arguments.one.partition(" ")
        if what == "serve":
            serve(int(core))
        elif what in DEVICES:
            print(json.dumps(measure(arguments, what)))
        else:
            print(json.dumps([memory(what, arguments.batch_size, arguments.blocks)]))
        return
    for kind in arguments.devices:
        rows = in_a_process(arguments, "--one", kind)
        setting = ("keras", "devices", "variant")
        records.keep(arguments, "conadv", rows, setting, versions=common.versions(), order=order)
        for row in rows:
            print(row, flush=True)
            if row["goal"]:
                print(f"goal: at most {GOAL}, {'reached' if row['ratio'] <= GOAL else 'missed'}: {row['ratio']}")
    for mode in arguments.modes:
        rows = in_a_process(arguments, "--one", mode)
        setting = ("keras", "mode")
        records.keep(arguments, "conadv_memory", rows, setting, versions=common.versions(), order=by_keras)
        print(rows[0], flush=True)


def order(row: dict) -> tuple:
    """Of the rows in the results."""
    return row["keras"], [*DEVICES.values()].index(row["devices"])


def by_keras(row: dict) -> str:
    return row["keras"]


if __name__ == "__main__":
    main()
