"""Integer files and their verification: which operator is which layer, what is exact, and what a report says."""

import functools

import numpy as np
import pytest

from keras_lsb.quantization import (
    FixedPointNormalization,
    fixed_point_model,
    quantize_scope,
    to_tflite,
    verify,
)
from keras_lsb.quantization.__main__ import main
from keras_lsb.quantization.convert import normalizations, operator_affine
from keras_lsb.quantization.litert import LiteRTFile
from keras_lsb.quantization.report import LayerReport
from tests.quantization_problem import examples, fixed_points, functional, operators, randomized
from tests.support import BACKEND, keras, keras3_only

layers = keras.layers
IMAGE = (6, 6, 3)
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the converter and of h5 files
    pytest.mark.skipif(BACKEND != "tensorflow", reason=f"the converter needs TensorFlow, this is {BACKEND}"),
]
KERNELS = ("xnnpack", "builtin", "reference")


def small(x):
    """Five normalizations: three of equal weights, two of them in a row, one in a nested model, one of rank 2."""
    same = [FixedPointNormalization(name=name) for name in ("first", "second")]
    inner = keras.Sequential([layers.Input((6, 6, 8)), FixedPointNormalization(name="first"), layers.ReLU()], name="in")
    value = layers.ReLU()(layers.Conv2D(8, 3, padding="same")(x))
    value = same[1](same[0](value))
    value = layers.Add()([value, inner(value)])
    value = layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(FixedPointNormalization(name="third")(value)))
    return FixedPointNormalization(name="fourth")(layers.Dense(13)(value))


@functools.cache
def model():
    found = functional(IMAGE, small)
    one, two, three = (layer for layer in normalizations(found) if layer.name in ("first", "second"))
    for other in (two, three):
        other.set_weights(one.get_weights())
    return found


@functools.cache
def file(kernel="xnnpack"):
    return to_tflite(model(), examples(model()), target_kernel=kernel)


