"""Where benchmarks keep their results: rows that are measured again take the place of those before."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def parser(description: str, quick: str | None = None) -> argparse.ArgumentParser:
    """What the benchmarks of table.py take: `--results`, and `--quick` if its help is given."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.set_defaults(quick=False)
    if quick is not None:
        made.add_argument("--quick", action="store_true", help=f"{quick}: shows that it runs, not how fast")
    without = "" if quick is None else ", none with --quick"
    made.add_argument("--results", type=Path, help=f"folder of the results; benchmarks/results if not given{without}")
    return made


def flags(arguments) -> list[str]:
    """The arguments of `parser` once more, for a process that does a part of the work."""
    quick = ["--quick"] if arguments.quick else []
    return [*quick, "--results", str(arguments.results)] if arguments.results else quick


def keep(
    arguments,
    name: str,
    rows: list[dict],
    setting: tuple[str, ...] = (),
    *,
    versions: dict,
    order: Callable | None = None,
    **more,
) -> None:
    """Puts rows into the results in place of those of the same setting; the others stay.

    Args:
        arguments: of `parser`.
        name: of the file, without its suffix.
        setting: names of the columns that say what was measured; all rows are replaced if there are none.
        versions: of what the rows were measured with.
        order: key of a row to sort by; new rows come last if None.
        more: entries beside the rows.
    """
    folder = arguments.results or (None if arguments.quick else RESULTS)
    if folder is None:
        return

    def key(row):
        return [row[column] for column in setting]

    path = folder / f"{name}.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    new = [key(row) for row in rows]
    rows = [*(row for row in kept if key(row) not in new), *rows]
    if order is not None:
        rows.sort(key=order)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"versions": versions, "rows": rows, **more}, indent=1) + "\n")
