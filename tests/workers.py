"""Runs a module in processes of its own: one, or the workers of a cluster on this machine.

`python -m tests.workers MODULE [ARGUMENT ...]` is what each process runs. Imports neither Keras nor pytest.
"""

import contextlib
import faulthandler
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

from launchers import free_ports  # noqa: E402

from tests.garbage import collect_rarely  # noqa: E402

DEADLINE = 240.0  # seconds until all results must be there
GRACE = 3.0  # seconds between SIGTERM and SIGKILL
TAIL = 3000  # characters of each log that an error shows
# One thread each: four workers on two cores would mostly wait for each other's threads.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "2",
}
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"  # XLA_FLAGS for JAX


class WorkerError(RuntimeError):
    """A worker failed or was late; the message holds the end of every worker's log."""


def start(module, *arguments, workers, folder, deadline=DEADLINE, **environment) -> "Cluster":
    """Starts `python -m module arguments` so many times, with TF_CONFIG if that is more than once.

    Args:
        folder: is made where it is missing, and holds what each worker writes: `INDEX.out` and `INDEX.log`.
        deadline: seconds from now.
        environment: variables besides those of this process.
    """
    return Cluster([module, *map(str, arguments)], workers, Path(folder), deadline, environment)


def run(module, *arguments, **settings) -> list[dict]:
    """Results of all workers that `start` starts."""
    with start(module, *arguments, **settings) as cluster:
        return cluster.results()


def one(module, *arguments, **settings) -> dict:
    """Result of a single process."""
    return run(module, *arguments, workers=1, **settings)[0]


class Cluster:
    """Processes of one command, each the leader of a group that is ended as a whole.

    Use it in `with`, so that nothing is left of them. `addresses` are those of the workers, `processes` the processes.
    """

    def __init__(self, command, workers, folder, deadline, environment):
        self.command, self.workers, self.folder = command, workers, folder
        self.environment, self.deadline = environment, time.monotonic() + deadline
        self.processes = []
        self._has_retried = False
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.end()

    def results(self) -> list[dict]:
        """What each worker printed last, as JSON.

        Raises:
            WorkerError: a worker failed, was late, or printed something else. All others are ended.
        """
        while (failed := self._first_failure()) is not None:
            logs = "".join(self.log(index) for index in range(self.workers)).lower()
            if "address already in use" not in logs or self._has_retried:
                self._fail(f"worker {failed} ended with status {self._status(failed)}")
            self._has_retried = True
            self.end()
            self._start()
        try:
            return [json.loads(self.output(index).splitlines()[-1]) for index in range(self.workers)]
        except (ValueError, IndexError) as error:
            self._fail(f"a worker printed no JSON in its last line: {error}")
        finally:
            self.end()

    def wait(self) -> list[int]:
        """The status of each worker, once all have ended: negative for one that a signal has ended.

        Raises:
            WorkerError: a worker was late.
        """
        while None in (statuses := [self._status(index) for index in range(self.workers)]):
            self._sleep()
        return statuses

    def ended(self) -> bool:
        """Whether a worker has ended."""
        return any(self._status(index) is not None for index in range(self.workers))

    def kill(self, index) -> None:
        """Ends a worker as a machine would that is switched off."""
        _signal_group(self.processes[index], signal.SIGKILL)

    def end(self) -> None:
        """Ends all that is left of the workers and of what they have started."""
        running = [process for process in self.processes if process.returncode is None]
        for process in running:
            _signal_group(process, signal.SIGTERM)
        limit = time.monotonic() + GRACE
        while any(_status(process) is None for process in running) and time.monotonic() < limit:
            time.sleep(0.02)
        for process in running:
            # Until it is waited for, a process keeps its id, so that no other group can have it.
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def output(self, index) -> str:
        """What a worker printed."""
        return (self.folder / f"{index}.out").read_text(errors="replace")

    def log(self, index) -> str:
        """What a worker wrote to its standard error."""
        return (self.folder / f"{index}.log").read_text(errors="replace")

    def _start(self) -> None:
        self.addresses = [f"localhost:{port}" for port in free_ports(self.workers)]
        self.processes = []
        for index in range(self.workers):
            environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
            if self.workers > 1:
                task = {"type": "worker", "index": index}
                environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": self.addresses}, "task": task})
            command = [sys.executable, "-m", "tests.workers", *self.command]
            with open(self.folder / f"{index}.out", "wb") as output, open(self.folder / f"{index}.log", "wb") as log:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment | ENVIRONMENT | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,  # a file, since a pipe fills up
                    stderr=log,
                    start_new_session=True,
                )
            self.processes.append(process)

    def _first_failure(self) -> int | None:
        """The first worker that ended with an error, None once all have ended without."""
        while True:
            statuses = [self._status(index) for index in range(self.workers)]
            failed = next((index for index, status in enumerate(statuses) if status), None)
            if failed is not None or None not in statuses:
                return failed
            self._sleep()

    def _status(self, index) -> int | None:
        return _status(self.processes[index])

    def _sleep(self) -> None:
        if time.monotonic() > self.deadline:
            late = [index for index in range(self.workers) if self._status(index) is None]
            self._fail(f"not done at the deadline: workers {late}")
        time.sleep(0.05)

    def _fail(self, reason) -> None:
        self.end()
        lines = [f"{' '.join(self.command)}: {reason}"]
        for index, process in enumerate(self.processes):
            lines.append(f"--- worker {index} of {self.workers}, status {process.returncode}")
            lines += [text for text in (self.output(index)[-TAIL:], self.log(index)[-TAIL:]) if text]
        raise WorkerError("\n".join(lines))


def _status(process) -> int | None:
    """The status of a process that has ended, which is left to be waited for; None while it runs."""
    if process.returncode is not None:
        return process.returncode
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _signal_group(process, number) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # where a group of zombies cannot be signalled
        os.killpg(process.pid, number)


def _end_without(parent) -> None:
    """Ends this group once the parent is gone, which then cannot do it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def main():
    """Runs a module; on SIGTERM writes to the log where each thread is."""
    faulthandler.register(signal.SIGTERM, chain=True)
    threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
    collect_rarely()
    if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        sys.modules.setdefault("jax", None)  # TensorFlow imports it where it is installed: a sixth of its start
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
