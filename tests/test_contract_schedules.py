"""What every schedule of the registry must do."""

import json

import numpy as np
import pytest

from tests import registry
from tests.support import TENSORFLOW, assert_close, keras, ops, to_numpy

every_schedule = pytest.mark.parametrize("name", registry.SCHEDULES)
STEPS = (0, 1, 3, 17, 40, 333)


def values(schedule):
    return [float(to_numpy(schedule(step))) for step in STEPS]


def nested():
    return keras.optimizers.schedules.PolynomialDecay(0.25, 90, 0.01)


@pytest.mark.parametrize("make_rate", [lambda: 0.25, lambda: 1, nested], ids=["float", "int", "schedule"])
@every_schedule
def test_config_round_trip(name, make_rate):
    schedule = registry.make_schedule(name, make_rate(), name="recipe")
    restored = [
        type(schedule).from_config(schedule.get_config()),
        keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule)),
        keras.optimizers.schedules.deserialize(json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))),
    ]
    for copy in restored:
        assert type(copy) is type(schedule)
        assert copy.get_config() == schedule.get_config()
        assert values(copy) == values(schedule)


@every_schedule
def test_constructor_arguments_are_the_config(name):
    config = registry.make_schedule(name, name="recipe").get_config()
    rate = {"learning_rate": 0.25} if name in registry.RATED else {}
    assert {**registry.SCHEDULES[name][1], **rate, "name": "recipe"}.items() <= config.items()


@every_schedule
def test_value_is_a_finite_float32_scalar_that_depends_on_the_step(name):
    schedule = registry.make_schedule(name, nested())
    for step in STEPS:
        value = ops.convert_to_numpy(schedule(ops.cast(step, "int32")))
        assert (np.shape(value), value.dtype) == ((), "float32")
        assert np.isfinite(value)
    assert len(set(values(schedule))) > 3


@every_schedule
def test_compiled_values_are_the_same_and_a_second_call_does_not_retrace(name):
    schedule, traces = registry.make_schedule(name, nested()), []

    def call(step):
        traces.append(1)
        return schedule(step)

    if TENSORFLOW:
        import tensorflow as tf

        compiled = tf.function(call, jit_compile=True)
    else:
        import jax

        compiled = jax.jit(call)
    actual = [to_numpy(compiled(ops.cast(step, "int32"))) for step in STEPS]
    assert len(traces) == 1
    assert_close(actual, values(schedule), 2e-7)


@pytest.mark.parametrize("name", registry.RATED)
def test_scales_with_the_learning_rate(name):
    assert_close(
        np.multiply(2, values(registry.make_schedule(name, 0.25))), values(registry.make_schedule(name, 0.5)), 1e-6
    )
