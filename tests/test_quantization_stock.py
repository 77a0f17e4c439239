"""What stock tfmot does with the same graphs: what the page on integer-only models says of it."""

import pytest

from keras_lsb.quantization import quantize_model
from tests.quantization_problem import examples, functional, needs_tfmot, operators
from tests.test_quantization_tfmot import FOLDED, STANDALONE, tfmot

pytestmark = pytest.mark.filterwarnings("ignore")  # of the converter

REJECTED = ("alone, rank 2", "alone, rank 4", "add-bn-relu-conv", "conv with relu", "after a relu", "pool")
IN_FLOAT = ("dense-relu", "transposed-relu", "dilated-relu")


@needs_tfmot
@pytest.mark.parametrize("name", [*REJECTED, "branching convolution", "two consumers"])
def test_rejected(name):
    with pytest.raises(RuntimeError, match=r"Layer bn:.* is not supported"):
        tfmot().quantize_model(functional(*STANDALONE[name]))


def floats(model) -> list[str]:
    """Operators with float tensors in a quantized model's file, but for the ends; converted as tfmot's users do."""
    import tensorflow as tf

    model(examples(model), training=True)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    found = operators(converter.convert())
    return [name for name, has_floats in found[1:-1] if has_floats]


@needs_tfmot
@pytest.mark.parametrize("name", IN_FLOAT)
def test_left_in_float(name):
    assert floats(tfmot().quantize_model(functional(*STANDALONE[name])))


@needs_tfmot
def test_one_scale_per_kernel_is_left_in_float():
    tools = tfmot()
    scheme = tools.default_8bit.Default8BitQuantizeScheme(disable_per_axis=True)
    annotated = tools.quantize_annotate_model(functional(*FOLDED["conv-relu"]))
    assert "CONV_2D" in floats(tools.quantize_apply(annotated, scheme))


@needs_tfmot
@pytest.mark.parametrize("name", [*IN_FLOAT, "alone, rank 3"])
def test_ours_are_integers_through_the_converter_alone_too(name):
    assert floats(quantize_model(functional(*STANDALONE[name]))) == []


@needs_tfmot
def test_folded():
    assert floats(tfmot().quantize_model(functional(*FOLDED["conv-relu"]))) == []
