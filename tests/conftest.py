"""Four virtual CPU devices for the tests with several replicas, set before TensorFlow starts; one seed per test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.environ.get("KERAS_BACKEND") == "jax":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling takes longer than most tests do

import pytest

from keras_lsb import _keras
from tests.garbage import collect_rarely

if _keras.BACKEND == "tensorflow":
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )


def pytest_collection_finish():
    """After all imports."""
    collect_rarely()


@pytest.fixture(autouse=True)
def _seeded():
    """Seeds Python, NumPy and the backend before every test."""
    _keras.keras.utils.set_random_seed(7)
