"""LEGW and LinearWarmup: facts of the paper, edge cases, exact epoch boundaries, warnings, bad input."""

import math
import warnings

import numpy as np
import pytest

from keras_lsb._keras import dtype_name
from keras_lsb.scaling import legw
from keras_lsb.scaling.legw import elapsed_epochs
from keras_lsb.schedules import LEGW, LinearWarmup
from tests.reference.legw import legw_rate
from tests.support import LEGACY, assert_close, keras, ops, tensorflow_only, to_numpy

schedules = keras.optimizers.schedules
IMAGENET = 1_281_167


def recipe(learning_rate=0.1, **changes):
    """LEGW at batch 4096 for a recipe of batch 256 over 65,536 examples: W = 512 steps."""
    arguments = {"base_batch_size": 256, "batch_size": 4096, "steps_per_epoch": 16, "warmup_epochs": 2}
    return LEGW(learning_rate, **{**arguments, **changes})


def values(schedule, steps):
    return [float(to_numpy(schedule(step))) for step in steps]


def test_fact_1_warmup_steps_do_not_depend_on_the_batch_size():
    for batch, epochs in [(512, 0.15625), (1024, 0.3125), (4096, 1.25), (8192, 2.5), (16384, 5)]:
        rate, warmup = legw(4.0, 0.15625, batch / 512)
        assert warmup == epochs
        assert rate == pytest.approx(4.0 * math.sqrt(batch / 512), rel=1e-12)
        schedule = LEGW(
            4.0, base_batch_size=512, batch_size=batch, steps_per_epoch=IMAGENET / batch, warmup_epochs=0.15625
        )
        assert schedule.warmup_steps == pytest.approx(390.981, abs=5e-4)
        assert schedule.factor == batch / 512
    for batch in (512, 4096, 8192):
        assert legw(0.005, 0.3125, batch / 512)[1] * IMAGENET / batch == pytest.approx(781.962, abs=5e-4)


def test_fact_2_constant_rate():
    assert values(recipe(), (0, 256, 512, 10**6)) == pytest.approx([0, 0.2, 0.4, 0.4], abs=1e-7)
    assert recipe().warmup_steps == recipe(batch_size=256, steps_per_epoch=256).warmup_steps == 512


@pytest.mark.parametrize(("batch", "last_high"), [(4096, 640), (256, 10_240)])
def test_fact_3_boundary_in_epochs(batch, last_high):
    schedule = recipe(
        schedules.PiecewiseConstantDecay([40.0], [0.1, 0.05]), batch_size=batch, steps_per_epoch=65536 / batch
    )
    peak = 0.1 * math.sqrt(batch / 256)
    expected = [peak, peak, peak / 2]
    assert values(schedule, (last_high - 1, last_high, last_high + 1)) == pytest.approx(expected, rel=1e-6)


def test_fact_4_scaling_composes():
    assert legw(0.3, 1.7, 1) == (0.3, 1.7)
    assert legw(*legw(0.3, 1.7, 6), 2.5) == pytest.approx(legw(0.3, 1.7, 15), rel=1e-12)
    assert legw(*legw(0.3, 1.7, 48), 1 / 48) == pytest.approx((0.3, 1.7), rel=1e-12)


def test_fact_5_doubling_twice_doubles_the_peak_once():
    assert legw(0.3, 1.7, 4) == pytest.approx((0.6, 6.8), rel=1e-12)
    assert recipe(batch_size=16384, steps_per_epoch=4).warmup_steps == recipe().warmup_steps


def test_fact_6_non_decreasing_continuous_homogeneous():
    ramp = np.array(values(recipe(), range(0, 513, 8)))
    assert (np.diff(ramp) > 0).all()
    assert_close(values(recipe(), (511, 512, 513)), [0.4 * 511 / 512, 0.4, 0.4], 1e-7)
    assert_close(values(recipe(0.3), (5, 256, 900)), np.multiply(3, values(recipe(), (5, 256, 900))), 1e-6)


