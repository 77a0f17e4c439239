"""The pages of the documentation as text: their prose, links, headings and tables."""

import re
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]

_FENCE = re.compile(r"^ *```.*?^ *```\n", re.M | re.S)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<title>.+)$", re.M)
_ENTRY = re.compile(r"^::: (?P<name>[\w.]+)$", re.M)


def shown(page: Path) -> str:
    """A page without its comments."""
    return _COMMENT.sub("", page.read_text(encoding="utf-8"))


def text(page: Path) -> str:
    """What a page says: without its examples and comments."""
    return _FENCE.sub("", shown(page))


def links(markdown: str) -> list[str]:
    """The targets of the links to pages and files, without those to the web."""
    return [target for target in _LINK.findall(markdown) if not target.startswith(("http://", "https://"))]


def anchors(page: Path) -> set[str]:
    """What a link to a page may name after its "#": its headings, and in api.md the documented names."""
    return {slug(title) for title in _HEADING.findall(text(page))} | set(_ENTRY.findall(text(page)))


def broken(page: Path, target: str) -> str:
    """Why a link on a page leads nowhere, empty where it does not."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.is_file() and not (page.parent != DOCS and file.is_dir()):
        return f"{page.name}: {target} is no file"
    if anchor and anchor not in anchors(file):
        return f"{page.name}: {target} is no heading"
    return ""


def section(page: Path, anchor: str) -> str:
    """The text below a heading, up to the next one."""
    parts = re.split(r"^#+ (.+)$\n", text(page), flags=re.M)
    return next(body for title, body in zip(parts[1::2], parts[2::2], strict=True) if slug(title) == anchor)


def table(markdown: str) -> list[dict[str, str]]:
    """The rows of the first table, by column."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    names, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in rows]


def slug(title: str) -> str:
    """The anchor of a heading."""
    plain = _LINK.sub("]", title).replace("[", "").replace("]", "")
    plain = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
