"""The map leads from each method to its formula, class, tests and results, and no link leads nowhere."""

import importlib
import inspect
import pkgutil

import pytest

import keras_lsb
from tests import pages

MAP = pages.DOCS / "map.md"
ROWS = pages.table(pages.text(MAP))
LINKED = set(pages.links(pages.text(MAP)))
# Where the links of a column lead, and where else they may.
COLUMNS = {
    "method": ("",),
    "formula": ("", "../keras_lsb/"),
    "class": ("api.md#keras_lsb.", "tpu.md#"),
    "tests": ("../tests/test_",),
    "reference": ("../tests/", "tpu.md#"),
    "mutants": ("../tests/mutants/",),
    "benchmark": ("../benchmarks/", "../examples/"),
    "measured": ("",),
    "example": ("../examples/",),
    "tutorial": ("tutorial_", "cookbook_", "launching.md#"),
}
ROOMS = [info.name for info in pkgutil.iter_modules(keras_lsb.__path__) if info.ispkg]
# Records that a class returns are on its page; bound methods of Keras are no names of the package.
CLASSES = [
    f"keras_lsb.{room}.{name}"
    for room in ("schedules", "optimizers", "callbacks", "training")
    for name in importlib.import_module(f"keras_lsb.{room}").__all__
    if inspect.isclass(value := getattr(importlib.import_module(f"keras_lsb.{room}"), name))
    and not issubclass(value, tuple)
]


def started(folder: str) -> list[str]:
    """Scripts of a folder that a user starts."""
    files = sorted((pages.ROOT / folder).glob("*.py"))
    return [f"../{folder}/{file.name}" for file in files if "__main__" in file.read_text(encoding="utf-8")]


def modules(folder: str, without: set[str]) -> list[str]:
    """Modules of a folder of the tests."""
    return [
        f"../{folder}/{file.name}" for file in sorted((pages.ROOT / folder).glob("*.py")) if file.name not in without
    ]


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert [why for target in pages.links(pages.text(page)) if (why := pages.broken(page, target))] == []


def test_links_are_found_and_can_be_broken():
    assert sum(len(pages.links(pages.text(page))) for page in pages.PAGES) > 300
    assert "no file" in pages.broken(MAP, "../tests/test_absent.py")
    assert "no heading" in pages.broken(MAP, "legw.md#absent")
    assert "no heading" in pages.broken(MAP, "api.md#keras_lsb.schedules.Absent")
    assert pages.broken(MAP, "api.md#keras_lsb.schedules.LEGW") == ""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["method"].partition("]")[0].strip("["))
def test_every_cell_leads_where_its_column_says(row):
    assert set(row) == set(COLUMNS)
    for column, places in COLUMNS.items():
        targets = pages.links(row[column])
        assert targets, f"{column} is empty"
        assert [target for target in targets if not target.startswith(places)] == [], column


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["method"].partition("]")[0].strip("["))
def test_what_is_measured_stands_there(row):
    """A section with numbers from benchmarks/results, and no other."""
    for target in pages.links(row["measured"]):
        page, _, anchor = target.partition("#")
        assert "{{ " in pages.section(pages.DOCS / page, anchor), target


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_for_keras_is_on_the_map(name):
    assert f"api.md#{name}" in LINKED


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_on_the_map(room):
    assert any(target.startswith((f"../keras_lsb/{room}/", f"api.md#keras_lsb.{room}.")) for target in LINKED)


@pytest.mark.parametrize(
    "target",
    [
        *modules("tests/reference", {"__init__.py"}),
        *modules("tests/mutants", {"__init__.py", "__main__.py", "mutant.py", "runs.py"}),
        *started("benchmarks"),
        *started("examples"),
        *(page.name for page in pages.PAGES if page.name.startswith(("tutorial_", "cookbook_"))),
    ],
)
def test_everything_that_backs_a_method_is_on_the_map(target):
    assert target in {link.partition("#")[0] for link in LINKED}


def test_the_map_is_one_click_from_the_readme():
    head = "\n".join(pages.text(pages.ROOT / "README.md").splitlines()[:8])
    assert "docs/map.md" in pages.links(head)