def test_ramp_is_per_step():
    # Less than one epoch of warm-up: a ramp that moves once per epoch would be no ramp.
    schedule = LinearWarmup(1.0, steps_per_epoch=100, warmup_epochs=0.5)
    assert_close(values(schedule, range(51)), np.arange(51) / 50, 1e-6)


@pytest.mark.parametrize("batch", [256, 4096, 300, 96])
def test_agrees_with_the_transcription(batch):
    def cosine(epoch):
        return 0.05 * (1 + math.cos(math.pi * min(epoch, 30) / 30))

    steps_per_epoch = 65536 / batch
    schedule = recipe(schedules.CosineDecay(0.1, 30), batch_size=batch, steps_per_epoch=steps_per_epoch, epochs=60)
    for step in (0, 1, 17, 255, 511, 513, 1000, 7000):
        expected = legw_rate(step, cosine, 256, batch, steps_per_epoch, 2)
        assert float(to_numpy(schedule(step))) == pytest.approx(expected, abs=2e-7)


def test_factor_one_is_the_recipe_itself_to_the_last_bit():
    schedule = recipe(0.1, batch_size=256, steps_per_epoch=469, warmup_epochs=1.3)
    plain = LinearWarmup(0.1, steps_per_epoch=469, warmup_epochs=1.3)
    peak = np.float32(0.1)
    for step in (0, 1, 77, 609, 610, 5000):
        expected = peak * min(np.float32(1), np.float32(step) / np.float32(469 * 1.3))
        assert np.float32(to_numpy(schedule(step))) == np.float32(to_numpy(plain(step))) == np.float32(expected)
    inner = schedules.ExponentialDecay(0.1, 10, 0.5)
    schedule = recipe(inner, batch_size=256, steps_per_epoch=8, warmup_epochs=0)
    for epoch in (0, 1, 9):
        assert np.float32(to_numpy(schedule(8 * epoch))) == np.float32(to_numpy(inner(float(epoch))))


def test_no_warmup_starts_at_the_peak():
    assert values(recipe(warmup_epochs=0), (0, 1, 600)) == pytest.approx([0.4] * 3, rel=1e-6)


def test_smaller_batch_scales_down():
    schedule = recipe(batch_size=64, steps_per_epoch=1024)
    assert schedule.warmup_epochs == 0.5
    assert values(schedule, (256, 512, 5000)) == pytest.approx([0.025, 0.05, 0.05], rel=1e-6)


def test_factor_may_be_any_real():
    schedule = recipe(batch_size=1000, steps_per_epoch=65.536)
    assert schedule.warmup_steps == pytest.approx(512, rel=1e-12)
    assert values(schedule, (100, 10**6)) == pytest.approx(
        [0.1 * math.sqrt(1000 / 256) * 100 / 512, 0.1 * math.sqrt(1000 / 256)], rel=1e-6
    )


def test_integer_learning_rate():
    assert values(recipe(1), (256,)) == pytest.approx([2.0])
    assert type(recipe(1).get_config()["learning_rate"]) is float


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_type_of_the_step(dtype):
    schedule = recipe(schedules.PiecewiseConstantDecay([40.0], [0.1, 0.05]))
    rates = [schedule(ops.cast(step, dtype)) for step in (0, 256, 640, 641, 2**24)]
    assert {dtype_name(rate) for rate in rates} == {"float32"}
    assert [float(to_numpy(rate)) for rate in rates] == pytest.approx([0, 0.2, 0.4, 0.2, 0.2], rel=1e-6)


@pytest.mark.parametrize("steps_per_epoch", [469, 431, 16, 1])
def test_elapsed_epochs_is_exact_at_whole_epochs(steps_per_epoch):
    whole = np.arange(1, 26)
    assert_close(to_numpy(elapsed_epochs(whole * steps_per_epoch, steps_per_epoch)), whole, 0)
    assert (to_numpy(elapsed_epochs(whole * steps_per_epoch + 1, steps_per_epoch)) > whole).all()
    assert (to_numpy(elapsed_epochs(whole * steps_per_epoch - 1, steps_per_epoch)) < whole).all()


