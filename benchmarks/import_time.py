"""What `import keras_lsb` adds to `import keras`, in seconds: fresh processes that take turns.

    python benchmarks/import_time.py [--rounds 11] [--quick]

Each process imports Keras, once more Keras (the null pair), or Keras and the package. Rows are for either Keras,
in an environment with scikit-learn, which Keras imports where it finds it and which brings SciPy, and in one without,
where nothing has imported SciPy before the package does. Prints a line of JSON for each row; writes
`benchmarks/results/import_time.json`: rows of other settings stay.
"""

import json
import os
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import interleaved
import records

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "examples"))

import common  # noqa: E402

GOAL = 0.3  # seconds more than Keras
FLAVOURS = {"keras": {}, "tf_keras": {"TF_USE_LEGACY_KERAS": "1"}}
# Hidden from Keras in the environment without scikit-learn: what takes SciPy along.
OPTIONAL = ("matplotlib", "networkx", "pandas", "sklearn")
HIDDEN = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); "
SETTING = ("keras", "cores", "scikit_learn")


def process(program: str, settings: dict[str, str]):
    """A function that runs a program in a fresh interpreter."""
    inherited = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    environment = {**inherited, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT.parent), **settings}

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{program!r} ended with {done.returncode}: {done.stderr[-2000:]}")

    return run


def measure(flavour: str, scikit_learn: bool, rounds: int) -> dict:
    """One row of the results."""
    first = "" if scikit_learn else HIDDEN
    programs = {"keras": "import keras", "again": "import keras", "keras_lsb": "import keras; import keras_lsb"}
    variants = {name: process(first + program, FLAVOURS[flavour]) for name, program in programs.items()}
    interleaved.measure(variants, 1)  # compiles what has no bytecode yet, and fills the cache of files
    seconds = interleaved.measure(variants, rounds)
    return {
        "keras": flavour,
        "cores": os.cpu_count(),
        "scikit_learn": scikit_learn,
        "rounds": rounds,
        "seconds": round(interleaved.difference(seconds, "keras_lsb", "keras"), 3),
        "null": round(interleaved.difference(seconds, "again", "keras"), 3),
        "seconds_of_keras": round(statistics.median(seconds["keras"]), 3),
        "goal": GOAL,
    }


def main() -> None:
    parser = records.parser(__doc__, "one round")
    parser.add_argument("--rounds", type=int, default=11, help="processes of each kind for a row")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    for flavour in FLAVOURS:
        for scikit_learn in (True, False):
            row = measure(flavour, scikit_learn, rounds)
            print(json.dumps(row), flush=True)
            versions = {**common.versions(), "tf_keras": metadata.version("tf_keras")}
            records.keep(arguments, "import_time", [row], SETTING, versions=versions)


if __name__ == "__main__":
    main()
