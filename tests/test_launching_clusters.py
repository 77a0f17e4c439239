"""What starts the example on Slurm and on Kubernetes.

Slurm is a script that starts tasks with its variables; the manifest is read with the models that Kubeflow publishes.
"""

import contextlib
import copy
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import workers
from tests.example_run import EXAMPLES, ROOT, SHORT, only
from tests.support import TENSORFLOW, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

SCRIPT = EXAMPLES / "slurm" / "multi_worker.sbatch"
MANIFEST = EXAMPLES / "kubernetes" / "tfjob.yaml"
LIMIT_SECONDS = 240

on_tensorflow = tensorflow_only("tf.distribute")


def slurm(rank: int, local: int, node: str, **variables) -> dict:
    """The variables of a task, as srun sets them for three tasks on nodes n9 and n10."""
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURMD_NODENAME": node,
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "n[9-10]",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
        **variables,
    }


@on_tensorflow
def test_slurm_worker_finds_its_own_address(monkeypatch):
    """TensorFlow lists n10 before n9, Slurm numbers n9's tasks first: a worker must not take another's address."""
    import launchers

    seen = []
    for rank, (node, local) in enumerate([("n9", 0), ("n9", 1), ("n10", 0)]):
        for name, value in slurm(rank, local, node).items():
            monkeypatch.setenv(name, value)
        resolver = launchers.resolver_of("slurm", 7000)
        addresses = resolver.cluster_spec().as_dict()["worker"]
        assert addresses[resolver.task_id] == f"{node}:{7000 + local}"
        assert resolver.num_accelerators() == {"GPU": len(tf.config.list_physical_devices("GPU"))}
        seen.append((addresses, resolver.task_id, launchers.is_chief(resolver)))
    assert all(addresses == seen[0][0] for addresses, _, _ in seen)
    assert sorted(index for _, index, _ in seen) == [0, 1, 2]
    assert sum(chief for _, _, chief in seen) == 1


@on_tensorflow
def test_slurm_outside_of_srun(monkeypatch):
    import launchers

    for name, value in slurm(0, 0, "n9").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(ValueError, match=r"that srun sets\. Received: no SLURM_PROCID$"):
        launchers.resolver_of("slurm", 8888)


# What srun does with the script's line: two tasks on this machine. It ends with the status of one that failed.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do echo "$1" >> srun.options; shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 SLURMD_NODENAME=localhost
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" > "$task.out" 2> "$task.err" &
done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
"""


def submit(folder: Path, *flags, **environment) -> int:
    """The status of the batch script, run in `folder` with stand-ins for Slurm's commands."""
    commands = folder / "bin"
    commands.mkdir()
    (folder / "examples").symlink_to(EXAMPLES)
    for name, text in {"srun": SRUN, "scontrol": '#!/bin/bash\necho "$@" >> scontrol.log\n'}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    job = next(port for port in workers.free_ports(3000) if port < 30_000) - 20_000  # from which it takes its port
    variables = {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": sys.executable, "SLURM_JOB_ID": str(job)}
    process = subprocess.Popen(
        ["bash", str(SCRIPT), *map(str, flags)],
        cwd=folder,
        env=os.environ | workers.ENVIRONMENT | variables | environment,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=LIMIT_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_batch_script_is_valid():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    lines = SCRIPT.read_text().splitlines()
    directives = [index for index, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert directives
    assert max(directives) < first_command, "sbatch reads no directive after the first command"
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[index]) for index in directives)


@on_tensorflow
def test_batch_script_trains_two_tasks(tmp_path):
    status = submit(tmp_path, "--output", tmp_path / "runs", *SHORT, "--epochs", "3")
    assert status == 0, (tmp_path / "0.err").read_text() + (tmp_path / "1.err").read_text()
    assert "2 replicas" in (tmp_path / "0.out").read_text()
    assert not (tmp_path / "1.out").read_text()
    assert json.loads(only(tmp_path / "runs", "result.json").read_text())["replicas"] == 2
    assert "--kill-on-bad-exit=1" in (tmp_path / "srun.options").read_text()
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.parametrize(("restarts", "queued"), [(None, True), ("2", True), ("3", False)])
def test_batch_script_queues_a_failed_job_again(tmp_path, restarts, queued):
    variables = {} if restarts is None else {"SLURM_RESTART_COUNT": restarts}
    assert submit(tmp_path, PYTHON="false", **variables) == 1
    assert (tmp_path / "scontrol.log").exists() == queued
    if queued:
        assert re.fullmatch(r"requeue \d+\n", (tmp_path / "scontrol.log").read_text())


def manifest() -> dict:
    import yaml

    return yaml.safe_load(MANIFEST.read_text())


def as_read_by_kubernetes(job: dict) -> dict:
    """A TFJob with the keys that the models of Kubeflow and of Kubernetes know; they drop what they do not."""
    from kubeflow.training.api_client import ApiClient
    from kubeflow.training.utils.utils import FakeResponse

    client = ApiClient()
    return client.sanitize_for_serialization(client.deserialize(FakeResponse(job), "KubeflowOrgV1TFJob"))


def test_manifest_follows_the_schema():
    job = manifest()
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "TFJob")
    assert as_read_by_kubernetes(job) == job
    specification = job["spec"]
    assert specification["successPolicy"] in ("", "AllWorkers")
    assert specification["runPolicy"]["cleanPodPolicy"] in ("None", "Running", "All")
    assert set(specification["tfReplicaSpecs"]) <= {"Chief", "Master", "Worker", "PS", "Evaluator"}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("spec",), "tfReplicaSpec"),
        (("spec", "runPolicy"), "backOffLimit"),
        (("spec", "tfReplicaSpecs", "Worker"), "restartpolicy"),
        (("spec", "tfReplicaSpecs", "Worker", "template", "spec"), "volume"),
        (("spec", "tfReplicaSpecs", "Worker", "template", "spec", "containers", 0), "imagePullpolicy"),
    ],
)
def test_misspelt_key_of_a_manifest_is_caught(path, key):
    job = copy.deepcopy(manifest())
    place = job
    for step in path:
        place = place[step]
    place[key] = "Never"
    assert as_read_by_kubernetes(job) != job


@on_tensorflow
def test_manifest_starts_the_example():
    import multi_worker

    worker = manifest()["spec"]["tfReplicaSpecs"]["Worker"]
    assert worker["replicas"] > 1, "the operator sets no TF_CONFIG for a single worker"
    assert worker["restartPolicy"] == "OnFailure", "a worker that loses another ends with status 1"
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "tensorflow"
    assert (ROOT / container["command"][-1]).exists()
    arguments = multi_worker.parse(container["args"])
    assert arguments.launcher == "tf-config"
    assert str(arguments.output) in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert arguments.batch_size % worker["replicas"] == 0
