"""Results that grow by rows: a measurement that is repeated takes the place of the one before."""

import json
from collections.abc import Callable
from pathlib import Path


def keep(path: Path, rows: list[dict], setting: tuple[str, ...], versions: dict, order: Callable | None = None) -> None:
    """Puts rows into the results at `path` in place of those of the same setting; the others stay.

    Args:
        setting: names of the columns that say what was measured.
        versions: of what the rows were measured with.
        order: key of a row to sort by; new rows come last if None.
    """

    def key(row):
        return [row[name] for name in setting]

    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    new = [key(row) for row in rows]
    rows = [*(row for row in kept if key(row) not in new), *rows]
    if order is not None:
        rows.sort(key=order)
    path.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
