"""The way from a small batch to an integer file as a user goes it, on data that needs no download."""

import html.parser
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.example_run import ROOT, finished, killed_after, logged_epochs, only, start
from tests.support import tensorflow_only

FLAGS = ("--threads", "1")
DEADLINE = 600.0  # seconds: six stages, on a machine that others use as well
STAGES = ["recipe", "plan", "lars", "autowu", "quantized", "file"]

needs_tensorflow = tensorflow_only("training with tf.keras")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the example has run once, killed within its first training and started again."""
    folder = tmp_path_factory.mktemp("end_to_end")
    killed_after(1, "end_to_end", folder, *FLAGS, deadline=DEADLINE)
    output = finished("end_to_end", folder, *FLAGS, deadline=DEADLINE)
    recipe = output.split("[2/6]")[0]
    assert "Epoch 1/6" not in recipe, "the recipe started again from its first epoch"
    assert "Epoch 6/6" in recipe
    assert [int(number) for number in re.findall(r"^\[(\d)/6\]", output, re.MULTILINE)] == [1, 2, 3, 4, 5, 6]
    return folder


def results_in(folder: Path) -> dict:
    return json.loads((folder / "runs" / "results.json").read_text())


def records_in(folder: Path) -> dict[str, dict]:
    """The record of each stage."""
    return {name: json.loads(only(folder, f"{name}-b*/result.json").read_text()) for name in STAGES}


@needs_tensorflow
def test_stages_follow_from_one_another(folder):
    results, records = results_in(folder), records_in(folder)
    rows = {row["stage"]: row for row in results["rows"]}
    assert [*rows] == STAGES
    assert len(results["claims"]) == 4
    assert all(claim["holds"] for claim in results["claims"])
    assert rows["lars"]["batch_size"] == rows["autowu"]["batch_size"] == 16 * rows["recipe"]["batch_size"] == 128
    noise, (chosen,) = results["noise_scale"], [row for row in results["plan"] if row["factor"] == 16]
    assert 8 < noise["low"] < noise["simple"]
    assert noise["measurements"] == rows["recipe"]["steps"], "those before the kill as well"
    ratio = (1 + 128 / noise["simple"]) / (1 + 8 / noise["simple"])  # of the examples at the two batch sizes
    assert chosen["epochs"] == pytest.approx(ratio * rows["recipe"]["epochs"])
    assert chosen["epochs_low"] < chosen["epochs"] < chosen["epochs_high"]
    assert rows["lars"]["epochs"] == rows["autowu"]["epochs"] == math.ceil(chosen["epochs"])
    for name in ("recipe", "lars", "autowu"):
        record = records[name]
        assert record["updates"] == record["steps"] == -(-1437 // record["batch_size"]) * record["epochs"]
        assert logged_epochs(only(folder, f"{name}-b*")) == [*range(record["epochs"])]
        assert len(record["rates"]["values"]) == len(record["rates"]["steps"])
    # A sixteenth of the batch: a quarter of the peak, but for what the cosine has taken from either.
    peaks = [max(records[name]["rates"]["values"]) for name in ("recipe", "lars")]
    assert peaks[1] / peaks[0] == pytest.approx(4, rel=0.1)
    assert rows["recipe"]["accuracy"] > 60, "a tenth is chance"
    assert rows["lars"]["accuracy"] > 60
    assert results["autowu"]["reason"] in ("gaussian process", "limit")
    assert results["autowu"]["switch_step"] <= rows["autowu"]["steps"] // 2


@needs_tensorflow
def test_the_file_is_integer_and_proved(folder):
    results = results_in(folder)
    files = {row["file"]: row for row in results["files"]}
    assert files["float"]["float_operators"] > 0
    assert files["keras_lsb"]["float_operators"] == 0
    assert files["keras_lsb"]["size_ratio"] < 0.4
    assert only(folder, "keras_lsb.tflite").stat().st_size == files["keras_lsb"]["bytes"]
    assert [layer["channels"] for layer in results["layers"]] == [16, 16, 32, 64]
    assert all(layer["broken"] == 0 for layer in results["layers"])
    assert results["report"].endswith("OK")


class Page(html.parser.HTMLParser):
    """The elements of a page; fails where an end has no start."""

    EMPTY = ("meta", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.ids, self.links, self.tags = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.ids += [named["id"]] if tag == "section" else []
        self.links += [named[name] for name in ("src", "href", "xlink:href", "srcset", "data") if name in named]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@needs_tensorflow
def test_the_report_needs_nothing_but_itself(folder):
    text = (folder / "runs" / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.ids == ["summary", *STAGES, "versions"]
    assert page.tags.count("svg") == 5
    assert page.links
    assert all(link.startswith("#") for link in page.links)
    assert not {"script", "link", "img", "iframe", "object"} & {*page.tags}
    assert "@import" not in text
    assert "url(http" not in text
    results = results_in(folder)
    for row in results["rows"]:
        assert row["accuracy"] is None or f"{row['accuracy']:.2f}" in text
    assert ">FAIL<" not in text
    assert "end_to_end" in text[text.index('id="versions"') :], "the command"


@needs_tensorflow
def test_only_what_is_missing_is_done_again_and_a_claim_that_fails_is_an_error(folder):
    records, before = records_in(folder), results_in(folder)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("**/result.json")}
    removed = only(folder, "plan-b*")
    shutil.rmtree(removed)
    with start("end_to_end", folder, *FLAGS, "--tolerance", "-100", deadline=DEADLINE) as process:
        assert process.wait() == [1]
        output, log = process.output(0), process.log(0)
    assert output.count("was done before") == 5
    assert "Epoch" not in output
    assert "claims that do not hold" in log
    assert "at most -100 points below" in log
    assert "floating point" not in log, "only what failed is named"
    unchanged = {path: time for path, time in written.items() if path.parent != removed}
    assert {path: path.stat().st_mtime_ns for path in unchanged} == unchanged
    assert records_in(folder)["plan"]["plan"] == records["plan"]["plan"]
    again = results_in(folder)
    assert [claim["holds"] for claim in again["claims"]] == [True, False, True, True]
    assert again["files"] == before["files"]
    assert (folder / "runs" / "report.html").read_text().count(">FAIL<") == 1


def test_make_says_what_it_needs():
    refused = subprocess.run(["make", "-n", "report"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "QUICK=1" in refused.stderr
    assert "DATA_DIR" in refused.stderr
