"""Builds wheel and sdist, checks what is in them, and tests the wheel where the source is out of reach.

    python tools/release_check.py [--python python3.12 ...] [--constraints FILE] [--tag v0.1.0] [--quick]

The steps, in order; the first that fails ends the run with its name and what it printed:

- build: `dist/` gets both; a wheel built from the sdist has the same files as the one built from the tree.
- contents: of the wheel, the package with `py.typed` and nothing else; of the sdist, the source with its tests.
- extras: each extra of setup.cfg resolves by itself, with every Python.
- tests: in a clean environment of each Python, outside of the tree, quick tests of the installed wheel in both Kerases.

Without `--python` every python3.N on the PATH is taken that the package supports; one that does not run is named and
left out. `--constraints` is given to pip for the tests. `--tag` is the tag of a release: the version and the changelog
must be of it, and the changelog's section is written to `dist/NOTES.md`. Needs git and the extra `release`.
"""

import argparse
import configparser
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
NOT_IN_SDIST = (".ci/", ".github/", ".gitignore")
GENERATED = re.compile(r"PKG-INFO|setup\.cfg|keras_lsb\.egg-info/.*")
FLAVOURS = {"Keras 3": {}, "tf_keras": {"TF_USE_LEGACY_KERAS": "1"}}
QUICK_TESTS = ("test_installed.py", "test_contract_schedules.py", "test_imports.py", "test_mutants.py")
TESTS = (*QUICK_TESTS, "test_legw.py", "test_exclusions.py", "test_topology.py", "test_fixedpoint.py")
INSTALLED = '''"""What is tested is the installed package."""

import importlib.metadata
from pathlib import Path

import keras_lsb


def test_package_is_the_installed_one():
    package = Path(keras_lsb.__file__).resolve().parent
    assert package.parent.name == "site-packages"
    assert (package / "py.typed").exists()
    assert importlib.metadata.version("keras_lsb") == keras_lsb.__version__
'''


