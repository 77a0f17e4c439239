"""`tests.workers`: results and logs come back, and whatever happens no process is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import workers
from tests.worker_faults import SLEEP
from tests.workers import WorkerError, one, run, start

pytestmark = pytest.mark.workers


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely waited for by nobody."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        if Path("/proc/self").exists():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state not in "ZX"


def started(folder, count=1) -> list[int]:
    """Ids of the processes that have been started, once there are so many."""
    limit = time.monotonic() + 120  # the harness that is killed imports Keras first
    while len(ids := [path.read_text() for path in folder.glob("*.[pc]*[dl]*")]) < count or "" in ids:
        assert time.monotonic() < limit, ids
        time.sleep(0.02)
    return [int(text) for text in ids]


def assert_none_left(folder, count):
    ids = started(folder, count)
    assert len(ids) == count
    limit = time.monotonic() + 5  # an orphan's new parent takes its time
    while any(map(is_running, ids)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert [pid for pid in ids if is_running(pid)] == []


def faulty(fault, folder, **settings):
    return start("tests.worker_faults", fault, folder, folder=folder / "logs", **{"workers": 2, **settings})


@pytest.mark.parametrize("count", [2, 4])
def test_results_in_order(tmp_path, count):
    with faulty("none", tmp_path, workers=count, EXTRA="more") as cluster:
        results = cluster.results()
    assert [result["index"] for result in results] == list(range(count))
    assert len(set(results[0]["workers"])) == count
    assert all(result["workers"] == results[0]["workers"] for result in results)
    assert {(result["TF_NUM_INTRAOP_THREADS"], result["EXTRA"]) for result in results} == {("1", "more")}
    assert results[0]["TF_USE_LEGACY_KERAS"] == os.environ.get("TF_USE_LEGACY_KERAS")
    assert_none_left(tmp_path, count)


def test_a_single_process_has_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["of this process"]}, "task": {"index": 5}}')
    assert one("tests.worker_faults", "none", tmp_path, folder=tmp_path)["workers"] is None


def test_a_failure_ends_the_others_and_shows_all_logs(tmp_path):
    before = time.monotonic()
    with pytest.raises(WorkerError, match="worker 1 ended with status 3") as caught, faulty("status", tmp_path) as all_:
        all_.results()
    assert time.monotonic() - before < SLEEP / 2
    assert "--- worker 0 of 2, status -15\nworker 0 waits" in str(caught.value)
    assert "--- worker 1 of 2, status 3\nwhat went wrong" in str(caught.value)
    assert_none_left(tmp_path, 2)


@pytest.mark.parametrize(("fault", "number"), [("hang", signal.SIGTERM), ("deaf", signal.SIGKILL)])
def test_the_deadline_ends_all_and_shows_where_they_were(tmp_path, monkeypatch, fault, number):
    monkeypatch.setattr(workers, "GRACE", 1.0)
    with (
        faulty(fault, tmp_path, deadline=3) as cluster,
        pytest.raises(WorkerError, match="workers \\[0, 1\\]") as caught,
    ):
        cluster.results()
    for index in range(2):
        assert f"--- worker {index} of 2, status {-number}\nworker {index} waits" in str(caught.value)
    assert ("worker_faults.py" in str(caught.value)) == (fault == "hang")
    assert_none_left(tmp_path, 2)


def test_much_output_does_not_block(tmp_path):
    results = run("tests.worker_faults", "loud", tmp_path, folder=tmp_path, workers=2, deadline=60)
    assert [result["index"] for result in results] == [0, 1]
    assert (tmp_path / "0.log").stat().st_size > 2_000_000
    assert_none_left(tmp_path, 2)


@pytest.mark.parametrize("fault", ["child", "child_hang"])
def test_children_of_workers_are_ended(tmp_path, monkeypatch, fault):
    """Those of workers that ended well, and of workers that hang; a child here does not heed SIGTERM."""
    monkeypatch.setattr(workers, "GRACE", 1.0)
    with faulty(fault, tmp_path, deadline=60 if fault == "child" else 4) as cluster:
        if fault == "child":
            assert len(cluster.results()) == 2
        else:
            with pytest.raises(WorkerError):
                cluster.results()
    assert_none_left(tmp_path, 4)


def test_a_killed_worker(tmp_path):
    with faulty("hang", tmp_path) as cluster:
        ids = started(tmp_path, 2)
        cluster.kill(0)
        with pytest.raises(WorkerError, match="worker 0 ended with status -9"):
            cluster.results()
    assert not any(map(is_running, ids))


def test_statuses_of_all(tmp_path):
    with faulty("hang", tmp_path) as cluster:
        started(tmp_path, 2)
        cluster.kill(1)
        cluster.kill(0)
        assert cluster.wait() == [-9, -9]
    with faulty("none", tmp_path) as cluster:
        assert cluster.wait() == [0, 0]
        assert [result["index"] for result in cluster.results()] == [0, 1]


def test_nothing_is_left_after_an_error_of_the_test(tmp_path):
    def interrupted():
        with faulty("hang", tmp_path):
            started(tmp_path, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_none_left(tmp_path, 2)


def test_nothing_is_left_when_the_harness_is_killed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tests.workers import start; folder = Path(sys.argv[1]);"
        "start('tests.worker_faults', 'child_hang', folder, workers=2, folder=folder / 'logs').results()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=workers.ROOT)
    started(tmp_path, 4)
    parent.kill()
    parent.wait()
    assert_none_left(tmp_path, 4)


def test_ports_in_use_are_tried_once_more(tmp_path):
    with faulty("in_use_once", tmp_path) as cluster:
        ports = [cluster.addresses]
        assert [result["index"] for result in cluster.results()] == [0, 1]
        ports.append(cluster.addresses)
    assert not set(ports[0]) & set(ports[1])
    with faulty("in_use", tmp_path) as cluster, pytest.raises(WorkerError, match="Address already in use"):
        cluster.results()


def test_no_result(tmp_path):
    with faulty("silent", tmp_path) as cluster, pytest.raises(WorkerError, match="no JSON"):
        cluster.results()
