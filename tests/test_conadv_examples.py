"""The example and the benchmark on ConAdv, as a user starts them, on data that needs no download."""

import json
import os
import subprocess
import sys

import numpy as np

from tests.example_run import finished, only
from tests.support import tensorflow_only
from tests.test_examples import results
from tests.workers import DEADLINE, ENVIRONMENT, ROOT

pytestmark = tensorflow_only("training with tf.keras")

MODES = ("none", "concurrent")

DIGITS = ("--modes", *MODES, "--epochs", "8", "--epsilon", "16", "--no-augment", "--threads", "1", "--blocks", "1")


def test_digits_are_learned_with_and_without_an_attack(tmp_path):
    output = finished("conadv_cifar10", tmp_path, *DIGITS)
    runs = {run["mode"]: run for run in results(tmp_path)}
    assert set(runs) == set(MODES)
    for run in runs.values():
        assert run["steps"] == 8 * 12
        assert run["held_out_accuracy"] > 0.8
        assert run["attacked_accuracy"] < run["held_out_accuracy"] - 0.05
        assert run["attacked_loss"] > run["held_out_loss"]
        assert len(run["history"]["loss"]) == 8
        assert np.isfinite(run["history"]["loss"]).all()
        assert not run["diverged"]
    history = runs["concurrent"]["history"]
    halves = (np.array(history["clean_loss"]) + history["adversarial_loss"]) / 2
    np.testing.assert_allclose(history["loss"], halves, rtol=1e-3)
    assert history["adversarial_loss"][-1] < history["adversarial_loss"][0] / 2
    assert "adversarial_loss" not in runs["none"]["history"]
    pictures = [path.read_bytes() for path in tmp_path.glob("**/images.png")]
    assert len(pictures) == 2
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    repeated = finished("conadv_cifar10", tmp_path, *DIGITS)
    assert repeated.splitlines()[-4:] == output.splitlines()[-4:]
    assert {run["mode"]: run for run in results(tmp_path)} == runs
    rows = {row["mode"]: row for row in json.loads(only(tmp_path, "conadv_cifar10.json").read_text())["rows"]}
    assert rows["concurrent"]["clean_loss"] == history["clean_loss"][-1]
    assert rows["concurrent"]["adversarial_loss"] == history["adversarial_loss"][-1]
    assert rows["none"]["clean_loss"] == runs["none"]["history"]["loss"][-1]
    assert rows["none"]["adversarial_loss"] is None


def test_quick_benchmark_writes_its_rows(tmp_path):
    command = [sys.executable, "benchmarks/conadv.py", "--quick", "--devices", "each", "--modes", "concurrent"]
    found = subprocess.run(
        [*command, "--results", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    times, memory = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("conadv", "conadv_memory"))
    assert [row["variant"] for row in times["rows"]] == [
        "sequential",
        "concurrent, attack on a second device",
        "concurrent",
        "plain training",
    ]
    assert times["rows"][0]["ratio"] == 1
    assert 0 < times["rows"][-1]["ratio"] < 1, "one pass takes less than three"
    assert f"goal: at most {times['rows'][1]['goal']}" in found.stdout
    (kept,) = memory["rows"]
    # ResNet-8 has 77,754 trainable weights without its two projections of 2,560.
    assert 0.311 < kept["kept_weights_mb"] < 0.33
    assert 0 < kept["second_normalization_mb"] < kept["kept_weights_mb"] / 50
    assert kept["batches_ahead_mb"] == round(2 * 8 * 32 * 32 * 3 * 4 / 1e6, 3)
