"""`python -m tests.conadv_applications [name ...]`: networks of keras.applications trained, saved and loaded elsewhere.

The file is loaded in a process that cannot import the package, and must predict as the model did.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_lsb.training import ConAdv
from tests.conadv_problem import run_without_package
from tests.support import LEGACY, keras

NAMES = ("ResNet50", "EfficientNetB0")
SHAPE, CLASSES, BATCH = (64, 64, 3), 10, 8

_LOAD = """
model = keras.models.load_model("model.keras")
np.save("found.npy", model.predict(np.load("x.npy"), verbose=0))
"""


def trained(name: str, steps: int):
    """(the wrapper, images) after some steps on random images in [0, 255]."""
    keras.utils.set_random_seed(3)
    random = np.random.default_rng(3)
    x = random.uniform(0, 255, size=(steps * BATCH, *SHAPE)).astype("float32")
    y = random.integers(0, CLASSES, size=len(x))
    inner = getattr(keras.applications, name)(weights=None, classes=CLASSES, input_shape=SHAPE)
    model = ConAdv(inner, 4.0, staleness=1, value_range=(0.0, 255.0))
    model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", jit_compile=False)
    history = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0).history
    assert np.isfinite(history["adversarial_loss"]).all()
    assert len(model.adversarial_set.layers) > 20
    assert np.isfinite(model.evaluate(x[:BATCH], y[:BATCH], verbose=0))
    return model, x[:BATCH]


def check(name: str, steps: int = 3) -> None:
    """Trains, saves and loads one network."""
    model, x = trained(name, steps)
    with tempfile.TemporaryDirectory() as folder:
        model.save(str(Path(folder) / "model.keras"))
        np.save(Path(folder) / "x.npy", x)
        run_without_package(_LOAD, folder)
        found = np.load(Path(folder) / "found.npy")
    wanted = model.predict(x, verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert wanted.shape == (BATCH, CLASSES)


def main() -> int:
    for name in sys.argv[1:] or NAMES:
        start = time.perf_counter()
        check(name)
        print(json.dumps({"name": name, "tf_keras": LEGACY, "seconds": round(time.perf_counter() - start)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
