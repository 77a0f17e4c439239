"""What `import keras_lsb` imports besides itself, where no package is at hand that Keras imports only if it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What Keras takes along where it is installed, and brings scipy with it; hidden from Keras, not from this package.
HIDDEN = ("matplotlib", "networkx", "pandas", "sklearn")
PROGRAM = f"""
import json, sys
for name in {HIDDEN}:
    sys.modules[name] = None
import keras
for name in {HIDDEN}:
    del sys.modules[name]
before = set(sys.modules)
import keras_lsb
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def imported():
    """Names of the modules that `import keras` imports, and of those that `import keras_lsb` adds."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return map(set, json.loads(done.stdout.splitlines()[-1]))


def test_import_adds_next_to_nothing(imported):
    before, added = imported
    # What the test is about is not there before, so that it would show.
    assert not {"keras_lsb", "scipy.stats", "scipy.optimize", *HIDDEN} & before
    tops = {name.partition(".")[0] for name in added} - sys.stdlib_module_names
    # tf_keras: not in front of us where Keras has not imported it for `tf.keras`.
    assert tops <= {"keras_lsb", "threadpoolctl", "tf_keras"}
    assert {f"keras_lsb.{name}" for name in ("optimizers", "schedules", "quantization", "distribute")} <= added
