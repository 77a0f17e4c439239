"""Which variables are neither decayed nor adapted: defaults on real layers, patterns, predicates, mistakes."""

import warnings

import numpy as np
import pytest

from keras_lsb.optimizers import LAMB, LARS, AdamP
from tests.reference.lamb import lamb_step
from tests.support import LEGACY, apply, assert_close, keras, make_variable, to_numpy

LISTS = ("exclude_from_weight_decay", "exclude_from_layer_adaptation")
KERNEL = [[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]]
GRADIENT = [[0.1, -0.2, 0.3], [-0.4, 0.5, -0.6]]


def real_variables():
    """Trainable variables of the usual layers, built one after another."""
    layers = keras.layers
    shapes = {
        layers.Dense(3, name="dense"): (None, 4),
        layers.Conv2D(3, 3, name="convolution"): (None, 8, 8, 2),
        layers.DepthwiseConv2D(3, name="depthwise"): (None, 8, 8, 2),
        layers.BatchNormalization(name="batch"): (None, 4),
        layers.LayerNormalization(name="layer"): (None, 4),
        layers.LSTM(3, name="lstm"): (None, 5, 4),
        layers.Embedding(6, 3, name="words"): (None, 5),
    }
    variables = []
    for layer, shape in shapes.items():
        # Called inside a model, as users do: tf_keras names the variables of a bare layer without the layer.
        model = keras.Sequential([keras.layers.Input(shape[1:]), layer])
        variables += model.trainable_variables
    return variables


def decisions(optimizer, variables):
    """Path -> (decayed, adapted), as printed by `summary`."""
    optimizer.build(variables)
    rows = [row.split() for row in optimizer.summary().splitlines()[1:]]
    return {path: (decays == "yes", adapts == "yes") for path, decays, adapts in rows}


@pytest.mark.parametrize("cls", [LARS, LAMB, AdamP])
def test_defaults_on_real_layers(cls):
    found = decisions(cls(weight_decay=0.1), real_variables())
    plain = {path for path, decision in found.items() if decision == (False, False)}
    both = {path for path, decision in found.items() if decision == (True, True)}
    assert {path.split("/")[-1] for path in plain} == {"bias", "gamma", "beta"}
    # Keras 3 calls a depthwise kernel plainly "kernel".
    depthwise = {"depthwise_kernel"} if LEGACY else set()
    assert {path.split("/")[-1] for path in both} == {"kernel", "recurrent_kernel", "embeddings", *depthwise}
    assert len(plain) == 8
    assert len(both) == 6
    assert not any(":" in path for path in found)


def two_variables():
    return [make_variable(KERNEL, "dense/kernel"), make_variable([0.1, -0.2, 0.3], "dense/bias")]


@pytest.mark.parametrize("argument", LISTS)
def test_empty_list_excludes_nothing_and_none_is_the_default(argument):
    position = LISTS.index(argument)
    for value, expected in (([], True), (None, False), ((), True)):
        assert decisions(LAMB(**{argument: value}), two_variables())["dense/bias"][position] is expected


def test_the_two_lists_are_independent():
    found = decisions(LAMB(exclude_from_weight_decay=["kernel"], exclude_from_layer_adaptation=[]), two_variables())
    assert found == {"dense/kernel": (False, True), "dense/bias": (True, True)}


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [("bias$", ["dense/bias"]), ("dense/", ["dense/kernel", "dense/bias"]), ("^dense/k", ["dense/kernel"])],
)
def test_patterns_are_searched_in_the_path(pattern, hits):
    found = decisions(LARS(exclude_from_weight_decay=[pattern]), two_variables())
    assert [path for path, (decays, _) in found.items() if not decays] == hits


