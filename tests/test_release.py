"""Version, changelog and citation agree, and what a release says of itself holds."""

import configparser
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import keras_lsb

ROOT = Path(__file__).resolve().parent.parent
SECTION = re.compile(r"^## (?P<version>\S+) - (?P<date>unreleased|\d{4}-\d\d-\d\d)$", re.MULTILINE)


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sections():
    """(version, date) of each section of the changelog."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = SECTION.findall(changelog)
    assert len(found) == changelog.count("\n## ")
    return found


def test_versions_agree(citation, sections):
    assert re.fullmatch(r"\d+\.\d+\.\d+", keras_lsb.__version__)
    version, date = sections[0]
    assert version == citation["version"] == keras_lsb.__version__
    assert str(citation.get("date-released", "unreleased")) == date


def test_former_releases_have_a_date(sections):
    assert "unreleased" not in [date for _, date in sections[1:]]


def test_papers_are_those_of_the_docstrings(citation):
    sources = (path.read_text(encoding="utf-8") for path in Path(keras_lsb.__file__).parent.rglob("*.py"))
    text = " ".join("".join(sources).split())
    for paper in citation["references"]:
        number = paper["identifiers"][0]["value"].removeprefix("arXiv:")
        assert f"{paper['year']}, arXiv {number}" in text
    assert len(citation["references"]) == 6


def test_oldest_packages_are_the_floors():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = setup["options"]["install_requires"], setup["options.extras_require"]["tensorflow"]
    floors = dict(line.split(">=") for lines in required for line in lines.split())
    lines = (ROOT / "requirements" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert floors.keys() == pins.keys()
    for name, pin in pins.items():
        assert pin == floors[name] or pin.startswith(f"{floors[name]}.")


def load_check():
    """The program of `make release-check`, which is no package."""
    specification = importlib.util.spec_from_file_location("release_check", ROOT / "tools" / "release_check.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_release_check_names_the_step_that_fails(capsys):
    check = load_check()
    message = "it has ['more'] and lacks ['less']\n\nFAILED: contents"
    with pytest.raises(SystemExit, match=re.escape(message)), check.step("contents"):
        check.require_same("The sdist", {"same", "more"}, {"same", "less"})
    assert "passed" not in capsys.readouterr().out


def test_release_check_leaves_out_a_python_that_does_not_run(capsys, monkeypatch, tmp_path):
    check = load_check()
    broken, running = tmp_path / "broken", tmp_path / "running"
    for folder, code in ((broken, "exit 1"), (running, "echo 3.12")):
        folder.mkdir()
        (folder / "python3.12").write_text(f"#!/bin/sh\n{code}\n")
        (folder / "python3.12").chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken}:{running}")
    assert check.pythons([]) == {"3.12": str(running / "python3.12")}
    printed = capsys.readouterr().out
    assert f"left out: {broken / 'python3.12'} does not run" in printed
    assert "no Python 3.13 here" in printed


def test_release_check_wants_a_date_for_a_tag(monkeypatch, tmp_path):
    check = load_check()
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "DIST", tmp_path)
    (tmp_path / "keras_lsb").mkdir()
    (tmp_path / "keras_lsb" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text("# Changelog\n\n## 1.2.3 - unreleased\n\n- This.\n")
    with pytest.raises(check.CheckError, match=r"has no section `## 1.2.3 - ` with the date"):
        check.check_tag("v1.2.3")
    changelog.write_text("# Changelog\n\n## 1.2.3 - 2030-01-02\n\n- This.\n\n## 1.2.2 - 2029-01-02\n\n- That.\n")
    check.check_tag("v1.2.3")
    assert (tmp_path / "NOTES.md").read_text() == "- This.\n"
    with pytest.raises(check.CheckError, match=r"The tag is v1.2.4, and the version 1.2.3"):
        check.check_tag("v1.2.4")
