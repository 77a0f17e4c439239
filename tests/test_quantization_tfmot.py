"""Quantization-aware training: each graph that tfmot folds, rejects or leaves in float ends as integers."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from keras_lsb import quantization
from keras_lsb.quantization import FixedPointNormalization, flatten_model, quantize_model, quantize_scheme, verify
from tests.quantization_problem import (
    converted,
    examples,
    fixed_points,
    functional,
    needs_tfmot,
    operators,
    randomized,
)
from tests.support import keras, keras3_only

layers = keras.layers
IMAGE = (5, 5, 3)
pytestmark = pytest.mark.filterwarnings("ignore")  # of the converter and of h5 files


def chain(*parts):
    """A function of the input: layers one after the other, each given as a function that makes it."""
    return lambda x: functools.reduce(lambda value, part: part()(value), parts, x)


BN = functools.partial(layers.BatchNormalization, name="bn")
RELU, CONV = layers.ReLU, functools.partial(layers.Conv2D, 4, 3, use_bias=False)
SEPARABLE = functools.partial(layers.SeparableConv2D, 4, 3, use_bias=False)
DEPTHWISE = functools.partial(layers.DepthwiseConv2D, 3, use_bias=False)
TRANSPOSED = functools.partial(layers.Conv2DTranspose, 4, 3, use_bias=False)
SWISH = functools.partial(layers.Activation, "swish")
RELU6 = functools.partial(layers.ReLU, 6.0)


def add_bn_relu(x):
    value = CONV(padding="same")(x)
    return CONV(name="last")(RELU()(BN()(layers.Add()([value, CONV(padding="same")(x)]))))


def branching(x):
    value = CONV(padding="same")(x)
    return layers.Add()([BN()(value), value])


def two_consumers(x):
    value = BN()(x)
    return layers.Concatenate()([CONV(padding="same")(value), RELU()(value)])


FOLDED = {
    "conv": (IMAGE, chain(CONV, BN)),
    "conv-relu": (IMAGE, chain(CONV, BN, RELU)),
    "conv-relu6": (IMAGE, chain(CONV, BN, RELU6)),
    "conv-swish": (IMAGE, chain(CONV, BN, SWISH)),
    "depthwise-relu": (IMAGE, chain(DEPTHWISE, BN, RELU)),
    "separable-relu": (IMAGE, chain(SEPARABLE, BN, RELU)),
}
STANDALONE = {
    "alone, rank 2": ((6,), chain(BN)),
    "alone, rank 3": ((4, 3), chain(BN)),
    "alone, rank 4": (IMAGE, chain(BN)),
    "add-bn-relu-conv": (IMAGE, add_bn_relu),
    "conv with relu": (IMAGE, chain(lambda: CONV(activation="relu"), BN)),
    "after a relu": (IMAGE, chain(CONV, RELU, BN)),
    "dense, then a relu": ((6,), chain(lambda: layers.Dense(5), RELU, BN)),
    "branching convolution": (IMAGE, branching),
    "two consumers": (IMAGE, two_consumers),
    "pool": (IMAGE, chain(CONV, lambda: layers.MaxPooling2D(2), BN)),
    "relu6": (IMAGE, chain(BN, RELU6)),
    "activation relu": (IMAGE, chain(BN, lambda: layers.Activation("relu"))),
    "leaky": (IMAGE, chain(BN, lambda: layers.ReLU(negative_slope=0.2))),
    "swish": (IMAGE, chain(BN, SWISH)),
    "dense-relu": ((6,), chain(lambda: layers.Dense(5), BN, RELU)),
    "dense": ((6,), chain(lambda: layers.Dense(5), BN)),
    "transposed-relu": (IMAGE, chain(TRANSPOSED, BN, RELU)),
    "dilated-relu": ((7, 7, 3), chain(lambda: CONV(dilation_rate=2), BN, RELU)),
    "synchronized": (IMAGE, chain(lambda: layers.BatchNormalization(synchronized=True, name="bn"))),
    "sequential": (IMAGE, None),
}


@functools.cache
def quantized(shape, build, scheme=None):
    """(quantized model, its data, its file, the report)."""
    if build is None:
        model = randomized(keras.Sequential([layers.Input(shape), RELU(), BN()]))
    else:
        model = functional(shape, build)
    if scheme is None:
        found = quantize_model(model)
    else:
        tools = tfmot()
        found = tools.quantize_apply(tools.quantize_annotate_model(model), scheme())
    data = examples(found)
    found(data, training=True)
    content = converted(found)
    return found, data, content, verify(content, found, data)


def tfmot():
    import tensorflow_model_optimization

    return tensorflow_model_optimization.quantization.keras


def assert_integer(content, report):
    assert [name for name, has_floats in operators(content) if has_floats] == []
    assert report.ok, str(report)
    assert report.float_operators == ()
    assert max(output.largest for output in report.outputs) <= 1, str(report)


@needs_tfmot
@pytest.mark.parametrize("name", FOLDED)
def test_what_tfmot_folds_stays_folded(name):
    model, _, content, report = quantized(*FOLDED[name])
    assert_integer(content, report)
    assert fixed_points(model) == []
    assert not {"MUL", "ADD"} & {one for one, _ in operators(content)} - ({"MUL"} if "swish" in name else set())


@needs_tfmot
@pytest.mark.parametrize("name", STANDALONE)
def test_every_other_normalization_is_an_integer_operator(name):
    model, _, content, report = quantized(*STANDALONE[name])
    assert_integer(content, report)
    assert fixed_points(model) == ["bn"]
    (layer,) = report.layers
    assert layer.exact >= layer.channels - 1
    assert layer.largest <= 1


@needs_tfmot
@pytest.mark.parametrize(("disabled", "expected"), [(False, []), (True, ["bn"])])
def test_through_tfmots_own_calls_and_with_one_scale_per_kernel(disabled, expected):
    scheme = functools.partial(quantize_scheme, disable_per_axis=disabled)
    model, _, content, report = quantized(*FOLDED["conv-relu"], scheme)
    assert_integer(content, report)
    assert fixed_points(model) == expected


@needs_tfmot
@pytest.mark.parametrize(
    ("shape", "build"),
    [
        (IMAGE, chain(CONV, lambda: layers.LayerNormalization(name="odd"))),
        ((6, 3), chain(lambda: layers.Conv1D(4, 3, name="odd"))),
        ((6, 3), chain(lambda: layers.LSTM(4, name="odd"))),
    ],
)
def test_what_cannot_be_quantized_is_named(shape, build):
    with pytest.raises(ValueError, match=r"Layer 'odd' has no quantization.*`QuantizeConfig` of your own.*Received"):
        quantize_model(functional(shape, build))


@needs_tfmot
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lambda: layers.ReLU(4.0, name="odd"),
            r"Layer 'odd' ends in float.*ReLU\(6.0\).*Received: ReLU with max_value=4",
        ),
        (lambda: layers.Activation("elu", name="odd"), "Layer 'odd' has an activation.*Received: .*activation=elu"),
        (
            lambda: CONV(activation="swish", name="odd"),
            "Layer 'odd' ends in float.*`Activation` or `ReLU` layer behind",
        ),
        (lambda: CONV(activation="elu", name="odd"), "Layer 'odd' ends in float, or fails,.*activation=elu"),
        (lambda: TRANSPOSED(activation="relu", name="odd"), "Layer 'odd' ends in float.*Received: Conv2DTranspose"),
    ],
)
def test_what_tfmot_accepts_and_leaves_in_float_is_named(layer, message):
    with pytest.raises(ValueError, match=message):
        quantize_model(functional(IMAGE, chain(layer, BN)))


@needs_tfmot
def test_one_dimensional_separable_convolution_is_named():
    layer = layers.SeparableConv1D(4, 3, name="odd")
    with pytest.raises(ValueError, match=r"Layer 'odd' is replaced by `Lambda` layers.*SeparableConv2D"):
        quantize_model(functional((7, 4), chain(lambda: layer, BN)))


@needs_tfmot
def test_a_layer_that_is_used_twice_is_named():
    def build(x):
        shared = layers.BatchNormalization(name="shared")
        return layers.Add()([shared(x), shared(RELU()(x))])

    with pytest.raises(ValueError, match=r"Layer 'shared'.*used more than once"):
        quantize_model(functional(IMAGE, build))


def output_only():
    """A config of a user's own that quantizes the output of a layer."""
    tools = tfmot()

    class OutputOnly(tools.QuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return []

        def set_quantize_weights(self, layer, quantize_weights):
            return None

        def get_output_quantizers(self, layer):
            average = tools.quantizers.MovingAverageQuantizer
            return [average(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)]

        def get_config(self):
            return {}

        get_activations_and_quantizers = get_weights_and_quantizers
        set_quantize_activations = set_quantize_weights

    return OutputOnly


@needs_tfmot
def test_a_normalization_with_a_config_of_its_own_is_left_alone():
    tools, config = tfmot(), output_only()
    inputs = keras.Input(IMAGE)
    value = tools.quantize_annotate_layer(BN(), config())(CONV()(inputs))
    with tools.quantize_scope({"OutputOnly": config}):
        found = quantize_model(randomized(keras.Model(inputs, RELU()(value))))
    assert fixed_points(found) == []
    report = verify(converted(found), found, examples(found))
    assert not report.ok
    assert any("bn" in name for name in report.float_operators), str(report)
    assert "FAILED" in str(report)


@needs_tfmot
def test_a_normalization_without_annotation_is_left_alone():
    tools = tfmot()

    def annotated(layer):
        return layer if layer.name == "bn" else tools.quantize_annotate_layer(layer)

    model = keras.models.clone_model(functional(IMAGE, chain(BN, RELU, CONV)), clone_function=annotated)
    found = tools.quantize_apply(model, quantize_scheme())
    assert fixed_points(found) == []
    assert any(type(layer) is layers.BatchNormalization for layer in found.layers)


def nested():
    inner = keras.Sequential([layers.Input(IMAGE), CONV(padding="same", name="conv"), BN(), RELU()], name="inner")
    inputs = keras.Input(IMAGE)
    value = inner(BN()(inputs))
    deeper = keras.Model(inner.inputs, inner(inner.inputs[0]), name="outer")
    return randomized(keras.Model(inputs, layers.Add()([value, deeper(inputs)])))


@needs_tfmot
def test_nested_models_become_one():
    inputs = keras.Input(IMAGE)
    inner = keras.Sequential([layers.Input(IMAGE), RELU(), BN()], name="inner")
    model = randomized(keras.Model(inputs, layers.Add()([inner(BN()(inputs)), inputs])))
    flat, data = flatten_model(model), examples(model)
    assert not any(isinstance(layer, keras.Model) for layer in flat.layers)
    np.testing.assert_allclose(flat.predict(data, verbose=0), model.predict(data, verbose=0), atol=1e-6)
    found = quantize_model(model)
    assert sorted(fixed_points(found)) == ["bn", "inner_bn"]
    content = converted(found)
    assert_integer(content, verify(content, found, data))


@needs_tfmot
def test_flattening_keeps_shared_layers_and_models_without_nested_ones():
    model = nested()
    data = examples(model)
    np.testing.assert_allclose(flatten_model(model).predict(data, verbose=0), model.predict(data, verbose=0), atol=1e-6)
    plain = functional(IMAGE, chain(BN))
    assert flatten_model(plain) is plain


@needs_tfmot
def test_a_nested_model_that_was_not_flattened_is_named():
    tools = tfmot()
    inputs = keras.Input(IMAGE)
    inner = keras.Sequential([layers.Input(IMAGE), BN()], name="inner")
    model = keras.Model(inputs, tools.quantize_annotate_layer(RELU())(inner(inputs)))
    with pytest.raises(ValueError, match=r"'inner' is a layer of another model.*flatten_model"):
        tools.quantize_apply(model, quantize_scheme())


@needs_tfmot
def test_a_model_without_a_graph_is_named():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    inputs = keras.Input(IMAGE)
    with pytest.raises(ValueError, match="The model 'own' has no graph of layers"):
        quantize_model(keras.Model(inputs, Own(name="own")(inputs)))


@needs_tfmot
def test_channels_first_is_refused_by_name():
    with pytest.raises(ValueError, match="'bn' takes inputs of rank 2, 3 or 4 with the channels last"):
        quantize_model(functional((3, 5, 5), chain(lambda: layers.BatchNormalization(axis=1, name="bn"))))


@needs_tfmot
def test_training_updates_the_statistics_and_the_weights():
    model, data = quantized(*STANDALONE["add-bn-relu-conv"])[:2]
    found = quantize_model(functional(*STANDALONE["add-bn-relu-conv"]))
    layer = next(one for one in found._flatten_layers() if isinstance(one, FixedPointNormalization))
    before = [variable.numpy().copy() for variable in layer.variables]
    found.compile("sgd", "mse")
    found.fit(data, np.ones((len(data), *model.output_shape[1:])), epochs=2, verbose=0)
    assert len(before) == 4
    assert all((variable.numpy() != old).any() for variable, old in zip(layer.variables, before, strict=True))


@needs_tfmot
def test_the_training_on_the_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "quantization.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    model = functional(IMAGE, chain(RELU, BN, layers.Flatten, lambda: layers.Dense(4)))
    monkeypatch.chdir(tmp_path)
    names = {"quantization": quantization, "keras": keras, "np": np, "model": model, "images": examples(model, 64)}
    exec(code, names)
    assert verify(names["file"], names["model"], names["images"]).ok


@keras3_only("a model that tfmot refuses")
@pytest.mark.parametrize("call", [quantize_scheme, lambda: quantize_model(functional((3,), chain(BN)))])
def test_keras_3_is_told_what_to_do(call):
    with pytest.raises(
        ValueError, match=r"TF_USE_LEGACY_KERAS=1.*FixedPointNormalization.*to_tflite.*Received: Keras 3"
    ):
        call()


@needs_tfmot
def test_a_model_of_keras_3_is_told_what_to_do():
    import keras as keras3

    model = keras3.Sequential([keras3.Input((3,)), keras3.layers.BatchNormalization()])
    with pytest.raises(ValueError, match=r"`model` must be a model of tf_keras.*to_tflite.*Received"):
        quantize_model(model)
