"""Workers that are killed, or were started with different settings.

`python -m tests.test_faults --kills 20` kills as often, in several trainings, and checks every resumption.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import pytest

from tests import workers
from tests.support import LEGACY, tensorflow_only

pytestmark = [tensorflow_only("tf.distribute"), pytest.mark.workers]

COUNT = 2  # workers
KILLS = 2  # of a training in the ordinary tests
STEPS, AHEAD = 48, 14  # of the training, and at most until a kill


def lines(folder, name) -> list[list[str]]:
    path = Path(folder, name)
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def killed_once(folder, last_step: int, point: random.Random) -> int:
    """Starts the training, or goes on with it, and kills a worker at a random point; the step of the kill."""
    begun = len(lines(folder, "steps-0"))
    with workers.start("tests.fault_run", "train", folder, workers=COUNT, folder=folder / "logs") as cluster:
        first = None
        while first is None or int(lines(folder, "steps-0")[-1][0]) < first:
            if len(steps := lines(folder, "steps-0")) > begun and first is None:
                now = int(steps[begun][0])
                first = point.randint(now, min(now + AHEAD, last_step))
            if cluster.ended():
                cluster.results()  # says what went wrong
                raise AssertionError("the training ended before the kill")
            time.sleep(0.002)
        time.sleep(point.uniform(0, 0.1))
        cluster.kill(point.randrange(COUNT))
        step = int(lines(folder, "steps-0")[-1][0])
        cluster.end()
    return step


def train(folder) -> list[dict]:
    return workers.run("tests.fault_run", "train", folder, workers=COUNT, folder=folder / "logs")


def digests(folder, worker) -> dict[str, set]:
    """Epoch -> digests of all states that it has begun with."""
    found = {}
    for epoch, digest in lines(folder, f"epochs-{worker}"):
        found.setdefault(epoch, set()).add(digest)
    return found


def check_kills(folder, kills: int, seed: int, whole: list[dict], expected: list[dict]) -> list[int]:
    """Kills a training so often, lets it end, and compares; the steps of the kills."""
    folder.mkdir()
    point = random.Random(seed)
    steps = [killed_once(folder, STEPS - 4, point) for _ in range(kills)]
    assert train(folder) == whole, f"killed at {steps}, it ended elsewhere"
    for worker in range(COUNT):
        assert digests(folder, worker) == expected[worker], f"killed at {steps}, it went on from elsewhere"
    assert not (folder / "backup").exists()
    return steps


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    whole = train(folder)
    return whole, [digests(folder, worker) for worker in range(COUNT)]


def test_workers_agree_and_autowu_has_decided(uninterrupted):
    whole, expected = uninterrupted
    assert expected[0] == expected[1]
    assert whole[0]["autowu"] == whole[1]["autowu"]
    assert whole[0]["autowu"]["reason"] == "gaussian process"
    assert all(len(found) == 1 for found in expected[0].values())


def test_killed_workers_resume_exactly(tmp_path, uninterrupted):
    whole, expected = uninterrupted
    steps = check_kills(tmp_path / "killed", KILLS, time.time_ns(), whole, expected)
    assert len(steps) == KILLS


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors")
    return workers.run("tests.fault_run", "errors", folder, workers=COUNT, folder=folder / "logs")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("batch", "optimizer.config.learning_rate.config.batch_size: 32.0 on worker 0, 64.0 on worker 1"),
        ("seed", "seed: 7 on worker 0, 8 on worker 1"),
        ("epochs", "epochs: 1 on worker 0, 2 on worker 1"),
        ("passed", "topology.nodes: 4 on worker 0, 5 on worker 1"),
        ("missing", "fold: 'nothing' on worker 0, 3 on worker 1"),
        ("apart", "Worker 1 does not see the backup that worker 0 sees"),
    ],
)
def test_every_worker_is_told_what_differs(errors, case, message):
    for worker in errors:
        assert worker[case].startswith("ValueError: ")
        assert message in worker[case]
        assert len(worker[case]) < 400, "only what differs is named"


def test_workers_that_agree_train(errors):
    assert [worker["none"] for worker in errors] == ["", ""]
    assert [worker["shared"] for worker in errors] == ["", ""]


def test_workers_that_make_backups_together(errors):
    """All of them save at the same epochs, also when these are few."""
    assert [worker["every_other"] for worker in errors] == ["", ""]


def test_plain_fit_names_the_remedy(errors):
    for worker in errors:
        if LEGACY:
            assert worker["plain"] == ""
            assert worker["enabled"] == [False, False]
        else:
            assert worker["plain"].startswith("MultiWorkerFitError: ")
            assert "keras_lsb.distribute.enable_multi_worker_fit()" in worker["plain"]
            assert worker["enabled"] == [True, False]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--per-training", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        whole = train(root / "whole")
        expected = [digests(root / "whole", worker) for worker in range(COUNT)]
        steps = []
        while len(steps) < arguments.kills:
            kills = min(arguments.per_training, arguments.kills - len(steps))
            folder = root / str(len(steps))
            steps += check_kills(folder, kills, arguments.seed + len(steps), whole, expected)
            print(json.dumps({"kills": len(steps), "steps": steps, "difference": 0.0}), flush=True)


if __name__ == "__main__":
    main()