@functools.cache
def report(kernel="xnnpack", made_for=None):
    return verify(file(made_for or kernel), model(), examples(model()), target_kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_layer_is_exact_on_the_kernel_it_was_made_for(kernel):
    found = report(kernel)
    assert found.ok, str(found)
    assert (found.target_kernel, found.chosen_for, found.examples) == (kernel, kernel, 16)
    assert sorted(layer.name for layer in found.layers) == ["first", "first", "fourth", "second", "third"]
    assert [layer.channels for layer in found.layers].count(8) == 4
    for layer in found.layers:
        assert layer.exact >= layer.channels - (2 if kernel == "reference" else 0), str(found)
        assert layer.outputs == 16 * layer.channels * (1 if layer.name == "fourth" else 36)
        assert (layer.largest, layer.broken) == (min(layer.mismatches, 1), 0)


def test_the_file_is_integer_from_input_to_output():
    found = LiteRTFile(file())
    assert [name for name, has_floats in operators(file()) if has_floats] == []
    assert {found.tensor_type(index) for index in [*found.graph.inputs, *found.graph.outputs]} == {"INT8"}
    assert report().operators["DEPTHWISE_CONV_2D"] == 5


def test_integers_of_another_kernel_are_not_exact():
    found = report("builtin", made_for="xnnpack")
    assert found.chosen_for == "xnnpack"
    assert sum(layer.exact for layer in found.layers) < sum(layer.channels for layer in found.layers) - 5
    assert sum(layer.mismatches for layer in found.layers) > 0
    assert "note: integers that were chosen for xnnpack are not exact on builtin" in str(found)
    assert "note" not in str(report())


def test_layers_of_equal_weights_have_integers_of_their_own():
    """Their inputs have other scales, so that the biases differ although the converter has shared the kernels."""
    found = LiteRTFile(file())
    eights = [one for one in found.depthwise_operators() if len(found.values(one.inputs[1], "int8")) == 8]
    assert len({int(one.inputs[2]) for one in eights}) == 4
    assert len({found.values(one.inputs[2], "int32").tobytes() for one in eights}) == 4
    for one in eights:
        np.testing.assert_allclose(
            found.scale(one.inputs[2]), found.scale(one.inputs[0]) * found.scale(one.inputs[1]), rtol=1e-6
        )


def test_the_notes_say_which_operator_is_which_layer():
    notes = LiteRTFile(file()).notes()
    assert notes["kernel"] == "xnnpack"
    assert sorted(notes["layers"].values()) == [0, 1, 2, 3, 4]


def test_the_report_as_text():
    text = str(report())
    for line in ("LiteRT kernel xnnpack, integers chosen for xnnpack; 16 examples", "float operators: none", "OK"):
        assert line in text.splitlines()
    broken = report()._replace(layers=(LayerReport("one", 4, 3, 1, 10, 2, 1, 1),), missing=("gone",))
    assert not broken.ok
    assert "BROKEN: 1 mismatches in exact channels of one" in str(broken)
    assert "no int8 operator: gone" in str(broken)
    assert str(broken).endswith("FAILED")


def test_a_tampered_bias_is_found():
    tampered = LiteRTFile(file())
    operator = tampered.depthwise_operators()[0]
    scale = tampered.scale(operator.inputs[1])
    bias = tampered.values(operator.inputs[2], "int32") + 400
    tampered.set_depthwise(operator, tampered.values(operator.inputs[1], "int8"), bias, scale)
    found = verify(tampered.content(), model(), examples(model()))
    (layer,) = [one for one in found.layers if one.mismatches]
    assert layer.exact == 0
    assert layer.mismatches > 1000


def test_another_model_is_not_called_exact():
    other = keras.models.clone_model(model())
    other.set_weights(model().get_weights())
    normalizations(other)[0].beta.assign(np.ones(8))
    found = verify(file(), other, examples(model()))
    assert sum(layer.exact < layer.channels // 2 for layer in found.layers) == 1


@keras3_only("model.export to LiteRT")
def test_plain_export(tmp_path):
    import tensorflow as tf

    path, data = tmp_path / "plain.tflite", examples(model())
    model().export(
        str(path),
        format="litert",
        verbose=False,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([one[None]] for one in data),
    )
    found = verify(path, model(), data)
    assert found.float_operators == ()
    assert found.ok, str(found)
    assert found.chosen_for is None
    assert len(found.layers) == 5
    assert 0 < sum(layer.exact for layer in found.layers) < sum(layer.channels for layer in found.layers)


def test_float_operators_are_named():
    import tensorflow as tf

    function = tf.function(lambda x: model()(x, training=False), input_signature=[tf.TensorSpec([1, *IMAGE])])
    root = tf.Module()
    root.kept = [getattr(variable, "value", variable) for variable in model().variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], root)
    found = verify(converter.convert(), model(), examples(model()))
    assert not found.ok
    assert any(name.startswith("CONV_2D ") for name in found.float_operators)
    assert sorted(found.missing) == ["first", "first", "fourth", "second", "third"]


def test_several_inputs_and_outputs():
    inputs = [keras.Input((4,), name="b"), keras.Input((3,), name="a")]
    one, two = FixedPointNormalization(name="one")(inputs[0]), FixedPointNormalization(name="two")(inputs[1])
    joined = layers.Dense(2, name="joined")(layers.Concatenate()([one, two]))
    several = randomized(keras.Model(inputs, [joined, one]))
    random = np.random.default_rng(2)
    data = [random.normal(size=(40, 4)).astype("float32"), 9 * random.normal(size=(40, 3)).astype("float32")]
    found = verify(to_tflite(several, [data]), several, data)
    assert found.ok, str(found)
    assert [output.outputs for output in found.outputs] == [80, 160]
    assert max(output.largest for output in found.outputs) <= 3, str(found)
    assert [layer.mismatches for layer in found.layers] == [0, 0]


def test_dictionaries_of_inputs_and_outputs():
    """Each input and output has a size of its own, so that none can be taken for another."""
    inputs = {"z": keras.Input((4,), name="z"), "a": keras.Input((3,), name="a")}
    one, two = FixedPointNormalization(name="one")(inputs["z"]), FixedPointNormalization(name="two")(inputs["a"])
    named = randomized(keras.Model(inputs, {"q": layers.Dense(2)(one), "b": two}))
    random = np.random.default_rng(2)
    data = [random.normal(size=(20, tensor.shape[-1])).astype("float32") for tensor in named.inputs]
    found = verify(to_tflite(named, [data]), named, data)
    assert found.ok, str(found)
    assert sorted(output.outputs for output in found.outputs) == [40, 60]
    assert max(output.largest for output in found.outputs) <= 3, str(found)


def test_a_sequential_model():
    model = randomized(keras.Sequential([layers.Input(IMAGE), layers.ReLU(), FixedPointNormalization()]))
    data = examples(model)
    found = verify(to_tflite(model, data), model, data)
    assert found.ok, str(found)
    assert [layer.exact for layer in found.layers] == [3]


def test_representative_data_in_batches_is_the_same():
    data = examples(model())
    assert to_tflite(model(), [data[:5], data[5:]]) == file()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_tflite(model()), r"`representative_data` must hold examples.*Received: representative_data=None"),
        (lambda: to_tflite(model(), examples(model()), target_kernel="neon"), r"`target_kernel`.*'neon'"),
        (lambda: verify(file(), model(), examples(model()), target_kernel="neon"), r"`target_kernel`.*'neon'"),
        (lambda: verify(file(), model(), np.zeros((2, 3))), r"`data` must hold examples.*Received: .*\(2, 3\)"),
        (
            lambda: to_tflite(keras.Sequential([layers.ReLU()]), np.zeros((2, 3))),
            r"`model` must be Sequential.*Received",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_command(tmp_path, capsys):
    path, kept, data = tmp_path / "a.tflite", tmp_path / "model.keras", tmp_path / "data.npy"
    path.write_bytes(file())
    model().save(kept)
    np.save(data, examples(model()))
    arguments = [str(path), "--model", str(kept), "--data", str(data)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(report())
    tampered = LiteRTFile(file())
    notes = tampered.notes()
    notes["layers"].popitem()
    tampered.model.metadata = []
    tampered.set_notes(notes)
    path.write_bytes(tampered.content())
    assert main(arguments) == 1
    assert "no int8 operator: " in capsys.readouterr().out


def test_statistics_without_integers_are_named():
    broken = functional(IMAGE, FixedPointNormalization(name="broken"))
    broken.layers[-1].moving_mean.assign([0.0, np.nan, 0.0])
    file = LiteRTFile(to_tflite(functional(IMAGE, FixedPointNormalization()), examples(broken)))
    with pytest.raises(ValueError, match=r"Layer 'broken' has no integers: `mean` must be finite.*channel 1"):
        operator_affine(file, file.depthwise_operators()[0], broken.layers[-1])


def test_a_multiplication_that_the_converter_merges_is_named():
    def build(x):
        return layers.Rescaling(2.0)(FixedPointNormalization(name="merged")(x))

    merged = functional(IMAGE, build)
    with pytest.raises(ValueError, match=r"merged a multiplication.*Received: layer 'merged'"):
        to_tflite(merged, examples(merged))


def stock(x):
    """Batch normalizations that fold, and those after a ReLU, a branch, a sum, in a nested model, and after a pool."""
    convolution = functools.partial(layers.Conv2D, 4, 3, padding="same", use_bias=False)
    value = layers.ReLU()(layers.BatchNormalization(name="folds")(convolution()(x)))
    value = layers.BatchNormalization(name="after_relu")(value)
    branch = convolution()(value)
    value = layers.Add()([layers.BatchNormalization(name="of_branch")(branch), branch])
    inner = keras.Sequential([layers.Input((6, 6, 4)), layers.BatchNormalization(name="nested")], name="inner")
    value = layers.GlobalAveragePooling2D()(layers.ReLU()(inner(value)))
    return layers.BatchNormalization(name="dense_folds")(layers.Dense(3)(value))


def test_a_trained_model_gets_the_layers_it_needs():
    model = functional(IMAGE, stock)
    made, data = fixed_point_model(model), examples(model)
    np.testing.assert_allclose(made.predict(data, verbose=0), model.predict(data, verbose=0), atol=1e-5)
    assert sorted(fixed_points(made)) == ["after_relu", "nested", "of_branch"]
    found = verify(to_tflite(made, data), made, data)
    assert found.ok, str(found)
    assert found.operators.get("MUL", 0) == 0
    assert found.operators["DEPTHWISE_CONV_2D"] == 3
    assert [layer.exact for layer in found.layers] == [4, 4, 4]


@keras3_only("a scope that tfmot needs")
def test_scope_in_keras_3():
    with pytest.raises(ValueError, match="TF_USE_LEGACY_KERAS=1"):
        quantize_scope()


@keras3_only("a recurrent layer that is a loop in the file")
def test_loops_are_refused_by_name():
    def model(unroll):
        inner = keras.Sequential([layers.Input((4, 3)), layers.LSTM(5, unroll=unroll, name="memory")], name="inner")
        inputs = keras.Input((4, 3))
        return keras.Model(inputs, layers.Dense(2)(inner(inputs)))

    data = np.random.default_rng(3).normal(size=(8, 4, 3)).astype("float32")
    message = r"Layer 'memory' is a loop.*Make it with `unroll=True`.*LSTM with unroll=False"
    with pytest.raises(ValueError, match=message):
        to_tflite(model(False), data)
    assert "WHILE" not in operators(to_tflite(model(True), data))
