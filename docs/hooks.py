"""Puts measured results into the pages: each marker becomes what benchmarks/results/NAME.json holds.

    {{ table:NAME columns="method,batch_size,mean:.2f" }}    its rows, with these columns in this order
    {{ value:NAME:rows.0.mean:.2f }}                         one value; a number in the path is an index of a list
    {{ value:NAME:rows[method=legw,batch_size=8].mean }}     the same of the one row with these entries

What follows a column's or a path's colon is a Python format. A missing file, key or column fails the build. Markers in
an HTML comment are left alone, and the comment is not shown.

A link to a file outside of docs/, such as ../tests/test_legw.py, works where the repository is read. The site gets a
copy of the file, as text, and the link leads there; a file that does not exist fails the build.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
_MARKER = re.compile(r"\{\{\s*(?:table|value):.*?\}\}")
_TABLE = re.compile(r'\{\{\s*table:(?P<name>\w+)\s+columns="(?P<columns>[^"]+)"\s*\}\}')
_VALUE = re.compile(r"\{\{\s*value:(?P<name>\w+):(?P<path>(?:[\w. -]|\[[^]]*\])+?)(?::(?P<format>[^:}]+?))?\s*\}\}")
_KEY = re.compile(r"\[(?P<entries>[^]]*)\]|(?P<key>[^.\[]+)")
_OUTSIDE = re.compile(r"\]\(\.\./(?P<path>[^)#\s]+)\)")


def on_files(files, config):
    """Called by mkdocs once: adds the files outside of docs/ that pages link to."""
    # Not at the top: the tests load this module where mkdocs is not installed.
    from mkdocs.structure.files import File, InclusionLevel

    pages = [page.content_string for page in files.documentation_pages()]
    for path in sorted({path for page in pages for path in outside(page)}):
        if not (ROOT / path).is_file():
            raise ValueError(f"A page links to a file that does not exist. Received: ../{path}")
        source = File.generated(config, copied(path), abs_src_path=str(ROOT / path), inclusion=InclusionLevel.INCLUDED)
        files.append(source)
    return files


def on_page_markdown(markdown, **_):
    """Called by mkdocs for every page."""
    return _OUTSIDE.sub(lambda link: f"]({copied(link['path'])})", render(markdown, RESULTS))


def outside(markdown: str) -> list[str]:
    """The files outside of docs/ that `markdown` links to, relative to the repository."""
    return _OUTSIDE.findall(markdown)


def copied(path: str) -> str:
    """Where the site has the copy of a file of the repository; browsers show a name that ends so as text."""
    return f"source/{path}.txt"


def render(markdown: str, folder: Path) -> str:
    """`markdown` with its markers replaced by the results in `folder`; ValueError where that cannot be done."""
    return _MARKER.sub(lambda marker: _replacement(marker[0], folder), _COMMENT.sub("", markdown))


def table(result: dict, columns: str) -> str:
    """A Markdown table of the result's rows, with its caption and the versions that it was measured with."""
    names, formats = zip(*(_split_format(column) for column in columns.split(",")), strict=True)
    lines = [" | ".join(name.replace("_", " ") for name in names), " | ".join("---" for _ in names)]
    for row in result["rows"]:
        lines.append(" | ".join(_text(row[name], form) for name, form in zip(names, formats, strict=True)))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    notes = [result["caption"]] if result.get("caption") else []
    return "\n".join(f"| {line} |" for line in lines) + "\n\n" + " ".join([*notes, f"Measured with {versions}."])


def value(result, path: str, form: str = "") -> str:
    """The entry of nested dictionaries and lists at the dotted `path`, formatted."""
    for match in _KEY.finditer(path):
        if match["entries"] is not None:
            result = _only(result, match["entries"])
        else:
            result = result[int(match["key"])] if isinstance(result, list) else result[match["key"]]
    return _text(result, form)


def _replacement(marker: str, folder: Path) -> str:
    match = _TABLE.fullmatch(marker) or _VALUE.fullmatch(marker)
    if match is None:
        raise ValueError(f"A marker is neither a table nor a value. Received: {marker}")
    path = folder / f"{match['name']}.json"
    if not path.exists():
        raise ValueError(f"A marker names results that do not exist: {path.name}. Received: {marker}")
    result = json.loads(path.read_text(encoding="utf-8"))
    try:
        if match.re is _TABLE:
            return table(result, match["columns"])
        return value(result, match["path"], match["format"] or "")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} does not hold what a marker asks for: {error!r}. Received: {marker}") from error


def _only(rows: list[dict], entries: str) -> dict:
    """The one row with these entries, written `key=value,key=value`."""
    wanted = [entry.partition("=")[::2] for entry in entries.split(",")]
    found = [row for row in rows if all(str(row[key]) == value for key, value in wanted)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {entries}")
    return found[0]


def _split_format(column: str) -> tuple[str, str]:
    name, _, form = column.strip().partition(":")
    return name, form


def _text(entry, form: str) -> str:
    return "-" if entry is None else format(entry, form)
