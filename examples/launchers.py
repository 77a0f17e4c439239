"""How a worker learns who the others are: from TF_CONFIG, from Slurm, or from a launcher for one machine."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_EXAMPLE = '{"cluster": {"worker": ["host-0:2222", "host-1:2222"]}, "task": {"type": "worker", "index": 0}}'
_SLURM = (
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURMD_NODENAME",
)


def resolver_of(launcher: str, port: int):
    """The cluster resolver of a worker that was started by `launcher`, "tf-config" or "slurm"."""
    return slurm_resolver(port) if launcher == "slurm" else tf_config_resolver()


def tf_config_resolver():
    """The cluster in TF_CONFIG. Without it TensorFlow would train on this worker alone, and say nothing."""
    import tensorflow as tf

    text = os.environ.get("TF_CONFIG")
    try:
        config = json.loads(text or "")
        task = config["task"]
        tasks, index = config["cluster"][task["type"]], int(task["index"])
        valid = isinstance(tasks, list) and 0 <= index < len(tasks)
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise ValueError(f"TF_CONFIG must name all workers and this one, such as {_EXAMPLE}. Received: {text!r}")
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def slurm_resolver(port: int):
    """The cluster that `srun` has started, one worker for each task; a node's first one listens on `port`.

    Slurm decides which devices a task sees. TensorFlow's resolver would count them itself, and cannot count none. It
    also sorts nodes by name, n10 before n9, and Slurm numbers tasks in another order; so a worker looks for its own
    address, and its rank does not matter.
    """
    import tensorflow as tf

    absent = [name for name in _SLURM if name not in os.environ]
    if absent:
        raise ValueError(f"The Slurm launcher reads variables that srun sets. Received: no {', '.join(absent)}")
    resolvers = tf.distribute.cluster_resolver
    gpus = len(tf.config.list_physical_devices("GPU"))
    share = max(gpus, 1)
    cluster = resolvers.SlurmClusterResolver(
        port_base=port,
        gpus_per_node=share * int(os.environ["SLURM_STEP_NUM_TASKS"]),
        gpus_per_task=share,
        auto_set_gpu=False,
    ).cluster_spec()
    address = f"{os.environ['SLURMD_NODENAME']}:{port + int(os.environ['SLURM_LOCALID'])}"
    index = cluster.as_dict()["worker"].index(address)
    return resolvers.SimpleClusterResolver(
        cluster, task_type="worker", task_id=index, num_accelerators={"GPU": gpus}, rpc_layer="grpc"
    )


def is_chief(resolver) -> bool:
    """Whether this worker is the one that writes and reports: the chief, or the first worker if there is none."""
    return resolver.task_type == "chief" or (resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs)


def run_local(script: str, flags: list[str], workers: int, folder: Path, hosts: list | None = None) -> None:
    """Runs `script` in one process for each worker, on this machine's CPU; prints what the chief prints.

    What worker i prints goes to worker-i.out in `folder`, its errors and warnings to worker-i.err. When a worker fails,
    the others are ended. `hosts` has the address of each worker and the words before a command that run it there, such
    as ("10.0.0.1:2222", ["ip", "netns", "exec", "a"]); by default they share this machine's network.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"worker-{index}.out" for index in range(workers)]
    hosts = hosts or [(f"localhost:{port}", []) for port in free_ports(workers)]
    addresses = [address for address, _ in hosts]
    processes = []
    try:
        for index, (output, (_, prefix)) in enumerate(zip(outputs, hosts, strict=True)):
            processes.append(_start([*prefix, sys.executable, script, *flags], addresses, index, output))
            print(f"worker {index}: process {processes[-1].pid}, output in {output}", flush=True)
        with outputs[0].open() as chief:
            while any(process.poll() is None for process in processes):
                _stop_on_failure(processes, outputs)
                print(chief.read(), end="", flush=True)
                time.sleep(0.1)
            print(chief.read(), end="", flush=True)
        _stop_on_failure(processes, outputs)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _start(command: list[str], addresses: list[str], index: int, output: Path):
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    environment |= {"TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": "-1", "PYTHONUNBUFFERED": "1"}
    with output.open("w") as out, output.with_suffix(".err").open("w") as err:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=err)


def _stop_on_failure(processes: list, outputs: list[Path]) -> None:
    for index, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        if process.poll():
            errors = output.with_suffix(".err")
            end = "".join(errors.read_text(errors="replace").splitlines(keepends=True)[-20:])
            sys.exit(f"{end}Worker {index} ended with status {process.returncode}, so all are ended. See {errors}")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, below those that the system gives to outgoing connections."""
    found = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 12_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"No {count} free ports between 20,000 and 32,000")
