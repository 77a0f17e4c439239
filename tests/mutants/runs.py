"""Runs of tests on a copy of the package, broken or not, each in a process of its own.

The processes are forks of one that has imported TensorFlow, which takes longer than most of these tests do.
"""

import contextlib
import io
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parents[2]
PASSED, FAILED = 0, 1  # exit codes of pytest; all others mean that the tests did not run
_COPIED = ("keras_lsb", "tests", "examples")


def processes(number: int) -> ProcessPoolExecutor:
    """A pool whose processes, one for each task, have imported Keras 3 on TensorFlow and nothing of ours."""
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3", PYTHONDONTWRITEBYTECODE="1")
    context = get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "keras", "pytest"])
    return ProcessPoolExecutor(number, mp_context=context, max_tasks_per_child=1)


def healthy(nodes: list[str]) -> tuple[int, str]:
    """Runs test nodes on the package as it is: the exit code of pytest and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        _copy(Path(folder))
        return _pytest(Path(folder), nodes)


def verdict(mutant: Mutant) -> str:
    """`caught`, `SURVIVED`, or what else happened to the tests of a mutant."""
    with tempfile.TemporaryDirectory() as folder:
        _copy(Path(folder))
        mutate(mutant, Path(folder) / "keras_lsb")
        code = _pytest(Path(folder), mutant.tests)[0]
    return {FAILED: "caught", PASSED: "SURVIVED"}.get(code, f"NOT RUN (exit code {code})")


def mutate(mutant: Mutant, package: Path) -> None:
    """Applies the break to the package in place."""
    path = package / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.text) != 1:
        raise ValueError(f"{mutant.name}: the text occurs {source.count(mutant.text)} times in {mutant.file}, not once")
    path.write_text(source.replace(mutant.text, mutant.replacement), encoding="utf-8")


def _copy(folder: Path) -> None:
    for part in _COPIED:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def _pytest(folder: Path, nodes) -> tuple[int, str]:
    """Runs test nodes on the package in `folder`. It leaves this process fit for nothing else."""
    import pytest

    for name in [name for name in sys.modules if name.split(".")[0] in _COPIED]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)  # for the processes that tests start
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *(f"tests/{node}" for node in nodes)])
    return int(code), output.getvalue()
