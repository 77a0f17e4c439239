"""The examples, each in a process of its own as a user starts it, on data that needs no download."""

import csv
import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.example_run import EXAMPLES, finished, killed_after, logged_epochs, start
from tests.support import tensorflow_only

SHORT = ("--limit-steps", "3", "--epochs", "2", "--threads", "1", "--hold-out")

pytestmark = tensorflow_only("training with tf.keras")


def run(example: str, folder: Path, *flags: str) -> str:
    """What the example printed; fails with its output if it did."""
    return finished(example, folder, "--output", folder, *flags)


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("**/result.json"))]


def check_record(folder: Path) -> dict:
    """The only result below `folder`, after checks that two epochs ran, were logged and brought the loss down."""
    (result,) = results(folder)
    assert len(result["losses"]) == 2
    assert np.isfinite(result["losses"]).all()
    assert result["losses"][1] < result["losses"][0]
    assert not result["diverged"]
    assert logged_epochs(folder) == [0, 1]
    return result


def test_demo_compares_all_rules_at_all_batch_sizes(tmp_path):
    output = run("demo", tmp_path, "--quick")
    (summary,) = results(tmp_path)
    variants = {(result["rule"], result["factor"]) for result in summary["results"]}
    rules = ("legw", "linear", "linear-warmup", "sqrt")
    assert variants == {("legw", 1)} | {(rule, factor) for rule in rules for factor in (8, 32)}
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert summary["versions"]["cores"] == os.cpu_count()
    baseline = summary["results"][0]
    assert baseline["accuracy"] > 80, "four epochs at the base batch size learn the digits"
    assert f"{baseline['accuracy']:.2f}" in output
    for result in summary["results"]:
        assert len(result["learning_rates"]) == result["steps"]
        warms_up = result["rule"] in ("legw", "linear-warmup")
        assert (result["learning_rates"][0] == 0) == warms_up


@pytest.mark.parametrize("example", ["ptb_lstm", "cifar10_resnet"])
def test_example_trains_and_records(example, tmp_path):
    run(example, tmp_path, *SHORT)
    check_record(tmp_path)


def test_finished_run_is_recorded_and_not_repeated(tmp_path):
    first = run("mnist_lstm", tmp_path, *SHORT)
    recorded = check_record(tmp_path)
    second = run("mnist_lstm", tmp_path, *SHORT)
    assert results(tmp_path) == [recorded]
    assert "Epoch 1/2" in first
    assert "Epoch" not in second
    assert second.splitlines()[-1] == first.splitlines()[-1]


def test_a_seed_gives_the_same_crops_and_mirrored_images_again(monkeypatch):
    import tensorflow as tf

    monkeypatch.syspath_prepend(EXAMPLES)
    resnet = importlib.import_module("cifar10_resnet")
    images = np.random.default_rng(0).integers(0, 256, (128, 16, 16, 3), "uint8")

    def epochs(seed):
        dataset = resnet.batches(tf, images, np.arange(128), 32, seed=seed)
        batches = [[*dataset.as_numpy_iterator()] for _ in range(2)]
        return [[np.concatenate(parts) for parts in zip(*epoch, strict=True)] for epoch in batches]

    first, again, other = epochs(0), epochs(0), epochs(1)
    np.testing.assert_array_equal(first[0][0], again[0][0])
    np.testing.assert_array_equal(first[1][0], again[1][0])
    assert (first[0][0] != first[1][0]).any()
    assert (first[0][0] != other[0][0]).any()
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)], constant_values=resnet.MEAN).astype("float32")
    found = np.zeros((5, 5, 2), int)  # images cut out from each row and column, as they are and mirrored
    for image, label in zip(*first[0], strict=True):
        for row, column, mirrored in np.ndindex(found.shape):
            crop = resnet.scaled(padded[label, row : row + 16, column : column + 16])
            found[row, column, mirrored] += np.array_equal(image, crop[:, ::-1] if mirrored else crop)
    assert found.sum() == 128
    assert all(found.sum(axes).min() > 10 for axes in [(1, 2), (0, 2)])
    assert 40 < found[:, :, 0].sum() < 88


