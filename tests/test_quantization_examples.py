"""The example of quantization as a user starts it, on data that needs no download."""

from tests.example_run import finished, only
from tests.support import LEGACY, tensorflow_only
from tests.test_examples import results

pytestmark = tensorflow_only("training with tf.keras")

QUICK = ("--epochs", "8", "--tuning-epochs", "1", "--threads", "1")


def test_digits_become_an_integer_file(tmp_path):
    output = finished("quantize_cifar10", tmp_path, *QUICK)
    (result,) = results(tmp_path)
    rows = {row["file"]: row for row in result["rows"]}
    assert rows["float"]["accuracy"] > 80
    assert abs(rows["float"]["accuracy"] - result["keras_accuracy"]["float"]) < 0.5
    assert abs(rows["keras_lsb"]["accuracy"] - result["keras_accuracy"]["quantized"]) < 1, "three images of 360"
    # Twelve runs lost from -3 to 3 points: of 360 images one is more than a quarter of a point.
    assert rows["keras_lsb"]["accuracy"] > rows["float"]["accuracy"] - 8
    assert rows["float"]["float_operators"] > 0
    assert rows["keras_lsb"]["float_operators"] == 0
    assert rows["keras_lsb"]["size_ratio"] < 0.4
    # Three after an addition or the first convolution, and the last; tfmot folds the others.
    assert [layer["channels"] for layer in result["layers"]] == [16, 16, 32, 64]
    for layer in result["layers"]:
        assert layer["broken"] == 0
        assert layer["exact"] >= 0.95 * layer["channels"]
    assert ("is not supported" in result["stock_tfmot"]) == LEGACY
    assert only(tmp_path, "keras_lsb.tflite").stat().st_size == rows["keras_lsb"]["bytes"]
    assert "float operators: none" in output