def test_predicate_of_shape_name_and_dtype():
    seen = []

    def is_vector(variable):
        seen.append((variable, variable.path, variable.name, variable.shape, variable.dtype))
        return len(variable.shape) < 2

    optimizer = LARS(exclude_from_layer_adaptation=is_vector)
    variables = [make_variable(np.ones((2, 3)), "dense/kernel"), make_variable([1.0], "gate/vector", "bfloat16")]
    optimizer.build(variables)
    assert optimizer._adapts == [True, False]
    assert seen == [
        ("dense/kernel", "dense/kernel", "kernel", (2, 3), "float32"),
        ("gate/vector", "gate/vector", "vector", (1,), "bfloat16"),
    ]


def test_predicate_of_the_path():
    found = decisions(LARS(exclude_from_layer_adaptation=lambda path: path.endswith("kernel")), two_variables())
    assert found == {"dense/kernel": (True, False), "dense/bias": (False, True)}


@pytest.mark.parametrize("argument", LISTS)
def test_pattern_that_matches_nothing_warns(argument):
    with pytest.warns(
        UserWarning, match=rf"`{argument}` holds 'bais\$', which matches no variable.*Received: {argument}="
    ):
        LAMB(**{argument: ["kernel", "bais$"]}).build(two_variables())


def test_defaults_never_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LAMB(exclude_from_layer_adaptation=[]).build(two_variables()[:1])


@pytest.mark.parametrize("argument", LISTS)
def test_one_string_instead_of_a_list(argument):
    with pytest.raises(ValueError, match=rf"`{argument}` must be a list of patterns.*Received: {argument}='bias'"):
        LAMB(**{argument: "bias"})


@pytest.mark.parametrize("argument", LISTS)
@pytest.mark.parametrize("pattern", ["(", 3])
def test_invalid_pattern(argument, pattern):
    with pytest.raises(ValueError, match=rf"(?s)`{argument}` holds .*not a regular expression.*Received: {argument}="):
        LAMB(**{argument: ["bias", pattern]})


def test_equals_tensorflow_addons_with_explicit_lists():
    """There an empty adaptation list falls back to the decay list; the same lists given twice are the same in both."""
    variables = two_variables()
    optimizer = LAMB(0.01, weight_decay=0.1, exclude_from_weight_decay=["bias"], exclude_from_layer_adaptation=["bias"])
    apply(optimizer, [np.array(GRADIENT), np.array([0.3, -0.1, 0.2])], variables)
    expected = [[0.4884210368, -0.9878695972, 1.9867668099], [1.5093735081, 0.2386966408, -0.7381452527]]
    assert_close(to_numpy(variables[0]), expected, 1e-6)
    assert_close(to_numpy(variables[1]), [0.0900000333, -0.1900001, 0.29000005], 1e-6)


def test_decay_excluded_and_still_adapted():
    variables = two_variables()
    optimizer = LAMB(
        0.01, weight_decay=0.1, exclude_from_weight_decay=["kernel"], exclude_from_layer_adaptation=["bias"]
    )
    apply(optimizer, [np.array(GRADIENT), np.array([0.3, -0.1, 0.2])], variables)
    settings = {"learning_rate": 0.01, "weight_decay": 0.1}
    expected = lamb_step(KERNEL, GRADIENT, 0.0, 0.0, 1, decay_excluded=True, **settings)[0]
    assert_close(to_numpy(variables[0]), expected, 1e-6)
    expected = lamb_step([0.1, -0.2, 0.3], [0.3, -0.1, 0.2], 0.0, 0.0, 1, adaptation_excluded=True, **settings)[0]
    assert_close(to_numpy(variables[1]), expected, 1e-6)


@pytest.mark.parametrize("how", ["names", "variables"])
def test_method_of_keras_is_honoured(how):
    variables = two_variables()
    optimizer = LAMB(0.01, weight_decay=0.1, exclude_from_weight_decay=[])
    arguments = {"var_names": ["kernel"]} if how == "names" else {"var_list": variables[:1]}
    optimizer.exclude_from_weight_decay(**arguments)
    assert decisions(optimizer, variables) == {"dense/kernel": (False, True), "dense/bias": (True, False)}


def test_summary_before_build():
    with pytest.raises(ValueError, match="not built yet"):
        LAMB().summary()
