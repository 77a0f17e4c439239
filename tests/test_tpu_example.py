"""The Cloud TPU example: run without a TPU, and connected to a record of the calls in its place."""

import json

import pytest

from tests.example_run import ROOT, SHORT, finished, held_out_accuracy, only
from tests.support import TENSORFLOW, keras, legacy_only, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

on_tensorflow = tensorflow_only("tf.distribute")


@on_tensorflow
def test_tpu_example_reaches_the_accuracy_claimed_without_a_tpu(tmp_path):
    output = finished("tpu_train", tmp_path, "--tpu", "", "--threads", "1")
    assert output.splitlines()[-1].endswith("93.00 % claimed: passed.")
    assert "1 replicas. LEGW: peak learning rate 2 x schedule" in output
    result = json.loads(only(tmp_path, "result.json").read_text())
    assert result["steps"] == 30 * 5
    model = keras.models.load_model(only(tmp_path, "digits.keras"))
    assert held_out_accuracy(model) == pytest.approx(result["accuracy"], abs=1.5 / 360)


@legacy_only("a backup on a file system that is not local, which TPUStrategy needs,")
def test_tpu_example_on_a_file_system_of_tensorflow(tmp_path):
    """ram:// stands for gs://: nothing but tf.io sees it."""
    output = finished("tpu_train", tmp_path, *SHORT, "--epochs", "2", "--output", "ram://digits")
    assert "held-out accuracy" in output
    assert not list(ROOT.glob("ram:*"))
    assert not list(tmp_path.glob("ram:*"))


@pytest.fixture
def tpu_calls(monkeypatch):
    """The calls of TPUStrategy's set-up in their order, each with what it got."""
    calls = []

    def recorder(name):
        def record(*arguments, **keywords):
            calls.append((name, *arguments, *keywords.values()))
            return f"the {name}"

        return record

    import common

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", recorder("resolver"))
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", recorder("connection"))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", recorder("system"))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", recorder("strategy"))
    monkeypatch.setattr(tf, "__version__", "2.20.0")
    monkeypatch.setattr(common, "flavour", lambda: "tf_keras")
    return calls


@on_tensorflow
@pytest.mark.parametrize("name", ["local", "node-1"])
def test_tpu_is_connected_then_initialized(tpu_calls, name):
    import tpu_train

    assert tpu_train.connect(name) == "the strategy"
    rest = [(step, "the resolver") for step in ("connection", "system", "strategy")]
    assert tpu_calls == [("resolver", name), *rest]


@on_tensorflow
@pytest.mark.parametrize(("version", "flavour"), [("2.21.0", "tf_keras"), ("3.0.0", "tf_keras"), ("2.20.0", "keras")])
def test_tpu_with_what_does_not_support_it(tpu_calls, monkeypatch, version, flavour):
    import common
    import tpu_train

    monkeypatch.setattr(tf, "__version__", version)
    monkeypatch.setattr(common, "flavour", lambda: flavour)
    with pytest.raises(ValueError, match=f"Received: TensorFlow {version} with {flavour}"):
        tpu_train.connect("local")
    assert not tpu_calls
