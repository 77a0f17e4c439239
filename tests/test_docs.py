"""The documentation runs, names every public object, and gives only arguments that exist."""

import contextlib
import doctest
import importlib
import importlib.util
import io
import json
import pkgutil
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import keras_lsb
from keras_lsb import callbacks
from keras_lsb.optimizers import LAMB, LARS, AdamP
from tests import pages
from tests.support import keras, tensorflow_only

PAGES = [page for page in pages.PAGES if page.name != "CONTRIBUTING.md"]
# A ```python fence runs; a ```text fence right after it is what it prints. Any other fence is only shown.
EXAMPLE = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\s*^```text\n(?P<output>.*?)^```\n)?", re.M | re.S)
CALL = re.compile(r"`((?:LARS|LAMB|AdamP)\([^`]*\))`")
ROOMS = [f"keras_lsb.{info.name}" for info in pkgutil.iter_modules(keras_lsb.__path__) if info.ispkg]
PACKAGES = [package for package in map(importlib.import_module, ["keras_lsb", *ROOMS]) if hasattr(package, "__all__")]
PUBLIC = [f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__]


def load(name: str):
    """A module of the documentation, which is no package."""
    specification = importlib.util.spec_from_file_location(name, pages.DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


hooks = load("hooks")


def examples(page: Path) -> list:
    """(line, code, printed text or None) of the examples of a page."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start()].count("\n") + 1, m["code"], m["output"]) for m in EXAMPLE.finditer(text)]


@tensorflow_only("an example that uses tf.keras")
@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda page: page.name)
def test_examples_run(page):
    """The examples of one page run in order and share their names."""
    namespace = {"__name__": "__main__"}
    for line, code, expected in examples(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        if expected is not None:
            assert printed.getvalue().rstrip() == expected.rstrip(), f"{page.name}, line {line}"


def test_the_pages_with_examples_are_found():
    assert {"index.md", "legw.md", "migrating.md", "optimizers.md"} <= {page.name for page in PAGES if examples(page)}
    for page in PAGES:
        assert len(examples(page)) == page.read_text(encoding="utf-8").count("```python\n"), page.name


SHOWN = re.compile(r"^```py\n(?P<code>.*?)^```\n", re.M | re.S)


COOKBOOK = [page for page in PAGES if page.name.startswith("cookbook")]


@pytest.mark.parametrize("page", COOKBOOK, ids=lambda page: page.name)
def test_shown_code_of_the_cookbook_takes_arguments_that_exist(page):
    """A search takes more updates than a page may: its lines run with a model that notes how it is called."""
    (shown,) = SHOWN.finditer(page.read_text(encoding="utf-8"))
    model = mock.create_autospec(keras.Sequential, instance=True)
    model.fit.side_effect = lambda *_, callbacks, **settings: callbacks[0].schedule.start()
    data = dict.fromkeys(("x", "y", "images", "labels"), np.zeros(512))
    namespace = {"model": model, "LAMB": LAMB, "loss": "mse", "LEFT_OUT": ["bias"], "total_steps": 240, "epochs": 20}
    exec(compile(shown["code"], str(page), "exec"), namespace | data)
    (optimizer, _), (called,) = model.compile.call_args.args, model.fit.call_args_list
    (listener,) = called.kwargs["callbacks"]
    assert type(optimizer) is LAMB
    assert type(listener) is callbacks.AutoWU
    assert listener.schedule.steps_per_check == 2


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("keras_lsb.fixedpoint.depthwise", 2),
        ("keras_lsb.scaling.legw", 2),
        ("keras_lsb.scaling.noise_scale", 2),
        ("keras_lsb.scaling.critical_batch", 3),
        ("keras_lsb.scaling.plan", 1),
        ("keras_lsb.schedules.legw", 2),
        ("keras_lsb.topology.edge_colouring", 2),
        ("keras_lsb.topology.fixed", 1),
        ("keras_lsb.topology.graph", 1),
        ("keras_lsb.topology.simulation", 5),
        ("keras_lsb.topology.stability", 3),
    ],
)
def test_doctests(name, examples):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted >= examples


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name):
    package, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(package), attribute)
    assert (value.__doc__ or "").strip(), f"{name} has no docstring"
    assert re.search(rf"^::: {re.escape(name)}$", (pages.DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_public_names_are_found():
    assert {"keras_lsb.schedules.LEGW", "keras_lsb.optimizers.LARS", "keras_lsb.scaling.legw"} <= set(PUBLIC)
    assert {"keras_lsb.rules.trust_ratio", "keras_lsb.optimizers"} <= set(PUBLIC)


CALLS = sorted(set(CALL.findall((pages.DOCS / "optimizers.md").read_text(encoding="utf-8"))))


@pytest.mark.parametrize("call", CALLS)
def test_arguments_of_a_dialect_exist(call):
    names = {"LARS": LARS, "LAMB": LAMB, "AdamP": AdamP, "patterns": ["bias"]}
    optimizer = eval(call, names)
    assert type(optimizer) is names[call.partition("(")[0]]


def test_dialects_are_found():
    assert len(CALLS) >= 12


RESULT = {
    "caption": "Ten seeds.",
    "versions": {"keras": "3.0", "cores": 2},
    "rows": [{"method": "legw", "batch_size": 128, "mean": 98.765}, {"method": "sqrt", "batch_size": 8, "mean": None}],
}


@pytest.fixture
def results(tmp_path):
    (tmp_path / "mnist.json").write_text(json.dumps(RESULT))
    return tmp_path


def test_table_marker(results):
    page = hooks.render('before {{ table:mnist columns="batch_size, mean:.1f,method" }} after', results)
    assert page.splitlines() == [
        "before | batch size | mean | method |",
        "| --- | --- | --- |",
        "| 128 | 98.8 | legw |",
        "| 8 | - | sqrt |",
        "",
        "Ten seeds. Measured with keras 3.0, cores 2. after",
    ]


def test_table_without_a_caption():
    table = hooks.table({**RESULT, "caption": None}, "method")
    assert table.endswith("| sqrt |\n\nMeasured with keras 3.0, cores 2.")


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("{{ value:mnist:rows.0.mean:.1f }}", "98.8"),
        ("{{value:mnist:rows.0.mean}}", "98.765"),
        ("{{ value:mnist:rows.1.method }}", "sqrt"),
        ("{{ value:mnist:versions.keras }}", "3.0"),
        ("{{ value:mnist:rows[method=legw].mean:.1f }}", "98.8"),
        ("{{ value:mnist:rows[batch_size=8,method=sqrt].method }}", "sqrt"),
    ],
)
def test_value_marker(results, marker, text):
    assert hooks.render(f"a {marker} b {marker}", results) == f"a {text} b {text}"


@pytest.mark.parametrize(
    "marker",
    [
        "{{ value:absent:rows }}",
        "{{ value:mnist:rows.7.mean }}",
        "{{ value:mnist:rows.0.median }}",
        "{{ value:mnist:rows[method=linear].mean }}",
        "{{ value:mnist:rows[method=legw,batch_size=8].mean }}",
        "{{ value:mnist:rows[median=1].mean }}",
        "{{ value:mnist:rows[method].mean }}",
        "{{ value:mnist:versions[keras=3.0].cores }}",
        "{{ value:mnist:rows.0.method:.2f }}",
        "{{ value:mnist }}",
        '{{ table:mnist columns="median" }}',
        '{{ table:absent columns="mean" }}',
        "{{ table:mnist }}",
    ],
)
def test_marker_without_a_result_fails(results, marker):
    with pytest.raises(ValueError, match=re.escape(marker)):
        hooks.render(f"text {marker}", results)


def test_comments_are_dropped_before_their_markers_are_read(results):
    assert hooks.render("a\n<!-- {{ value:absent:rows }}\n-->\nb {{ other }}", results) == "a\nb {{ other }}"


def test_links_to_files_of_the_repository_lead_to_copies():
    page = "[a](../tests/test_legw.py), [b](legw.md#the-rule) and [c](../keras_lsb/rules/lars.py)"
    assert hooks.outside(page) == ["tests/test_legw.py", "keras_lsb/rules/lars.py"]
    rewritten = hooks.on_page_markdown(page)
    assert "[a](source/tests/test_legw.py.txt), [b](legw.md#the-rule)" in rewritten


def test_every_result_is_shown():
    """A result that no page shows is not evidence."""
    shown = "".join(map(pages.shown, PAGES))
    names = [path.stem for path in hooks.RESULTS.glob("*.json")]
    assert [name for name in names if not re.search(rf"\{{\{{\s*(table|value):{name}\b", shown)] == []