@tensorflow_only("tf.function")
@pytest.mark.parametrize("steps_per_epoch", [469, 431])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_boundaries_are_exact_in_a_graph(steps_per_epoch, jit_compile):
    # XLA multiplies by the rounded reciprocal instead of dividing: one step early or late at some boundaries.
    import tensorflow as tf

    inner = schedules.PiecewiseConstantDecay([float(epoch) for epoch in range(1, 26)], [float(v) for v in range(1, 27)])
    schedule = LinearWarmup(inner, steps_per_epoch=steps_per_epoch, warmup_epochs=0)
    function = tf.function(
        lambda steps: tf.map_fn(schedule, steps, fn_output_signature="float32"), jit_compile=jit_compile
    )
    steps = [epoch * steps_per_epoch + offset for epoch in range(1, 26) for offset in (-1, 0, 1)]
    # Keras' schedule keeps the old value at its boundary and changes one step later.
    expected = [epoch + (offset == 1) for epoch in range(1, 26) for offset in (-1, 0, 1)]
    np.testing.assert_array_equal(function(tf.constant(steps, "int64")), expected)


@pytest.mark.parametrize("argument", ["base_batch_size", "batch_size", "steps_per_epoch"])
@pytest.mark.parametrize("value", [0, -4, math.nan, math.inf, "many", None, True])
def test_bad_positive_argument(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be .*Received: {argument}={value!r}"):
        recipe(**{argument: value})


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, "long", None])
def test_bad_warmup(value):
    with pytest.raises(ValueError, match=f"`warmup_epochs` must be .*Received: warmup_epochs={value!r}"):
        recipe(warmup_epochs=value)
    with pytest.raises(ValueError, match=f"`warmup_epochs` must be .*Received: warmup_epochs={value!r}"):
        LinearWarmup(0.1, steps_per_epoch=16, warmup_epochs=value)


@pytest.mark.parametrize("value", [0, -0.1, math.nan, "fast", None])
def test_bad_learning_rate(value):
    for call in (recipe, lambda rate: legw(rate, 1, 2)):
        with pytest.raises(ValueError, match=f"`learning_rate` must be .*Received: learning_rate={value!r}"):
            call(value)


def test_bad_factor_multiplier_and_epochs():
    with pytest.raises(ValueError, match=r"`factor` must be .*Received: factor=-1"):
        legw(0.1, 1, -1)
    with pytest.raises(ValueError, match=r"`warmup_epochs` must be .*Received: warmup_epochs=-1"):
        legw(0.1, -1, 2)
    with pytest.raises(ValueError, match=r"`multiplier` must be .*Received: multiplier=0"):
        LinearWarmup(0.1, steps_per_epoch=16, warmup_epochs=1, multiplier=0)
    with pytest.raises(ValueError, match=r"`epochs` must be .*Received: epochs=0"):
        recipe(epochs=0)


def test_required_arguments_have_no_default():
    with pytest.raises(TypeError, match="steps_per_epoch"):
        LEGW(0.1, base_batch_size=1, batch_size=2, warmup_epochs=0)


def test_warns_of_a_warmup_longer_than_the_training():
    with pytest.warns(UserWarning, match=r"`warmup_epochs`.*32 epochs.*25 epochs.*Received: warmup_epochs=2"):
        recipe(epochs=25)
    with pytest.warns(UserWarning, match="longer than the training of 30 epochs"):
        recipe(schedules.CosineDecay(0.1, 30))


def test_warns_of_a_schedule_in_steps():
    with pytest.warns(UserWarning, match=r"read in epochs.*decay_steps=46900.*Received: learning_rate=CosineDecay"):
        recipe(schedules.CosineDecay(0.1, 46_900))
    with pytest.warns(UserWarning, match=r"boundaries=3200"):
        recipe(schedules.PiecewiseConstantDecay([1600, 3200], [1.0, 0.1, 0.01]))


