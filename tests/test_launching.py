"""A training with several workers on this machine, from the launcher and from TF_CONFIG."""

import importlib
import json
import os
import re
import shlex
import signal
import types
from pathlib import Path

import pytest

from tests.example_run import (
    EXAMPLES,
    ROOT,
    SHORT,
    finished,
    held_out_accuracy,
    logged_epochs,
    only,
    start,
    wait_for_epoch,
)
from tests.support import TENSORFLOW, keras, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

pytestmark = tensorflow_only("tf.distribute")


def started_workers(output: str) -> list[int]:
    """Process ids that the local launcher printed."""
    return [int(number) for number in re.findall(r"^worker \d+: process (\d+)", output, re.M)]


def is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_two_local_workers_reach_the_accuracy_claimed(tmp_path):
    output = finished("multi_worker", tmp_path, "--threads", "1")
    assert "2 replicas. LEGW: peak learning rate 2 x schedule, warm-up 4 epochs" in output
    assert output.splitlines()[-1].endswith("93.00 % claimed: passed.")
    assert output.count("Epoch 30/30") == 1, "only the chief reports"
    assert not only(tmp_path, "worker-1.out").read_text()
    result = json.loads(only(tmp_path, "result.json").read_text())
    assert result["replicas"] == 2
    assert result["accuracy"] > 0.93
    assert result["losses"][-1] < result["losses"][0]
    assert logged_epochs(tmp_path) == list(range(30))
    model = keras.models.load_model(only(tmp_path, "digits.keras"))
    assert held_out_accuracy(model) == pytest.approx(result["accuracy"], abs=1.5 / 360)
    assert not list(tmp_path.glob("**/backup/*")), "the backup of a finished run is removed"
    repeated = finished("multi_worker", tmp_path, "--threads", "1")
    assert "Epoch" not in repeated
    assert repeated.splitlines()[-1] == output.splitlines()[-1]


def test_a_dead_worker_ends_all_and_the_next_start_continues(tmp_path):
    flags = (*SHORT, "--epochs", "24")
    with start("multi_worker", tmp_path, *flags) as process:
        wait_for_epoch(3, tmp_path, process)
        pids = started_workers(process.output(0))
        os.kill(pids[1], signal.SIGKILL)
        (status,) = process.wait()
        # Which of the two is seen first is a race: the one killed, or the chief that misses it.
        assert re.search(r"Worker [01] ended with status (-9|1), so all are ended", process.log(0))
    assert status == 1
    assert not any(map(is_running, pids))
    reached = logged_epochs(tmp_path)[-1]
    with start("multi_worker", tmp_path, *flags) as process:
        wait_for_epoch(reached + 2, tmp_path, process)
        pids = started_workers(process.output(0))
        os.kill(process.processes[0].pid, signal.SIGTERM)
        assert process.wait() != [0]
        assert "Epoch 1/24" not in process.output(0)
    assert len(pids) == 2
    assert not any(map(is_running, pids)), "the launcher leaves workers behind"
    output = finished("multi_worker", tmp_path, *flags, "--workers", "1")
    assert "Epoch 1/24" not in output
    assert "1 replicas" in output
    assert sorted(set(logged_epochs(tmp_path))) == list(range(24))
    assert json.loads(only(tmp_path, "result.json").read_text())["replicas"] == 1


CLUSTER = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{'cluster': {}}",
        "[]",
        json.dumps({"cluster": CLUSTER["cluster"]}),
        json.dumps({**CLUSTER, "task": {"type": "worker"}}),
        json.dumps({**CLUSTER, "task": {"type": "worker", "index": 2}}),
        json.dumps({**CLUSTER, "task": {"type": "chief", "index": 0}}),
        json.dumps({**CLUSTER, "cluster": {"worker": "a:1"}}),
    ],
)
def test_tf_config_that_names_no_worker(monkeypatch, text):
    import launchers

    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must name all workers") as error:
        launchers.resolver_of("tf-config", 8888)
    assert str(error.value).endswith(f"Received: {text!r}")


def test_tf_config_names_the_worker_and_the_chief(monkeypatch):
    import launchers

    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER))
    resolver = launchers.resolver_of("tf-config", 8888)
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
    assert not launchers.is_chief(resolver)
    cluster = {"chief": ["c:1"], "worker": ["a:1"]}
    for task, chief in (("chief", True), ("worker", False)):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": task, "index": 0}}))
        assert launchers.is_chief(launchers.resolver_of("tf-config", 8888)) == chief


def test_a_batch_that_the_workers_cannot_share(monkeypatch, tmp_path):
    import multi_worker

    monkeypatch.setenv("TF_CONFIG", json.dumps(CLUSTER))
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    strategy = types.SimpleNamespace(cluster_resolver=resolver, num_replicas_in_sync=2)
    arguments = multi_worker.parse(["--batch-size", "129", "--output", str(tmp_path)])
    with pytest.raises(ValueError, match=r"--batch-size is global and divided among 2 replicas\. Received: 129"):
        multi_worker.train(arguments, strategy, seed=0)


COMMAND = re.compile(r"python examples/(multi_worker|tpu_train)\.py(.*)")
PAGES = (ROOT / "docs" / "launching.md", EXAMPLES / "multi_worker.py", EXAMPLES / "tpu_train.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_are_accepted(page):
    text = re.sub(r"\\+\n", " ", page.read_text(encoding="utf-8"))  # continued lines
    commands = COMMAND.findall(text)
    assert commands
    for example, flags in commands:
        importlib.import_module(example).parse(shlex.split(flags))
