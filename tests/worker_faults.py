"""Workers that go wrong without TensorFlow: `python -m tests.worker_faults FAULT FOLDER`.

Each leaves its process id in the folder, under its index, so that a test can look for it afterwards.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SLEEP = 120
TASK = json.loads(os.environ.get("TF_CONFIG", "{}"))
INDEX = TASK["task"]["index"] if TASK else 0


def with_child(fault, folder):
    """A child that does not end by SIGTERM, and holds the standard output."""
    code = (
        f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep({SLEEP})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    (folder / f"{INDEX}.child").write_text(str(child.pid))


def main():
    fault, folder = sys.argv[1], Path(sys.argv[2])
    (folder / f"{INDEX}.pid").write_text(str(os.getpid()))
    if fault.startswith("child"):
        with_child(fault, folder)
    if fault == "status" and INDEX == 1:
        sys.stderr.write("what went wrong\n")
        sys.exit(3)
    if fault == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if fault in ("status", "hang", "deaf", "child_hang"):
        sys.stderr.write(f"worker {INDEX} waits\n")
        sys.stderr.flush()
        time.sleep(SLEEP)
    if fault == "loud":
        for stream in (sys.stdout, sys.stderr):
            stream.write("much to say\n" * 200_000)
    if fault == "in_use" or (fault == "in_use_once" and not (folder / "second").exists()):
        (folder / "second").touch()
        sys.exit("bind: Address already in use")
    if fault == "silent":
        return
    environment = {name: os.environ.get(name) for name in ("TF_USE_LEGACY_KERAS", "TF_NUM_INTRAOP_THREADS", "EXTRA")}
    print(json.dumps({"index": INDEX, "workers": TASK.get("cluster", {}).get("worker"), **environment}))


if __name__ == "__main__":
    main()