def test_ordinary_recipes_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe()
        recipe(epochs=32)
        recipe(schedules.CosineDecay(0.1, 90), epochs=90)
        recipe(schedules.ExponentialDecay(0.1, 40, 0.1), epochs=100)


SCHEDULES = {
    "cosine": (lambda: schedules.CosineDecay(0.1, 90), lambda epoch: 0.05 * (1 + math.cos(math.pi * epoch / 90))),
    "piecewise": (
        lambda: schedules.PiecewiseConstantDecay([50, 60], [0.1, 0.01, 0.001]),
        lambda epoch: 0.1 if epoch <= 50 else 0.01 if epoch <= 60 else 0.001,
    ),
    "polynomial": (
        lambda: schedules.PolynomialDecay(0.1, 90, 0.0, power=2.0),
        lambda epoch: 0.1 * (1 - epoch / 90) ** 2,
    ),
    "exponential": (lambda: schedules.ExponentialDecay(0.1, 40, 0.5), lambda epoch: 0.1 * 0.5 ** (epoch / 40)),
    "inverse_time": (lambda: schedules.InverseTimeDecay(0.1, 40, 0.5), lambda epoch: 0.1 / (1 + 0.5 * epoch / 40)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_composes_with_any_schedule(name):
    make, formula = SCHEDULES[name]
    schedule = recipe(make(), epochs=90)
    for step in (0, 100, 500, 808, 960, 1300):
        expected = 4 * formula(step / 16) * min(1, step / 512)
        assert float(to_numpy(schedule(step))) == pytest.approx(expected, abs=4e-7), step


@pytest.mark.parametrize("name", SCHEDULES)
def test_config_round_trip_with_a_nested_schedule(name):
    schedule = recipe(SCHEDULES[name][0](), epochs=90, name="recipe")
    restored = LEGW.from_config(schedule.get_config())
    assert restored.get_config() == schedule.get_config()
    assert values(restored, (3, 700, 900)) == values(schedule, (3, 700, 900))
    assert type(restored.learning_rate) is type(schedule.learning_rate)


def test_warmups_nest():
    outer = LinearWarmup(recipe(steps_per_epoch=1, base_batch_size=4096), steps_per_epoch=16, warmup_epochs=2)
    assert LinearWarmup.from_config(outer.get_config()).get_config() == outer.get_config()
    assert values(outer, (16, 32)) == pytest.approx([0.1 * 0.5 * 0.5, 0.1], rel=1e-6)


def test_summary_prints_peak_and_warmup():
    assert recipe().summary() == ("LEGW: peak learning rate 0.4, warm-up 32 epochs = 512 steps, 16 steps per epoch")
    assert "peak learning rate 4 x schedule" in recipe(schedules.CosineDecay(0.1, 90)).summary()


@tensorflow_only("weights after every batch of fit")
@pytest.mark.parametrize("nested", [False, True])
def test_in_compile_and_fit(nested):
    rate = schedules.PiecewiseConstantDecay([1.0], [0.1, 0.05]) if nested else 0.1
    schedule = LEGW(rate, base_batch_size=4, batch_size=8, steps_per_epoch=4, warmup_epochs=0.5, epochs=2)
    model = keras.Sequential(
        [keras.layers.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    # The gradient of the loss is 1 in every step, so the weight adds up the learning rates.
    model.compile(optimizer=keras.optimizers.SGD(schedule), loss=lambda truth, output: -ops.sum(output, -1))
    seen = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(to_numpy(model.weights[0]))
    )
    model.fit(np.ones((32, 1)), np.ones((32, 1)), batch_size=8, epochs=2, verbose=0, callbacks=[callback])
    expected = values(schedule, range(8))
    assert expected[0] == 0
    assert expected[1] == pytest.approx(0.1 * math.sqrt(2) / 4, rel=1e-6)
    assert_close(np.diff(np.ravel(seen), prepend=0), expected, 1e-6)
    read = model.optimizer.learning_rate
    assert float(to_numpy(read)) == pytest.approx(expected[-1] if LEGACY else values(schedule, [8])[0], rel=1e-6)
