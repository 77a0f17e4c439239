"""Runs a module in processes of its own, as `python -m` does: one, or the workers of a cluster on this machine.

They are forks of a process that has imported Keras and the package (`tests.imported`), which takes longer than most of
what they do. Imports neither Keras nor pytest.
"""

import contextlib
import faulthandler
import json
import os
import runpy
import signal
import sys
import threading
import time
from multiprocessing import get_context, parent_process
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))

from launchers import free_ports  # noqa: E402

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
    """Starts a module with arguments so many times, with TF_CONFIG if that is more than once.

    Args:
        folder: is made where it is missing, and holds what each worker writes: `INDEX.out` and `INDEX.log`.
        deadline: seconds from when they have started.
        environment: variables besides those of this process; Keras has been imported before they are set.
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
        self.environment = environment
        self.processes, self._left = [], []
        self._has_retried = False
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            self.end()
            raise
        self.deadline = time.monotonic() + deadline  # not before Keras has been imported for the first of all

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
            self.pause()
        return statuses

    def ended(self) -> bool:
        """Whether a worker has ended."""
        return any(self._status(index) is not None for index in range(self.workers))

    def kill(self, index) -> None:
        """Ends a worker as a machine would that is switched off."""
        _signal_group(self.processes[index], signal.SIGKILL)

    def end(self) -> None:
        """Ends all that is left of the workers and of what they have started."""
        left, self._left = self._left, []
        for process in left:
            _signal_group(process, signal.SIGTERM)
        limit = time.monotonic() + GRACE
        while any(process.exitcode is None for process in left) and time.monotonic() < limit:
            time.sleep(0.02)
        for process in left:
            _signal_group(process, signal.SIGKILL)
            process.join()

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
            environment |= ENVIRONMENT | self.environment
            files = [self.folder / f"{index}.{kind}" for kind in ("out", "log")]
            for file in files:  # and no pipe, which fills up
                file.write_bytes(b"")
            process = _CONTEXT.Process(target=main, args=(self.command, environment, *files))
            process.start()
            self.processes.append(process)
            self._left.append(process)

    def _first_failure(self) -> int | None:
        """The first worker that ended with an error, None once all have ended without."""
        while True:
            statuses = [self._status(index) for index in range(self.workers)]
            failed = next((index for index, status in enumerate(statuses) if status), None)
            if failed is not None or None not in statuses:
                return failed
            self.pause()

    def _status(self, index) -> int | None:
        return self.processes[index].exitcode

    def pause(self) -> None:
        """Lets a moment pass, in a loop that waits for something of the workers.

        Raises:
            WorkerError: the deadline is over. All workers are ended.
        """
        if time.monotonic() > self.deadline:
            late = [index for index in range(self.workers) if self._status(index) is None]
            self._fail(f"not done at the deadline: workers {late}")
        time.sleep(0.05)

    def _fail(self, reason) -> None:
        self.end()
        lines = [f"{' '.join(self.command)}: {reason}"]
        for index, process in enumerate(self.processes):
            lines.append(f"--- worker {index} of {self.workers}, status {process.exitcode}")
            lines += [text for text in (self.output(index)[-TAIL:], self.log(index)[-TAIL:]) if text]
        raise WorkerError("\n".join(lines))


def _signal_group(process, number) -> None:
    """Signals a worker and what it has started, which may outlive it: the id is theirs as long as one of them runs."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # where a group of zombies cannot be signalled
        os.killpg(process.pid, number)


def _end_without_parent() -> None:
    """Ends this group once the process is gone that started it, and then cannot end it."""
    parent_process().join()
    os.killpg(0, signal.SIGKILL)


def main(command, environment, output, log) -> None:
    """Runs a module in a group of its own; on SIGTERM writes to the log where each thread is."""
    os.setsid()
    for number, path in enumerate((os.devnull, output, log)):
        descriptor = os.open(path, os.O_RDWR)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path[:0] = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    faulthandler.register(signal.SIGTERM, chain=True)
    threading.Thread(target=_end_without_parent, daemon=True).start()
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.imported"])
