"""Quantization-aware models: their integers after training, saved, loaded and verified elsewhere."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_lsb.quantization import Report, quantize_model, quantize_scope, to_tflite, verify
from tests.quantization_problem import examples, fixed_points, functional, needs_tfmot
from tests.support import keras

layers = keras.layers
IMAGE = (6, 6, 3)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the converter and of h5 files


@functools.cache
def trained():
    """A quantization-aware model after training, with each of our configs; its data, and its file."""

    def build(x):
        value = layers.ReLU()(layers.Conv2D(4, 3)(x))
        value = layers.BatchNormalization(name="one")(value)
        return layers.ReLU()(layers.BatchNormalization(name="two")(layers.MaxPooling2D(2)(value)))

    found = quantize_model(functional(IMAGE, build))
    data = examples(found)
    found.compile("sgd", "mse")
    found.fit(data, np.zeros((len(data), *found.output_shape[1:])), epochs=2, verbose=0)
    return found, data, to_tflite(found)


@needs_tfmot
def test_integers_of_a_trained_model():
    model, data, content = trained()
    found = verify(content, model, data)
    assert isinstance(found, Report)
    assert found.ok, str(found)
    assert [(layer.name, layer.exact, layer.mismatches) for layer in found.layers] == [("one", 4, 0), ("two", 4, 0)]
    assert [output.largest for output in found.outputs] == [0]


@needs_tfmot
@pytest.mark.parametrize("suffix", [".h5", "", ".keras"], ids=["h5", "SavedModel", "keras"])
def test_quantization_aware_models_are_saved_and_loaded(tmp_path, suffix):
    model, data, content = trained()
    path = tmp_path / f"model{suffix}"
    model.save(path, **({} if suffix else {"save_format": "tf"}))
    with quantize_scope():
        again = keras.models.load_model(path)
    np.testing.assert_array_equal(again.predict(data, verbose=0), model.predict(data, verbose=0))
    assert fixed_points(again) == fixed_points(model)
    assert to_tflite(again) == content
    if suffix == ".keras":
        again.save(tmp_path / "again.keras")
        again.fit(data, np.zeros((len(data), *model.output_shape[1:])), verbose=0)
        assert (again.predict(data, verbose=0) != model.predict(data, verbose=0)).any()
        with quantize_scope():
            last = keras.models.load_model(tmp_path / "again.keras")
        np.testing.assert_array_equal(last.predict(data, verbose=0), model.predict(data, verbose=0))


@needs_tfmot
def test_command_in_a_process_of_its_own(tmp_path):
    """Where nothing has called tfmot or this package before."""
    model, data, content = trained()
    model.save(tmp_path / "model.h5")
    np.save(tmp_path / "data.npy", data)
    (tmp_path / "model.tflite").write_bytes(content)
    command = [sys.executable, "-m", "keras_lsb.quantization", "model.tflite", "--model", "model.h5"]
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    found = subprocess.run(
        [*command, "--data", "data.npy"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.rstrip().endswith("OK")


@needs_tfmot
def test_tfmots_own_scope_loads_h5(tmp_path):
    import tensorflow_model_optimization as tfmot

    model, data, _ = trained()
    model.save(tmp_path / "model.h5")
    with tfmot.quantization.keras.quantize_scope():
        again = keras.models.load_model(tmp_path / "model.h5", compile=False)
    np.testing.assert_array_equal(again.predict(data, verbose=0), model.predict(data, verbose=0))
