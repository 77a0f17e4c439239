"""The table of `make bench`: every line with a goal is in it, and judged in the right direction."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """`benchmarks/table.py` and `records.py`, which are scripts."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import records
    import table

    return table, records


def goals(path: Path, measured: set[str]) -> int:
    """Rows of a result that hold one of the measures and a goal; the goal of a training is a loss."""
    result = json.loads(path.read_text())
    rows = result.get("rows", []) if isinstance(result, dict) else []
    return sum(row.get("goal") is not None and bool(measured & row.keys()) for row in rows)


def test_every_recorded_goal_is_a_line(modules):
    table, records = modules
    measured = {line.measured for line in table.LINES}
    recorded = {path.stem: goals(path, measured) for path in records.RESULTS.glob("*.json")}
    fixed = sum(isinstance(line.goal, float) for line in table.LINES)
    assert sum(recorded.values()) > 15
    entries = table.entries(records.RESULTS)
    assert "not measured" not in [entry[-1] for entry in entries]
    assert len(entries) == sum(recorded.values()) + fixed
    assert {line.results for line in table.LINES} == {name for name, count in recorded.items() if count}


def test_every_line_is_measured_by_a_benchmark(modules):
    table, _ = modules
    scripts = [(BENCHMARKS / f"{benchmark.script}.py").read_text() for benchmark in table.BENCHMARKS]
    for line in table.LINES:
        assert any(f'"{line.results}"' in script for script in scripts), line.results


@pytest.mark.parametrize(
    ("least", "measured", "verdict"),
    [(False, 0.78, "met"), (False, 0.781, "MISSED"), (True, 0.78, "met"), (True, 0.779, "MISSED")],
)
def test_verdicts(modules, tmp_path, least, measured, verdict):
    table, records = modules
    rows = [
        {"variant": "first", "size": None, "ratio": measured, "null": 1.01, "goal": 0.78},
        {"variant": "second", "size": 3, "ratio": 7.0, "null": 1.0, "goal": None},
    ]
    records.keep(Namespace(quick=True, results=tmp_path), "one", rows, versions={})
    lines = (table.Line("one", ("variant", "size"), least=least), table.Line("other", ("variant",)))
    (found, missing) = table.entries(tmp_path, lines)
    goal = "at least 0.78" if least else "at most 0.78"
    assert found == ("one", "variant first", f"{measured:.3f}", goal, "1.010", verdict)
    assert missing[0::5] == ("other", "not measured")
    header, first, second = table.text([table.HEADER, found, missing]).splitlines()
    assert header.index("verdict") == first.index(verdict) == second.index("not measured")


def test_quick_runs_leave_the_results_alone(modules, monkeypatch, tmp_path):
    _, records = modules
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    records.keep(Namespace(quick=True, results=None), "one", [{"a": 1}], versions={})
    assert list(tmp_path.iterdir()) == []
    records.keep(Namespace(quick=False, results=None), "one", [{"a": 1}], versions={})
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


def test_rows_measured_again_take_the_place_of_those_before(modules, tmp_path):
    _, records = modules
    arguments = Namespace(quick=True, results=tmp_path / "new")

    def kept(*rows, **more):
        records.keep(arguments, "one", list(rows), versions={"python": "3"}, **more)
        return json.loads((tmp_path / "new" / "one.json").read_text())

    kept({"a": 2, "b": 1}, {"a": 1, "b": 1})
    found = kept({"a": 2, "b": 5}, setting=("a",), order=lambda row: row["a"], memory=7)
    assert found == {"versions": {"python": "3"}, "rows": [{"a": 1, "b": 1}, {"a": 2, "b": 5}], "memory": 7}
    assert kept({"a": 9})["rows"] == [{"a": 9}]
