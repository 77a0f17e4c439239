"""Workers as nodes: they train as the formulas say, go on for hundreds of steps, and name a neighbour that is lost.

`python -m tests.test_decentralized_workers --workers 8` loses one of eight in a run of a thousand steps.
"""

import argparse
import json
import os
import re
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from tests import decentralized_problem as problem
from tests import workers
from tests.support import assert_close, tensorflow_only

pytestmark = [pytest.mark.workers, tensorflow_only("tf.distribute.MultiWorkerMirroredStrategy")]

SAME = 5e-6


def expected(case) -> np.ndarray:
    name, arguments, _ = problem.CASES[case]
    return problem.by_hand(problem.TOPOLOGIES[name](problem.NODES), **arguments)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    return workers.run("tests.decentralized_run", "train", folder / "saved", workers=problem.NODES, folder=folder)


@pytest.mark.parametrize("case", problem.CASES)
def test_every_worker_has_the_weights_of_its_node(trained, case):
    assert_close([worker[case] for worker in trained], expected(case), SAME)


def test_saving_takes_the_average_and_leaves_each_node_its_own(trained):
    mean = expected("buckets").mean(0)
    for worker in trained:
        assert_close(worker["saved"], mean, SAME)
        assert worker["after"] == worker["buckets"]
    nodes = expected("buckets")
    distance = np.sum((nodes - mean) ** 2) / (problem.NODES * np.sum(mean**2))
    assert [worker["distance"] for worker in trained] == pytest.approx([distance] * problem.NODES, rel=1e-3)


def test_evaluation_is_of_the_average(trained):
    mean = expected("buckets").mean(0)
    error = problem.X.astype("float64") @ mean[:-1] + mean[-1] - problem.Y
    for worker in trained:
        assert worker["evaluate"] == pytest.approx(np.mean(error**2), rel=1e-5)


def test_workers_with_other_topologies_are_told(trained):
    for worker in trained:
        assert worker["disagreeing"].startswith("ValueError: ")
        assert "topology.name: 'path(4)' on worker 0, 'ring(4)' on worker 1" in worker["disagreeing"]


def steps_of(folder, index) -> list[int]:
    path = folder / f"steps-{index}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def start_long(folder, count, steps_per_epoch):
    folder.mkdir(exist_ok=True)
    arguments = ("tests.decentralized_run", "long", folder, steps_per_epoch)
    return workers.start(*arguments, workers=count, folder=folder / "logs")


def wait_for_step(cluster, folder, index, step) -> None:
    while not (done := steps_of(folder, index)) or done[-1] < step:
        assert not cluster.ended(), cluster.log(0)
        time.sleep(0.05)


def test_a_neighbour_that_hangs_is_given_up_in_time(tmp_path):
    with start_long(tmp_path / "stopped", 2, 1000) as cluster:
        wait_for_step(cluster, tmp_path / "stopped", 1, 20)
        os.killpg(cluster.processes[1].pid, signal.SIGSTOP)
        stopped = time.monotonic()
        while not cluster.ended():
            assert time.monotonic() - stopped < problem.TIMEOUT + 30
            time.sleep(0.1)
        assert time.monotonic() - stopped > problem.TIMEOUT / 2
        assert "NeighbourLostError: Node 0 has lost a neighbour" in cluster.output(0)
        assert "edge (0, 1) of ring_matchings(2) did not exchange within 10 s" in cluster.output(0)


def check_loss(folder, count: int, steps_per_epoch: int) -> None:
    """Of ten epochs, the third is broken: all others stop with the edge in the message, and the run resumes."""
    killed, lost = folder / "killed", count // 2
    with start_long(killed, count, steps_per_epoch) as cluster:
        wait_for_step(cluster, killed, lost, 5 * steps_per_epoch // 2)
        begin = time.monotonic()
        cluster.kill(lost)
        statuses = cluster.wait()
        assert time.monotonic() - begin < 60
        assert statuses == [-signal.SIGKILL if index == lost else 3 for index in range(count)]
        for index in sorted({*range(count)} - {lost}):
            near = "|".join(str((index + side) % count) for side in (-1, 1))
            pattern = (
                rf"NeighbourLostError: Node {index} has lost a neighbour at step \d+: edge \({index}, ({near})\) of "
            )
            assert re.search(pattern, cluster.output(index)), cluster.output(index)
    with start_long(killed, count, steps_per_epoch) as cluster:
        resumed = cluster.results()
    assert [worker["steps"] for worker in resumed] == [10 * steps_per_epoch] * count
    assert steps_of(killed, 0)[-1] == 10 * steps_per_epoch - 1
    with start_long(folder / "whole", count, steps_per_epoch) as cluster:
        assert cluster.results() == resumed


def test_workers_survive_the_loss_of_one(tmp_path):
    check_loss(tmp_path, 4, 20)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check_loss(Path(folder), arguments.workers, 100)
    print(json.dumps({"workers": arguments.workers, "steps": 1000, "resumed": "with the same weights on every node"}))


if __name__ == "__main__":
    main()
