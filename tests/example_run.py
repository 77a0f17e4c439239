"""Runs an example as a user starts it, and reads what came of it."""

import csv
import os
from pathlib import Path

import numpy as np

from tests import workers

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SHORT = ("--limit-steps", "2", "--least-accuracy", "0", "--threads", "1")


def start(example: str, folder: Path, *flags, deadline: float = workers.DEADLINE):
    """An example in a group of processes that ends with the test, or `deadline` seconds after its start."""
    output = [] if "--output" in flags else ["--output", folder / "runs"]
    search = os.pathsep.join([str(EXAMPLES), str(ROOT)])
    return workers.start(example, *output, *flags, workers=1, folder=folder, deadline=deadline, PYTHONPATH=search)


def finished(example: str, folder: Path, *flags, **settings) -> str:
    """What an example printed that ended without an error."""
    with start(example, folder, *flags, **settings) as process:
        status = process.wait()
        assert status == [0], process.output(0) + process.log(0)
        return process.output(0)


def wait_for_epoch(epoch: int, folder: Path, process) -> None:
    """Until the log of an example's first training has that epoch; fails if it ends before, or is late."""
    while epoch not in logged_epochs(folder):
        assert not process.ended(), process.output(0) + process.log(0)
        process.pause()


def killed_after(epoch: int, example: str, folder: Path, *flags, **settings) -> None:
    """Starts an example and kills it as soon as the log of its first training has that epoch."""
    with start(example, folder, *flags, **settings) as interrupted:
        wait_for_epoch(epoch, folder, interrupted)
        interrupted.kill(0)


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(f"**/{pattern}")
    return path


def logged_epochs(folder: Path) -> list[int]:
    logs = list(folder.glob("**/log.csv"))
    if not logs:
        return []
    with logs[0].open() as log:
        return [int(row["epoch"]) for row in csv.DictReader(log) if row["epoch"].isdigit()]


def held_out_accuracy(model) -> float:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    found = model.predict(images[1437:].reshape(-1, 8, 8, 1) / 16, batch_size=360, verbose=0).argmax(axis=1)
    return float(np.mean(found == labels[1437:]))