SWEEP = ("--batch-sizes", "8", "32", "128", "--goals", "1.5", "1", "--rates", "1", "--seeds", "0", "--threads", "1")


def test_sweep_measures_the_critical_batch_and_continues(tmp_path):
    run("critical_batch", tmp_path, *SWEEP)
    fits = list(csv.DictReader((tmp_path / "critical_batch.csv").open()))
    record = json.loads((tmp_path / "critical_batch.json").read_text())
    assert [float(fit["goal"]) for fit in fits] == [1.5, 1.0]
    for fit in fits:
        assert 1 < float(fit["critical_batch"]) < 200
        assert float(fit["log_residual"]) < 0.5
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    for goal in (1.5, 1.0):
        steps = [row["steps"] for row in record["steps"] if row["goal"] == goal]
        assert steps == sorted(steps, reverse=True)
    runs = tmp_path / "runs.csv"
    lines = runs.read_text().splitlines(keepends=True)
    runs.write_text("".join(lines[:-2]))
    run("critical_batch", tmp_path, *SWEEP)
    continued = runs.read_text().splitlines(keepends=True)
    assert continued[: len(lines) - 2] == lines[:-2]
    assert len(continued) == len(lines)
    assert json.loads((tmp_path / "critical_batch.json").read_text())["fits"] == record["fits"]
    with start("critical_batch", tmp_path, "--output", tmp_path, *SWEEP, "--goals", "1") as refused:
        assert refused.wait() != [0]
        assert "--output" in refused.log(0)


# Not smaller batches: their statistics are so noisy that the accuracy of 180 steps depends on a machine's rounding.
AUTOWU = ("--batch-sizes", "64", "128", "--epochs", "12", "--limit-steps", "15", "--blocks", "1", "--threads", "1")


def test_autowu_needs_no_rate_for_two_optimizers_at_two_batch_sizes(tmp_path):
    output = run("autowu_cifar10", tmp_path, *AUTOWU)
    runs = results(tmp_path)
    assert {(result["optimizer"], result["batch_size"]) for result in runs} == {
        (optimizer, batch_size) for optimizer in ("lamb", "adamp") for batch_size in (64, 128)
    }
    for result in runs:
        assert result["reason"] == "gaussian process"
        assert 40 < result["switch_step"] < result["steps"] // 2
        assert 1e-3 < result["peak"] < 0.1
        assert result["held_out_accuracy"] > 0.6, "a tenth is chance, 0.93 the least of 16 runs"
        assert not result["diverged"]
    logs = [list(csv.DictReader(path.open())) for path in tmp_path.glob("*/log.csv")]
    assert [len(log) for log in logs] == [12] * 4
    assert all(log[0]["autowu_phase"] == "0.0" and log[-1]["autowu_phase"] == "1.0" for log in logs)
    assert len([path for path in tmp_path.glob("*.png") if path.read_bytes().startswith(b"\x89PNG")]) == 4
    repeated = run("autowu_cifar10", tmp_path, *AUTOWU)
    assert "Epoch" not in repeated
    assert repeated.splitlines() == output.splitlines()[-5:]
    assert results(tmp_path) == runs


def test_killed_run_continues_at_the_epoch_it_had_reached(tmp_path):
    # Epochs of a few seconds: the kill arrives within one of them, and never after the last.
    flags = ("--batch-size", "2", "--limit-steps", "300", "--epochs", "5", "--threads", "1", "--hold-out")
    killed_after(1, "mnist_lstm", tmp_path, "--output", tmp_path, *flags)
    before = logged_epochs(tmp_path)
    assert before[:2] == [0, 1]
    assert not results(tmp_path), "the run was killed too late to test anything"
    output = run("mnist_lstm", tmp_path, *flags)
    assert "Epoch 1/5" not in output, "the run started again from the first epoch"
    assert logged_epochs(tmp_path) == [0, 1, 2, 3, 4]
    assert len(results(tmp_path)) == 1
