"""Config round trips and bad arguments of every optimizer of the registry."""

import json

import pytest

from tests import registry
from tests.support import assert_all_close, keras, to_numpy

every_optimizer = pytest.mark.parametrize("name", registry.OPTIMIZERS)
every_class = pytest.mark.parametrize("name", registry.CLASSES)


@keras.saving.register_keras_serializable(package="keras_lsb_tests")
def not_a_kernel(path):
    return not path.endswith("kernel")


@keras.saving.register_keras_serializable(package="keras_lsb_tests")
def first_axis(path):
    return (0,)


@every_optimizer
def test_config_round_trip(name):
    selections = {selection: [] for selection in registry.OPTIMIZERS[name][0].selections}
    selections["exclude_from_weight_decay"] = ["bias$", "gamma"]
    optimizer = registry.make(name, **selections)
    json.dumps(optimizer.get_config(), default=float)
    restored = [
        type(optimizer).from_config(optimizer.get_config()),
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
        keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer)))),
    ]
    weights, gradients = registry.inputs()
    expected = registry.train(optimizer, weights, gradients, 3)
    for copy in restored:
        assert type(copy) is type(optimizer)
        assert json.dumps(copy.get_config(), default=float) == json.dumps(optimizer.get_config(), default=float)
        assert_all_close(map(to_numpy, registry.train(copy, weights, gradients, 3)), map(to_numpy, expected), 0)


@every_class
def test_config_keeps_none_and_the_empty_list_apart(name):
    config = registry.make(name, exclude_from_layer_adaptation=[]).get_config()
    assert config["exclude_from_weight_decay"] is None
    assert config["exclude_from_layer_adaptation"] == []


@every_class
def test_config_round_trip_of_functions_and_schedules(name):
    extra = {"channel_axes": first_axis} if name == "adamp" else {}
    schedule = registry.make_schedule("legw", keras.optimizers.schedules.CosineDecay(0.1, 90))
    optimizer = registry.make(
        name,
        learning_rate=schedule,
        exclude_from_weight_decay=not_a_kernel,
        exclude_from_layer_adaptation=not_a_kernel,
        **extra,
    )
    serialized = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    restored = keras.optimizers.deserialize(serialized)
    assert restored._learning_rate.get_config() == schedule.get_config()
    variables = registry.variables_of(registry.inputs()[0])
    for built in (optimizer, restored):
        built.build(variables)
    assert restored.summary() == optimizer.summary()
    assert restored.summary().count("no            no") == 5
    assert name != "adamp" or restored.channel_axes("any") == (0,)


@every_class
def test_learning_rate_of_a_restored_optimizer_is_the_current_one(name):
    optimizer = registry.make(name)
    optimizer.learning_rate = 0.125
    assert type(optimizer).from_config(optimizer.get_config()).get_config()["learning_rate"] == 0.125


@every_class
def test_unknown_argument_is_named(name):
    with pytest.raises(ValueError, match=r"no argument 'momentun'.*Received: momentun=0\.9"):
        registry.make(name, momentun=0.9)


BAD_ARGUMENTS = [
    ("lars", {"momentum": 1.0}),
    ("lars", {"trust_coefficient": 0}),
    ("lars", {"denominator": "max"}),
    ("lars", {"rate": "both"}),
    ("lars", {"learning_rate": -1}),
    ("lamb", {"beta_1": 1.0}),
    ("lamb", {"beta_2": -0.1}),
    ("lamb", {"epsilon": float("nan")}),
    ("lamb", {"weight_decay": -1e-4}),
    ("lamb", {"weight_decay": None}),
    ("lamb", {"decay": "none"}),
    ("lamb", {"weight_norm_bounds": (2, 1)}),
    ("lamb", {"max_trust_ratio": 0}),
    ("adamp", {"delta": -0.1}),
    ("adamp", {"wd_ratio": float("inf")}),
    ("adamp", {"channel_axes": "last"}),
    ("adamp", {"channel_axes": {"(": (0,)}}),
]


@pytest.mark.parametrize(("name", "arguments"), BAD_ARGUMENTS, ids=lambda value: str(value))
def test_bad_argument_is_named(name, arguments):
    (argument,) = arguments
    with pytest.raises(ValueError, match=f"(?s)`{argument}`.*Received: "):
        registry.make(name, **arguments)
