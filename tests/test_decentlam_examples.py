"""The examples on DecentLaM, as a user starts them, on data that needs no download."""

import json

import numpy as np
import pytest

from tests import workers
from tests.example_run import finished, only
from tests.support import keras, tensorflow_only
from tests.test_examples import results

pytestmark = tensorflow_only("tf.distribute")

ONE_SEED = ("--seeds", "0")


def test_bias_grows_with_momentum_in_dmsgd_only(tmp_path):
    output = finished("decentlam_bias", tmp_path)
    assert output.splitlines()[-1].endswith("10% claimed: passed.")
    rows = json.loads(only(tmp_path, "decentlam_bias.json").read_text())["rows"]
    assert len(rows) == 3 * 5
    # The table of the specification, on the ring at momentum 0.8.
    (known,) = (row for row in rows if (row["learning_rate"], row["momentum"]) == (1e-3, 0.8))
    assert f"{known['DecentLaM']:.4e} {known['DmSGD']:.4e}" == "1.2792e-06 1.2656e-05"
    assert only(tmp_path, "decentlam_bias.png").read_bytes().startswith(b"\x89PNG")


def test_decentlam_is_above_dmsgd_where_nodes_see_different_digits(tmp_path):
    output = finished("decentlam_mnist", tmp_path, *ONE_SEED)
    runs = {run["method"]: run for run in results(tmp_path)}
    assert set(runs) == {"DecentLaM", "DmSGD", "PmSGD"}
    final = {method: run["accuracies"][-1] for method, run in runs.items()}
    assert final["DecentLaM"] > final["DmSGD"] + 3, "7 points or more with the first two seeds"
    assert final["DecentLaM"] > final["PmSGD"] - 4
    assert runs["PmSGD"]["consensus_distances"] == [0.0] * 8
    assert runs["DmSGD"]["consensus_distances"][-1] > 0
    for run in runs.values():
        assert max(run["labels_per_node"]) <= 3
        assert np.isfinite(run["losses"]).all()
    assert only(tmp_path, "decentlam_mnist.png").read_bytes().startswith(b"\x89PNG")
    repeated = finished("decentlam_mnist", tmp_path, *ONE_SEED)
    assert repeated == output
    assert {run["method"]: run for run in results(tmp_path)} == runs


@pytest.mark.workers
def test_four_workers_learn_all_digits_from_three_or_four_each(tmp_path):
    import common

    arguments = ("decentlam_workers", "--threads", "1", "--epochs", "20", "--output", tmp_path)
    with workers.start(*arguments, workers=4, folder=tmp_path / "logs") as cluster:
        assert cluster.wait() == [0] * 4, cluster.log(0)
        output = cluster.output(0)
    assert "85.00 % claimed: passed." in output
    images, labels = common.load_digits(None)[1]
    saved = keras.models.load_model(only(tmp_path, "digits.keras")).predict(images, verbose=0).argmax(axis=1)
    assert f"held-out accuracy {100 * np.mean(saved == labels):.2f} %" in output
