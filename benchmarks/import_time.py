"""What `import keras_lsb` adds to `import keras`, or to `import tf_keras`, in seconds, in fresh processes.

    python benchmarks/import_time.py [--rounds 11] [--quick]

Each process imports Keras and then the package, and times either by itself: the difference of two processes would have
the noise of Keras' own seconds in it. Rows are for either Keras, in an environment with scikit-learn, which Keras
imports where it finds it and which brings SciPy, and in one without, where nothing has imported SciPy before the
package does; the rows take turns. The goal is that of Keras 3: beside tf_keras, Keras 3 is imported for its operations.
Prints a line of JSON for each row; writes `benchmarks/results/import_time.json`.
"""

import json
import os
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import records
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import common  # noqa: E402

GOALS = {"keras": 0.3, "tf_keras": None}  # seconds
FLAVOURS = {"keras": {}, "tf_keras": {"TF_USE_LEGACY_KERAS": "1"}}
# Hidden from Keras in the environment without scikit-learn: what takes SciPy along.
OPTIONAL = ("matplotlib", "networkx", "pandas", "sklearn")
HIDDEN = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))"
PROGRAM = """
from time import perf_counter
started = perf_counter()
import {keras}
between = perf_counter()
import keras_lsb
print(between - started, perf_counter() - between)
"""


def import_times(flavour: str, scikit_learn: bool) -> tuple[float, float]:
    """Seconds of the import of Keras, and of `import keras_lsb` after it, in a fresh interpreter."""
    program = ("" if scikit_learn else HIDDEN) + PROGRAM.format(keras=flavour)
    inherited = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    environment = {**inherited, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT.parent), **FLAVOURS[flavour]}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program!r} ended with {done.returncode}: {done.stderr[-2000:]}")
    keras, package = map(float, done.stdout.split()[-2:])
    return keras, package


def main() -> None:
    parser = records.parser(__doc__, "one round")
    parser.add_argument("--rounds", type=int, default=11, help="processes for a row")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    settings = [(flavour, scikit_learn) for flavour in FLAVOURS for scikit_learn in (True, False)]
    for setting in settings:
        import_times(*setting)  # compiles what has no bytecode yet, and fills the cache of files
    found = {setting: [] for setting in settings}
    for _ in tqdm(range(rounds), unit="round", dynamic_ncols=True):
        for setting in settings:
            found[setting].append(import_times(*setting))
    rows = []
    for (flavour, scikit_learn), seconds in found.items():
        keras, package = zip(*seconds, strict=True)
        row = {"keras": flavour, "cores": os.cpu_count(), "scikit_learn": scikit_learn, "rounds": rounds}
        row |= {"seconds": round(statistics.median(package), 3), "most": round(max(package), 3)}
        rows.append(row | {"seconds_of_keras": round(statistics.median(keras), 3), "goal": GOALS[flavour]})
        print(json.dumps(rows[-1]), flush=True)
    versions = {**common.versions(), "tf_keras": metadata.version("tf_keras")}
    records.keep(arguments, "import_time", rows, versions=versions)


if __name__ == "__main__":
    main()
