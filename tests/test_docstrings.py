"""Public names say what each argument is, and that they raise where they do."""

import importlib
import inspect
import re

import pytest

from tests import pages

# `::: keras_lsb.room.Name`, and the members that the page shows of it.
ENTRY = re.compile(r"^::: (?P<name>keras_lsb\.\w+\.\w+)\n(?:    .*\n)*", re.M)
MEMBERS = re.compile(r"^ +members: \[(.*)\]$", re.M)
ENTRIES = {match["name"]: match[0] for match in ENTRY.finditer((pages.DOCS / "api.md").read_text(encoding="utf-8"))}
KINDS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def public(name: str):
    """The object of a dotted name in the package."""
    room, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(room), attribute)


def arguments(function) -> list[str]:
    """Names of the arguments that a caller gives."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind not in KINDS and one.name not in ("self", "cls")]


def undocumented(documentation: str, names: list[str]) -> list[str]:
    """The names that start no entry of a list such as `name: what it is` or `name, other: what they are`."""
    entries = re.findall(r"^ +(\*{0,2}\w+(?:, \*{0,2}\w+)*):", documentation, re.M)
    return sorted(set(names) - {name for entry in entries for name in entry.split(", ")})


@pytest.mark.parametrize("name", ENTRIES)
def test_arguments_are_documented(name):
    value = public(name)
    documentation = inspect.getdoc(value) or ""
    if inspect.isclass(value) and issubclass(value, Exception):
        assert documentation
    elif inspect.isclass(value) and issubclass(value, tuple):  # fields: sentences may name them
        assert [field for field in getattr(value, "_fields", ()) if field not in documentation] == []
    else:
        assert undocumented(f" {documentation}".replace("\n", "\n "), arguments(value)) == []


@pytest.mark.parametrize("name", [name for name, text in ENTRIES.items() if MEMBERS.search(text)])
def test_members_are_documented(name):
    for member in MEMBERS.search(ENTRIES[name])[1].split(", "):
        value = inspect.getattr_static(public(name), member, None)
        if value is None:  # set when it is made: the class names it
            assert member in inspect.getdoc(public(name)), member
            continue
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        documentation = inspect.getdoc(getattr(public(name), member)) or ""
        assert documentation, member
        if callable(function):
            assert [one for one in arguments(function) if one not in documentation] == [], member


@pytest.mark.parametrize("name", ENTRIES)
def test_what_raises_says_so(name):
    """The body of the function, or of the class' `__init__`."""
    value = public(name)
    body = getattr(value, "__post_init__", value.__init__) if inspect.isclass(value) else value
    # What dataclasses write themselves raises nothing, and has no source.
    if not inspect.isfunction(body) or body.__code__.co_filename == "<string>":
        return
    if re.search(r"^ +raise (\w+Error)\(", inspect.getsource(body), re.M):
        assert "Raises:" in inspect.getdoc(value)


def test_entries_are_found():
    assert len(ENTRIES) > 80
    assert "keras_lsb.optimizers.LARS" in ENTRIES
    assert undocumented(" first, second: both.\n *third: it.", ["first", "second", "third", "fourth"]) == [
        "fourth",
        "third",
    ]
