"""What the noise scale costs: training steps with and without it, interleaved, as ratios.

    python benchmarks/noise_scale.py [--quick]

- Accumulation over 8 microbatches with the measurement, against the same accumulation without it.
- MirroredStrategy over 8 virtual devices: `Microbatched(model, 1)`, which measures from the replicas, against `fit` of
  the model itself.
Each baseline runs twice, as a null pair: its ratio shows the noise. The quality stands beside the time: the loss after
the same steps must be the same. The network is the convolutional one of the noise-scale paper, on random images. The
peak memory of a process that trains at batch 2048 is compared between one and 16 microbatches. Writes
`benchmarks/results/noise_scale.json`.
"""

import resource
import subprocess
import sys
from pathlib import Path

import interleaved
import numpy as np
import records
import tensorflow as tf

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import common  # noqa: E402
from mnist_cnn import build_model  # noqa: E402

from keras_lsb.training import Microbatched  # noqa: E402

keras = tf.keras
MICROBATCHES, REPLICAS, GOAL = 8, 8, 1.03


def stepper(wrap, batch_size: int, steps: int, strategy=None):
    """A function that trains `steps` steps in one call of `fit`; `losses` of it are the losses."""
    random = np.random.default_rng(0)
    images = random.normal(size=(batch_size, 28, 28, 1)).astype("float32")
    labels = random.integers(0, 10, batch_size)
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        model = wrap(build_model(keras, (28, 28), dropout=0.0))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False)
    losses = []

    def step():
        losses.extend(model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0).history["loss"])

    step.losses = losses
    return step


def compare(name: str, variant, baseline, batch_size: int, rounds: int, steps: int, strategy=None) -> dict:
    """Ratio of the variant's time to the baseline's, and of the baseline to itself."""
    variants = [stepper(wrap, batch_size, steps, strategy) for wrap in (variant, baseline, baseline)]
    found = interleaved.compare(*variants, rounds)
    gap = abs(variants[0].losses[-1] / variants[1].losses[-1] - 1)
    return {
        "comparison": name,
        "batch_size": batch_size,
        "ratio": found.ratio,
        "null": found.null,
        "goal": GOAL,
        "step_ms": round(1000 * found.seconds / steps, 1),
        "loss_gap": float(f"{gap:.1e}"),
    }


def peak_memory(microbatches: int) -> float:
    """Largest resident memory, in MB, of a process that trains two steps at batch 2048."""
    command = [sys.executable, __file__, "--peak-memory", str(microbatches)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = records.parser(__doc__, "few rounds at a small batch")
    parser.add_argument("--peak-memory", type=int, metavar="MICROBATCHES", help="trains two steps, prints MB")
    arguments = parser.parse_args()
    if arguments.peak_memory:
        stepper(lambda model: Microbatched(model, arguments.peak_memory), 2048, 2)()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    # First, while this process is small: a new process inherits the peak of the one that starts it.
    memory = {str(count): round(peak_memory(count)) for count in (1, 16)}
    print("peak memory in MB by microbatches:", memory, flush=True)
    rounds, steps = (3, 1) if arguments.quick else (11, 2)
    common.set_virtual_devices(REPLICAS)
    strategy = common.mirrored(REPLICAS)

    def microbatched(model):
        return Microbatched(model, MICROBATCHES)

    def every_tenth(model):
        return Microbatched(model, MICROBATCHES, interval=10)

    def unmeasured(model):
        return Microbatched(model, MICROBATCHES, noise_scale=False)

    rows = []
    for batch_size in (64,) if arguments.quick else (256, 1024):
        rows.append(compare("8 microbatches", microbatched, unmeasured, batch_size, rounds, steps))
        print(rows[-1], flush=True)
        rows.append(compare("8 microbatches, every 10th step", every_tenth, unmeasured, batch_size, rounds, steps))
        print(rows[-1], flush=True)
    replicas = (lambda model: Microbatched(model, 1), lambda model: model)
    rows.append(compare("8 replicas", *replicas, 64 if arguments.quick else 256, rounds, steps, strategy))
    print(rows[-1], flush=True)
    records.keep(arguments, "noise_scale", rows, versions=common.versions(), peak_memory_mb=memory)


if __name__ == "__main__":
    main()
