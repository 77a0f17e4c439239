"""Keras 3 on TensorFlow, tf_keras and Keras 3 on JAX give the same weights, the last without TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import registry
from tests.support import LEGACY, TENSORFLOW

# All flavours are started here, whichever runs this.
pytestmark = pytest.mark.skipif(LEGACY or not TENSORFLOW, reason="Keras 3 on TensorFlow compares all flavours")

ROOT = Path(__file__).parent.parent
FLAVOURS = {
    "keras3": ({"KERAS_BACKEND": "tensorflow"}, [], ["tensorflow", False]),
    "tf_keras": ({"TF_USE_LEGACY_KERAS": "1"}, [], ["tensorflow", True]),
    "jax": ({"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}, ["--without-tensorflow"], ["jax", False]),
}


@pytest.fixture(scope="session")
def weights_by_flavour():
    results = {}
    for flavour, (settings, arguments, _) in FLAVOURS.items():
        inherited = {key: os.environ[key] for key in os.environ if key not in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS")}
        done = subprocess.run(
            [sys.executable, "-m", "tests.flavour_updates", *arguments],
            cwd=ROOT,
            env={**inherited, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results[flavour] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_flavour_is_what_it_says(weights_by_flavour, flavour):
    assert weights_by_flavour[flavour]["flavour"] == FLAVOURS[flavour][2]
    assert weights_by_flavour[flavour]["tensorflow"] == (flavour != "jax")


@pytest.mark.parametrize("flavour", ["tf_keras", "jax"])
@pytest.mark.parametrize("name", registry.OPTIMIZERS)
def test_same_weights_after_20_updates(weights_by_flavour, flavour, name):
    reference = weights_by_flavour["keras3"][name]
    for path, one, other in zip(registry.SHAPES, reference, weights_by_flavour[flavour][name], strict=True):
        scale = max(1.0, np.abs(one).max())
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6 * scale, err_msg=path)
