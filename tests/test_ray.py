"""Ray Train's TensorFlow trainer with two workers on this machine. Ray is an extra of its own: `make test-ray`."""

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests import workers
from tests.support import keras, tensorflow_only

pytest.importorskip("ray", reason="Ray is not installed: make test-ray installs the extra 'ray' and runs this")
pytestmark = tensorflow_only("ray.train.tensorflow")

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT_SECONDS = 400


def start(folder: Path, *flags):
    """The example in a group of processes that ends with the test, and Ray's own with it."""
    return workers.start(
        "ray_train",
        *("--output", folder / "runs", "--threads", "1", *flags),
        workers=1,
        folder=folder,
        deadline=LIMIT_SECONDS,
        PYTHONPATH=os.pathsep.join([str(EXAMPLES), str(EXAMPLES.parent)]),
        RAY_DEDUP_LOGS="0",
        RAY_USAGE_STATS_ENABLED="0",
    )


def trained(process) -> str:
    """What a training printed that ended without an error."""
    status = process.wait()
    assert status == [0], process.output(0)[-3000:] + process.log(0)[-3000:]
    return process.output(0)


def reported_epochs(process) -> list[int]:
    """Epochs that the chief has begun, in that order."""
    return [int(epoch) for epoch in re.findall(r"Epoch (\d+)/\d+", process.output(0) + process.log(0))]


def ray_workers(process) -> list[int]:
    """Process ids of the workers."""
    return sorted({int(pid) for pid in re.findall(r"RayTrainWorker pid=(\d+)", process.output(0) + process.log(0))})


def check(folder: Path, output: str) -> None:
    """The model that Ray kept is the one of the run, of the flavour of this process, and as good as claimed."""
    assert output.splitlines()[-1].endswith("93.00 % claimed: passed.")
    (record,) = (folder / "runs").glob("*/result.json")
    result = json.loads(record.read_text())
    assert result["replicas"] == 2
    assert f"held-out accuracy {100 * result['accuracy']:.2f} %" in output
    assert keras.__name__.split(".")[0] in result["versions"]
    checkpoint = Path(re.search(r"^checkpoint: (.*)$", output, re.M)[1])
    assert checkpoint.is_relative_to(folder)
    model = keras.models.load_model(checkpoint / "digits.keras")
    assert type(model.optimizer).__name__ == "LAMB"
    assert int(model.optimizer.iterations) == 30 * 5


def test_two_workers_reach_the_accuracy_claimed(tmp_path):
    with start(tmp_path) as process:
        check(tmp_path, trained(process))
        assert reported_epochs(process) == list(range(1, 31))


def test_a_dead_worker_is_replaced_and_the_run_continues(tmp_path):
    with start(tmp_path) as process:
        deadline = time.monotonic() + LIMIT_SECONDS
        while max(reported_epochs(process), default=0) < 4 or len(ray_workers(process)) < 2:
            assert not process.ended(), process.log(0)[-3000:]
            assert time.monotonic() < deadline, process.log(0)[-3000:]
            time.sleep(0.1)
        first = ray_workers(process)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first[-1], signal.SIGKILL)
        check(tmp_path, trained(process))
        epochs = reported_epochs(process)
        again = next(index for index in range(1, len(epochs)) if epochs[index] <= epochs[index - 1])
        assert epochs[again] > 1, "the run began anew"
        assert epochs[-1] == 30
        assert len(ray_workers(process)) > len(first)
