"""Interpreters that have imported TensorFlow and Keras already, and fork for every worker.

The imports take ten times as long as many a test. There is one interpreter for each index of a worker, so that workers
of one cluster differ in their hash seeds as those of several machines do. TensorFlow's runtime starts in the fork.

`python -m tests.prepared` is what such an interpreter runs: it reads requests from its standard input, a socket.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile

from tests.workers import ENVIRONMENT, ROOT, ended, run_module, signal_group

MODULES = ("tests.registry", "tests.autowu_run", "tests.microbatches", "tests.decentralized_problem")
GARBAGE = 50_000  # new objects until a search for garbage: tracing makes many that stay
PATIENCE = 240.0  # seconds until an interpreter must have answered
_interpreters = []


class Interpreter:
    """Starts at once, and answers as soon as it has imported everything."""

    def __init__(self):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as this
        self._channel, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.prepared"],
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name != "TF_CONFIG"} | ENVIRONMENT,
                stdin=other,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._channel.settimeout(PATIENCE)
        self._answers = self._channel.makefile("r")

    def ask(self, **request):
        """What it answers.

        Raises:
            RuntimeError: it has ended; the message holds its log.
        """
        with contextlib.suppress(OSError, ValueError):
            self._channel.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(self._answers.readline())
        self.end()
        self._log.seek(0)
        raise RuntimeError(f"A prepared interpreter has ended: {self._log.read().decode(errors='replace')[-3000:]}")

    def end(self) -> None:
        """Ends it with all that it has started."""
        if self in _interpreters:
            _interpreters.remove(self)
        self._channel.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Fork:
    """A worker, with what `tests.workers` needs of a `subprocess.Popen`."""

    def __init__(self, interpreter: Interpreter, command, environment, output, log):
        self._interpreter, self.returncode = interpreter, None
        job = {"command": command, "environment": environment, "output": str(output), "log": str(log)}
        self.pid = interpreter.ask(job=job)

    def status(self) -> int | None:
        """The status if it has ended; it keeps its process id until `wait`."""
        return self._interpreter.ask(status=self.pid)

    def wait(self) -> int:
        self.returncode = self._interpreter.ask(wait=self.pid)
        return self.returncode


def interpreters(count: int) -> list[Interpreter]:
    """So many of them, the same ones at every call."""
    while len(_interpreters) < count:
        _interpreters.append(Interpreter())
    return _interpreters[:count]


@atexit.register
def end_all() -> None:
    """Ends all interpreters."""
    for interpreter in tuple(_interpreters):
        interpreter.end()


def serve() -> dict | None:
    """Answers until nobody asks any more: None. In a fork: its job."""
    pids, channel = set(), socket.socket(fileno=os.dup(0))
    with channel, channel.makefile("r") as requests:
        for line in requests:
            ((kind, value),) = json.loads(line).items()
            if kind == "job":
                answer = os.fork()
                if not answer:
                    os.setsid()
                    return value
                pids.add(answer)
            elif kind == "status":
                answer = ended(value)
            else:
                _, status = os.waitpid(value, 0)
                answer = os.waitstatus_to_exitcode(status)
                pids.discard(value)
            channel.sendall(json.dumps(answer).encode() + b"\n")
    for pid in pids:
        signal_group(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def become(job: dict) -> None:
    """Makes this process one that was started with the job's environment, standard input, output and log."""
    os.environ.clear()
    os.environ.update(job["environment"])
    for number, (path, mode) in enumerate([(os.devnull, "rb"), (job["output"], "wb"), (job["log"], "wb")]):
        with open(path, mode) as file:
            os.dup2(file.fileno(), number)


def main():
    """Imports, serves, and in a fork runs the module of its job."""
    for module in MODULES:
        importlib.import_module(module)
    import tensorflow as tf

    # An error if the runtime has started: its threads would be missing in the forks.
    tf.config.threading.set_inter_op_parallelism_threads(int(ENVIRONMENT["TF_NUM_INTEROP_THREADS"]))
    gc.collect()
    gc.freeze()  # so that the forks share these pages, and do not search them for garbage
    gc.set_threshold(GARBAGE)
    if (job := serve()) is not None:
        become(job)
        run_module(job["command"])


if __name__ == "__main__":
    main()
