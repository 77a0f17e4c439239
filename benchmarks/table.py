"""Every performance line of the project in one table: what was measured, its goal, and the null pair.

    python benchmarks/table.py              runs all benchmarks, which takes hours, and keeps their results
    python benchmarks/table.py --quick      runs them in minutes, in a folder of their own: shows that they run
    python benchmarks/table.py --recorded   what benchmarks/results holds

A ratio is over what a user would pick instead, measured in turn; the null pair is a variant against itself, whose
distance from 1 is the noise. A benchmark that fails is named at the end, and the others are measured all the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import records

ROOT = Path(__file__).resolve().parent
HEADER = ("benchmark", "what", "measured", "goal", "null", "verdict")


class Line(NamedTuple):
    """Rows of some results that have a goal."""

    results: str  # name of the file, without its suffix
    what: tuple[str, ...]  # columns that say what was measured
    measured: str = "ratio"  # its column
    least: bool = False  # whether the goal is the least allowed value, else the largest
    unit: str = ""
    goal: str | float = "goal"  # its column, or itself, then of the rows in `only`
    only: str | None = None  # value of the first column of `what`

    def goal_of(self, row: dict) -> float | None:
        if self.only is not None and row[self.what[0]] != self.only:
            return None
        return row[self.goal] if isinstance(self.goal, str) else self.goal


class Benchmark(NamedTuple):
    """A script, and its arguments with `--quick`."""

    script: str
    quick: tuple[str, ...] = ()


BENCHMARKS = (
    Benchmark("optimizer_step", ("--modes", "graph", "xla")),
    Benchmark("noise_scale"),
    Benchmark("autowu"),
    Benchmark("scaling", ("--replicas", "8", "--processes", "--variants", "LARS", "LAMB")),
    Benchmark("exchange", ("--networks", "unshaped")),
    Benchmark("conadv", ("--devices", "each", "--modes")),
    Benchmark("fixed_point"),
    Benchmark("import_time"),
)
LINES = (
    Line("optimizer_step", ("mode", "variant", "baseline")),
    Line("noise_scale", ("comparison", "batch_size")),
    Line("autowu", ("implementation",), "milliseconds", unit=" ms", goal=10.0, only="ours"),
    Line("autowu", ("implementation",), "times_ours", least=True),
    Line("autowu_step", ("batch_size", "steps_per_execution")),
    Line("scaling", ("keras", "replicas", "processes", "variant", "baseline")),
    Line("exchange", ("exchange", "network", "floats"), least=True),
    Line("conadv", ("keras", "devices", "variant")),
    Line("fixed_point", ("input", "channels"), "seconds", unit=" s"),
    Line("import_time", ("keras", "scikit_learn"), "seconds", unit=" s"),
)


def entries(folder: Path, lines: tuple[Line, ...] = LINES) -> list[tuple[str, ...]]:
    """The table's rows, as text, of the results in a folder; lines whose results are missing say so."""
    found = []
    for line in lines:
        path = folder / f"{line.results}.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        judged = [(row, goal) for row in rows if (goal := line.goal_of(row)) is not None]
        found += [_entry(line, row, goal) for row, goal in judged]
        if not judged:
            found.append((line.results, "-", "-", "-", "-", "not measured"))
    return found


def _entry(line: Line, row: dict, goal: float) -> tuple[str, ...]:
    measured, null = row[line.measured], row.get("null")
    met = measured >= goal if line.least else measured <= goal
    return (
        line.results,
        ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in line.what if row[name] is not None),
        f"{measured:.3g}{line.unit}" if line.unit else f"{measured:.3f}",
        f"{'at least' if line.least else 'at most'} {goal:g}{line.unit}",
        "-" if null is None else f"{null:.3f}{line.unit}",
        "met" if met else "MISSED",
    )


def text(rows: list[tuple[str, ...]]) -> str:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def run(folder: Path | None) -> list[str]:
    """Runs all benchmarks, quickly if their results are to be in a folder; the names of those that failed."""
    failed = []
    for number, benchmark in enumerate(BENCHMARKS, 1):
        print(f"[{number} of {len(BENCHMARKS)}] {benchmark.script}", flush=True)
        flags = ["--quick", "--results", folder, *benchmark.quick] if folder else []
        status = subprocess.run([sys.executable, ROOT / f"{benchmark.script}.py", *flags], check=False).returncode
        failed += [f"{benchmark.script} (status {status})"] if status else []
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="short runs: whether a goal is met is not judged")
    kind.add_argument("--recorded", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        quick = Path(temporary) if arguments.quick else None
        failed = [] if arguments.recorded else run(quick)
        rows = entries(quick or records.RESULTS)
    if arguments.quick:
        rows = [(*row[:-1], "not judged" if row[-1] in ("met", "MISSED") else row[-1]) for row in rows]
    print(text([HEADER, *rows]))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