class CheckError(Exception):
    """A step has failed, for the reason that the message gives."""


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Prints the name of a step, and how it went."""
    print(f"{name} ...", flush=True)
    started = time.perf_counter()
    try:
        yield
    except CheckError as error:
        raise SystemExit(f"{error}\n\nFAILED: {name}") from error
    print(f"{name}: passed in {time.perf_counter() - started:.0f} s", flush=True)


def require(holds: bool, reason: str) -> None:
    """Fails the step for a reason unless something holds."""
    if not holds:
        raise CheckError(reason)


def run(*command: str | Path, cwd: Path = ROOT, settings: dict[str, str] | None = None) -> str:
    """What a program prints; a failure of it fails the step. Nothing of the tree is on its path for imports."""
    left_out = ("PYTHONPATH", "TF_USE_LEGACY_KERAS", "KERAS_BACKEND")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        command, cwd=cwd, env={**environment, **(settings or {})}, capture_output=True, text=True, check=False
    )
    require(done.returncode == 0, f"{done.stdout}{done.stderr}\n$ {' '.join(map(str, command))}")
    return done.stdout


def pythons(wanted: Sequence[str]) -> dict[str, str]:
    """Version -> interpreter, of those that are wanted, or of all on the PATH that the package supports."""
    least = int(re.search(r">=3\.(\d+)", settings()["options"]["python_requires"])[1])
    names = wanted or [f"python3.{minor}" for minor in range(least, least + 10)]
    found = {}
    for name in names:
        places = [name] if os.sep in name else [str(Path(folder) / name) for folder in os.get_exec_path()]
        for place in filter(shutil.which, places):
            program = "import sys; print('{}.{}'.format(*sys.version_info))"
            done = subprocess.run([place, "-c", program], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found.setdefault(done.stdout.strip(), place)
                break
            print(f"left out: {place} does not run")
        else:
            require(not wanted, f"No such Python runs here: {name}")
    supported = re.findall(r"Python :: (3\.\d+)", settings()["metadata"]["classifiers"])
    for version in supported if not wanted else ():
        if version not in found:
            print(f"left out: no Python {version} here, which the package supports")
    require(bool(found), f"No Python on the PATH is at least 3.{least}")
    return found


def settings() -> configparser.ConfigParser:
    """setup.cfg."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def tracked(folder: str = ".") -> set[str]:
    """The files of the project in a folder, those that git does not know yet included."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", folder).splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


def members(archive: Path) -> set[str]:
    """Files in a wheel; in an sdist, below its one folder."""
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as opened:
        return {entry.name.partition("/")[2] for entry in opened.getmembers() if entry.isfile()}


def build(scratch: Path) -> tuple[Path, Path]:
    """Builds (wheel, sdist) into dist/."""
    for folder in (DIST, ROOT / "build"):  # what is left from before would get into the wheel
        shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--wheel", "--outdir", DIST)
    run(sys.executable, "-m", "build", "--sdist", "--outdir", DIST)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        opened.extractall(scratch, filter="data")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", scratch, scratch / sdist.name.removesuffix(".tar.gz"))
    (again,) = scratch.glob("*.whl")
    require_same("The wheel that is built from the sdist", members(again), members(wheel))
    return wheel, sdist


def require_same(what: str, found: set[str], expected: set[str]) -> None:
    """Fails the step unless two sets of files are the same."""
    differences = f"has {sorted(found - expected)} and lacks {sorted(expected - found)}"
    require(found == expected, f"{what} is not as expected: it {differences}")


def check_contents(wheel: Path, sdist: Path) -> None:
    """Fails the step for a file too many or too few, and for metadata that an index would not show as they are."""
    package = {name for name in members(wheel) if ".dist-info/" not in name}
    require_same("The package in the wheel", package, tracked("keras_lsb"))
    require("keras_lsb/py.typed" in package, "The wheel lacks py.typed")
    source = {name for name in members(sdist) if not GENERATED.fullmatch(name)}
    expected = {name for name in tracked() if not name.startswith(NOT_IN_SDIST) and not GENERATED.fullmatch(name)}
    require_same("The sdist", source, expected)
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)


def environment(python: str, folder: Path) -> Path:
    """The interpreter of a new virtual environment."""
    run(python, "-m", "venv", folder)
    interpreter = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    return interpreter


def check_extras(interpreter: Path, wheel: Path) -> None:
    """Fails the step for an extra that does not resolve alone. Nothing is installed."""
    for extra in settings()["options.extras_require"]:
        try:
            run(interpreter, "-m", "pip", "install", "--quiet", "--dry-run", f"{wheel}[{extra}]")
        except CheckError as error:
            raise CheckError(f"{error}\nThe extra {extra!r} does not resolve") from error


def check_installed(interpreter: Path, wheel: Path, arguments: argparse.Namespace, scratch: Path) -> None:
    """Installs the wheel and runs tests of it in both Kerases, from a copy of the tests."""
    constraints = ["--constraint", arguments.constraints] if arguments.constraints else []
    run(interpreter, "-m", "pip", "install", "--quiet", *constraints, f"{wheel}[demo]", "pytest>=8")
    shutil.copytree(ROOT / "tests", scratch / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", scratch)
    (scratch / "tests" / "test_installed.py").write_text(INSTALLED, encoding="utf-8")
    tests = [f"tests/{name}" for name in (QUICK_TESTS if arguments.quick else TESTS)]
    for flavour, variables in FLAVOURS.items():
        printed = run(interpreter, "-m", "pytest", "-q", *tests, cwd=scratch, settings=variables)
        print(f"  {flavour}: {printed.strip().splitlines()[-1]}")


def check_tag(tag: str) -> None:
    """Fails the step unless version and changelog are those of a tag; writes the notes of the release."""
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "keras_lsb" / "__init__.py").read_text(), re.MULTILINE)[1]
    require(tag == f"v{version}", f"The tag is {tag}, and the version {version}")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    require(section is not None, f"CHANGELOG.md has no section `## {version} - ` with the date of the release")
    (DIST / "NOTES.md").write_text(section[1].strip() + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[], help="interpreters; all that are found if left out")
    parser.add_argument("--constraints", type=lambda name: str(Path(name).resolve()), help="pip's, for the tests")
    parser.add_argument("--tag", help="of the release")
    parser.add_argument("--quick", action="store_true", help="no extras, and fewer tests")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="keras_lsb-release-") as folder:
        scratch = Path(folder)
        with step("Pythons"):
            interpreters = pythons(arguments.python)
        with step("build"):
            wheel, sdist = build(scratch)
        with step("contents"):
            check_contents(wheel, sdist)
        if arguments.tag:
            with step(f"tag {arguments.tag}"):
                check_tag(arguments.tag)
        for version, python in interpreters.items():
            place = scratch / version
            with step(f"environment, Python {version}"):
                interpreter = environment(python, place / "environment")
            if not arguments.quick:
                with step(f"extras, Python {version}"):
                    check_extras(interpreter, wheel)
            with step(f"tests, Python {version}"):
                check_installed(interpreter, wheel, arguments, place)
            shutil.rmtree(place)
    print(f"All passed: {wheel.name}, {sdist.name}")


if __name__ == "__main__":
    main()
