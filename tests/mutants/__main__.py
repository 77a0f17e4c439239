"""`python -m tests.mutants [name ...] [--list]`: breaks a copy of the package and requires the named tests to fail."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
_PASSED, _FAILED = 0, 1  # exit codes of pytest; all others mean that the tests did not run


def _copy(folder: Path) -> None:
    for part in ("keras_lsb", "tests", "examples"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def _pytest(folder: Path, nodes) -> subprocess.CompletedProcess:
    """Runs test nodes on the package in `folder`, on Keras 3 with TensorFlow."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment |= {"KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [f"tests/{node}" for node in nodes]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def mutate(mutant: Mutant, package: Path) -> None:
    """Applies the break to the package in place."""
    path = package / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.text) != 1:
        raise ValueError(f"{mutant.name}: the text occurs {source.count(mutant.text)} times in {mutant.file}, not once")
    path.write_text(source.replace(mutant.text, mutant.replacement), encoding="utf-8")


def verdict(mutant: Mutant) -> str:
    """`caught`, `SURVIVED`, or what else happened."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder)
        mutate(mutant, folder / "keras_lsb")
        code = _pytest(folder, mutant.tests).returncode
    return {_FAILED: "caught", _PASSED: "SURVIVED"}.get(code, f"NOT RUN (exit code {code})")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help="mutants to run; all if none is given")
    parser.add_argument("--list", action="store_true", help="list the mutants and their tests, run nothing")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"unknown mutants: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    width = max(len(mutant.name) for mutant in MUTANTS)
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:{width}}  {mutant.file:24}  {', '.join(mutant.tests)}")
        return 0

    with tempfile.TemporaryDirectory() as name:
        _copy(Path(name))
        healthy = _pytest(Path(name), sorted({node for mutant in chosen for node in mutant.tests}))
    if healthy.returncode != _PASSED:
        print(
            healthy.stdout[-4000:], healthy.stderr[-2000:], "The tests must pass before anything is broken.", sep="\n"
        )
        return 2
    survived = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, result in zip(chosen, pool.map(verdict, chosen), strict=True):
            survived += result != "caught"
            print(f"{mutant.name:{width}}  {result}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
