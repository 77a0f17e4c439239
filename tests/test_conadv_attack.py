"""The attack of `training.ConAdv`: its rules, ball and range, random starts and targets, and what is refused."""

import numpy as np
import pytest
from scipy import stats

from keras_lsb import callbacks, rules
from keras_lsb.training import ConAdv, Microbatched, input_units
from tests.conadv_problem import (
    BATCH,
    CLASSES,
    LABELS,
    RATE,
    X,
    Y,
    adversarial_weights,
    assert_same,
    conadv,
    cross_entropy,
    fit,
    network,
    train_on_batches,
    weights,
)
from tests.support import TENSORFLOW, assert_all_close, assert_close, keras, keras3_only, ops, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

    from keras_lsb.training.attack import Attack

on_tensorflow = tensorflow_only("ConAdv")
RADII, RANGE = (0.1, 0.3, 0.05, 0.2), ((-1.0, -1.0, -1.25, -1.0), (1.0, 1.125, 1.0, 1.5))
IMAGES, ONE_HOT = X.astype("float32"), Y.astype("float32")


def as_batch(x=IMAGES, y=ONE_HOT):
    return tf.nest.map_structure(tf.constant, (x, y))


def crafted(model, batch=None, index=0) -> np.ndarray:
    """The adversarial version of a batch, of the only input."""
    (images,) = model.craft(batch or as_batch(), tf.constant(index)).values()
    return images.numpy()


def test_ball_and_step_agree_with_numpy():
    random = np.random.default_rng(2)
    x, gradient = random.uniform(-1, 1, (2, 5, 4)).astype("float32")
    gradient[0] = 0.0
    low, high = rules.ball(ops.convert_to_tensor(x), np.array(RADII), RANGE)
    assert_close(low, np.maximum(x - RADII, RANGE[0]), 1e-6)
    assert_close(high, np.minimum(x + RADII, RANGE[1]), 1e-6)
    for step in (0.25, -0.25, np.array([0.01, 0.02, -0.03, 0.04])):
        moved = rules.attack_step(ops.convert_to_tensor(x), ops.convert_to_tensor(gradient), low, high, step)
        wanted = np.clip(x + step * np.sign(gradient), np.array(low), np.array(high))
        assert_close(moved, wanted, 1e-6)
    assert_close(moved[0], x[0], 0)


@pytest.mark.parametrize(("coin", "moves"), [(0.0, True), (0.39, True), (0.4, False), (0.9, False)])
def test_random_start_is_projected(coin, moves):
    random = np.random.default_rng(4)
    x = random.uniform(-0.9, 0.9, (6, 4)).astype("float32")
    noise = random.uniform(-1, 1, (6, 4)).astype("float32")
    x_tensor = ops.convert_to_tensor(x)
    low, high = rules.ball(x_tensor, np.array(RADII), (-0.9, 0.9))
    found = rules.random_start(x_tensor, ops.convert_to_tensor(noise), coin, np.array(RADII), low, high, 0.4)
    wanted = np.clip(x + np.array(RADII) * noise, np.array(low), np.array(high))
    assert_close(found, wanted if moves else x, 1e-6)


@pytest.mark.parametrize("kind", ["(B,)", "(B, 1)", "one-hot", "smoothed"])
def test_shifted_targets_agree_with_numpy(kind):
    labels, offsets = np.array([0, 1, 2, 3, 3, 0]), np.array([1, 3, 2, 1, 3, 3])
    moved = (labels + offsets) % 4
    smooth = {"one-hot": 0.0, "smoothed": 0.1}.get(kind)
    if smooth is None:
        shape = (6, 1) if "1" in kind else (6,)
        arrays = [array.reshape(shape).astype("int32") for array in (labels, offsets, moved)]
    else:
        arrays = [np.eye(4, dtype="float32")[labels], offsets.astype("int32"), np.eye(4)[moved]]
        arrays[0], arrays[2] = (array * (1 - smooth) + smooth / 4 for array in (arrays[0], arrays[2]))
    targets, offsets, wanted = (ops.convert_to_tensor(array) for array in arrays)
    assert_close(rules.shifted_targets(targets, offsets, 4), np.array(wanted), 1e-7)


def test_input_units():
    units = input_units(4.0, mean=[120.0, 110.0], std=[60.0, 50.0])
    assert_all_close(units.epsilon, [4 / 60, 4 / 50], 1e-12)
    assert_all_close(units.value_range, [[-2.0, -2.2], [2.25, 2.9]], 1e-12)
    scaled = input_units(8 / 255, mean=0.5, std=0.25, value_range=(0.0, 1.0))
    assert_all_close([scaled.epsilon, *scaled.value_range], [[8 / 255 / 0.25], [-2.0], [2.0]], 1e-12)
    with pytest.raises(ValueError, match=r"`std` must be positive. Received: std=\[1.0, 0.0\]"):
        input_units(4.0, mean=0.0, std=[1.0, 0.0])
    with pytest.raises(ValueError, match="one value per channel"):
        input_units(4.0, mean=[0.0, 1.0], std=[1.0, 1.0, 1.0])


def linear(attack_steps):
    """A linear model with the logistic loss."""
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.set_weights([np.array([[0.5], [-1.5], [0.25], [1.0]]), np.array([0.1])])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return conadv(model, epsilon=0.3, attack_steps=attack_steps, compiling={"loss": loss})


@on_tensorflow
@pytest.mark.parametrize("attack_steps", [1, 5])
def test_fact_1_worst_case_of_a_linear_model(attack_steps):
    model, signs = linear(attack_steps), 2.0 * (LABELS > 0) - 1
    batch = as_batch(IMAGES, (LABELS > 0)[:, None].astype("float32"))
    images = crafted(model, batch)
    kernel, bias = weights(model)
    losses = np.log1p(np.exp(-signs * (images @ kernel + bias)[:, 0]))
    worst = np.log1p(np.exp(-(signs * (X @ kernel + bias)[:, 0] - 0.3 * np.abs(kernel).sum())))
    assert_close(losses, worst, 1e-6)
    assert_close(images, X - 0.3 * signs[:, None] * np.sign(kernel[:, 0]), 1e-6)


@on_tensorflow
@pytest.mark.parametrize("target", [None, "random"])
@pytest.mark.parametrize("random_start", [0.0, 1.0])
@pytest.mark.parametrize("attack_steps", [1, 10])
def test_fact_2_ball_and_range(attack_steps, random_start, target):
    settings = {"attack_steps": attack_steps, "random_start": random_start, "target": target}
    images = crafted(conadv(epsilon=RADII, step_size=0.15, value_range=RANGE, **settings))
    moved = np.abs(images - IMAGES)
    assert (moved <= np.float32(RADII) + 1e-6).all()
    assert (images >= np.float32(RANGE[0])).all()
    assert (images <= np.float32(RANGE[1])).all()
    assert (moved.max(axis=0) > 0.99 * np.array(RADII)).all() if attack_steps == 10 else moved.max() > 0.1


@on_tensorflow
@pytest.mark.parametrize(("weights_of_losses", "factor"), [((0.5, 0.5), 1.0), ((1.0, 1.0), 2.0), ((3.0, 0.5), 3.5)])
def test_fact_3_without_a_radius_the_gradient_is_that_of_ordinary_training(weights_of_losses, factor):
    plain = network()
    plain.compile(keras.optimizers.SGD(RATE), cross_entropy(), jit_compile=False, run_eagerly=True)
    plain.train_on_batch(IMAGES, ONE_HOT)
    model = conadv(epsilon=0.0, loss_weights=weights_of_losses, compiling={"optimizer": keras.optimizers.SGD(RATE)})
    start = weights(model)
    model.train_on_batch(IMAGES, ONE_HOT)
    for number in (0, 1, 6, 7):  # all that both branches share
        wanted = factor * (weights(plain)[number] - start[number])
        assert_close(weights(model)[number] - start[number], wanted, 1e-6)
    gamma = weights(plain)[2] - start[2]
    own = weights(model)[2] - start[2], adversarial_weights(model)[0] - start[2]
    assert_all_close(own, [weights_of_losses[0] * gamma, weights_of_losses[1] * gamma], 1e-6)


def attacked_targets(labels, index, steps=1, classes=10):
    """The targets that each pass of an attack sees."""
    seen = []

    def loss_of(images, targets_of):
        seen.append(targets_of(tf.zeros([len(labels), classes])).numpy())
        return tf.reduce_sum(images["x"])

    attack = Attack(0.1, attack_steps=steps, target="random", seed=3)
    attack(loss_of, {"x": tf.zeros([len(labels), 1])}, tf.constant(labels), tf.constant(index))
    return seen


@on_tensorflow
def test_fact_12_random_targets_are_uniform_over_the_other_classes():
    labels = np.arange(10_000) % 10
    (targets,) = attacked_targets(labels, 5)
    offsets = (targets - labels) % 10
    assert offsets.min() == 1
    counts = np.bincount(offsets, minlength=10)[1:]
    assert stats.chisquare(counts).pvalue > 1e-3
    (other,) = attacked_targets(labels, 6)
    assert 0.05 < (other == targets).mean() < 0.2  # one in nine by chance


@on_tensorflow
def test_targets_are_drawn_once_per_attack():
    first, *rest = attacked_targets(np.arange(50) % 10, 1, steps=4)
    assert len(rest) == 3
    assert_same(rest, [first] * 3)


@on_tensorflow
@pytest.mark.parametrize("shape", ["(B,)", "(B, 1)", "one-hot", "smoothed"])
def test_random_targets_of_all_kinds_of_labels(shape):
    """The same offsets, whatever the labels look like, and so the same examples."""
    sparse = {"(B,)": LABELS, "(B, 1)": LABELS[:, None]}.get(shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if sparse is not None else cross_entropy()
    labels = {"one-hot": ONE_HOT, "smoothed": ONE_HOT * np.float32(0.9) + np.float32(0.1 / 3)}.get(shape, sparse)
    found = crafted(conadv(target="random", compiling={"loss": loss}), as_batch(IMAGES, labels), index=4)
    offsets = (attacked_targets(np.zeros(29, int), 4, classes=CLASSES)[0]) % CLASSES
    assert set(offsets) == {1, 2}
    moved = conadv(target="random", seed=3, compiling={"loss": loss})
    towards = np.eye(CLASSES, dtype="float32")[(LABELS + offsets) % CLASSES]
    away = crafted(conadv(), as_batch(IMAGES, towards))  # ascends from the target
    same = 2 * IMAGES - away
    agreement = np.abs(crafted(moved, as_batch(IMAGES, labels), index=4) - same) < 1e-6
    assert agreement.mean() > 0.99 if shape != "smoothed" else agreement.mean() > 0.9
    assert (np.abs(found - same) > 1e-3).any()  # another seed


@on_tensorflow
def test_random_start_is_one_coin_per_batch_and_keyed_by_the_step():
    with pytest.warns(UserWarning, match="never reach"):
        attack = Attack(0.5, 0.0, random_start=0.4, seed=1)
    x = tf.zeros([6, 4])

    def start(index):
        return attack(lambda images, _: tf.reduce_sum(images["x"]), {"x": x}, None, tf.constant(index))["x"].numpy()

    starts = [start(index) for index in range(200)]
    moved = [bool((one != 0).all()) for one in starts]
    assert all(was or (one == 0).all() for was, one in zip(moved, starts, strict=True))
    assert 0.28 < np.mean(moved) < 0.52
    values = np.concatenate([one.ravel() for one, was in zip(starts, moved, strict=True) if was])
    assert stats.kstest(values, stats.uniform(-0.5, 1.0).cdf).pvalue > 1e-3
    assert_same(starts, [start(index) for index in range(200)])


@on_tensorflow
@pytest.mark.parametrize("staleness", [0, 2])
def test_fit_and_train_on_batch_draw_alike(staleness):
    """Bit for bit, whether examples are made ahead or when their batch comes."""
    ends = []
    for by in (fit, train_on_batches):
        model = conadv(staleness=staleness, random_start=0.7, target="random", attack_steps=2)
        by(model, IMAGES, ONE_HOT, epochs=2)
        ends.append([*weights(model), *adversarial_weights(model)])
    assert_same(*ends)
    model = conadv(staleness=staleness, random_start=0.7, target="random", attack_steps=2, seed=1)
    fit(model, epochs=2)
    assert np.abs(weights(model)[0] - ends[0][0]).max() > 1e-4


@on_tensorflow
def test_adversarial_examples_attack_the_model_as_it_is_used():
    model = conadv(epsilon=0.2)
    fit(model, epochs=2)
    found = model.adversarial_examples(IMAGES, ONE_HOT, batch_size=10)
    with tf.GradientTape() as tape:
        x = tf.constant(IMAGES)
        tape.watch(x)
        loss = cross_entropy()(ONE_HOT, model.model(x, training=False))
    assert_close(found, IMAGES + 0.2 * np.sign(tape.gradient(loss, x).numpy()), 1e-6)
    assert model.evaluate(found, ONE_HOT, verbose=0) > model.evaluate(IMAGES, ONE_HOT, verbose=0)


WRONG = {
    "epsilon": [{"epsilon": -0.1}, {"epsilon": np.nan}, {"epsilon": "1"}, {"epsilon": [[1.0]]}, {"epsilon": True}],
    "step_size": [{"step_size": -0.1}],
    "attack_steps": [{"attack_steps": 0}, {"attack_steps": 1.5}],
    "staleness": [{"staleness": -1}, {"staleness": 1.5}],
    "mode": [{"mode": "both"}],
    "loss_weights": [{"loss_weights": (1.0, -1.0)}, {"loss_weights": (1.0,)}, {"loss_weights": (1, 2, 3)}],
    "random_start": [{"random_start": 1.5}],
    "target": [{"target": "least likely"}],
    "value_range": [{"value_range": (1.0, 0.0)}, {"value_range": 1.0}, {"value_range": (0.0, 1.0, 2.0)}],
    "seed": [{"seed": -1}, {"seed": 0.5}],
    "microbatches": [{"microbatches": 0}],
}


@on_tensorflow
@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    for arguments in WRONG[name]:
        with pytest.raises(ValueError, match=f"`{name}` .*Received"):
            ConAdv(network(), **{"epsilon": 0.1, **arguments})


@on_tensorflow
def test_wrappers_in_wrappers():
    with pytest.raises(ValueError, match="must not be a `ConAdv` itself"):
        ConAdv(ConAdv(network(), 0.1), 0.1)
    with pytest.raises(ValueError, match="must not override `train_step`"):
        Microbatched(ConAdv(network(), 0.1))


@on_tensorflow
def test_batches_cannot_be_accumulated():
    model = conadv(microbatches=2)
    with pytest.raises(ValueError, match="`ConAdv` updates once per batch of `fit`"):
        model.accumulate(2)
    adaptive = callbacks.AdaptiveBatch(exchange_rate=10.0, batch_size=BATCH, max_batch_size=4 * BATCH)
    with pytest.raises(ValueError, match=r"`ConAdv` updates once per batch of `fit`"):
        fit(model, callbacks=[adaptive])


@on_tensorflow
def test_what_compile_refuses():
    with pytest.raises(ValueError, match="`jit_compile` must be False with an `attack_device`"):
        conadv(attack_device="CPU:1", compiling={"jit_compile": True, "run_eagerly": False})
    conadv(attack_device=["CPU:1"])


@keras3_only("gradient_accumulation_steps")
@on_tensorflow
def test_accumulation_of_the_optimizer_is_refused():
    optimizer = keras.optimizers.SGD(RATE, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` of the optimizer must be 1"):
        conadv(compiling={"optimizer": optimizer})


def of_integers():
    inputs = keras.layers.Input((4,), dtype="int32", name="numbers")
    hidden = keras.layers.Lambda(lambda x: ops.cast(x, "float32"), output_shape=(4,))(inputs)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))


def rounded():
    inputs = keras.layers.Input((4,), name="image")
    hidden = keras.layers.Lambda(lambda x: ops.cast(ops.cast(x, "int32"), "float32"), output_shape=(4,))(inputs)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))


@on_tensorflow
@pytest.mark.parametrize(
    ("make", "arguments", "x", "message"),
    [
        (of_integers, {}, (4 * X).astype("int32"), "Only inputs of a floating type .*Received: input 'numbers'"),
        (rounded, {}, IMAGES, "no gradient with respect to input 'image'"),
        (network, {"perturb": ["other"]}, IMAGES, r"`perturb` must name inputs, .*Received: perturb=\['other'\]"),
        (network, {"value_range": (-0.5, 0.5)}, IMAGES, "Inputs must lie in `value_range`.* from -"),
        (network, {"epsilon": {"other": 0.1}}, IMAGES, "`epsilon` must name every input that is attacked"),
    ],
)
def test_inputs_that_cannot_be_attacked(make, arguments, x, message):
    with pytest.raises(ValueError, match=message):
        fit(conadv(make(), **arguments), x=x, epochs=1)


@on_tensorflow
def test_random_targets_need_classes():
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit(conadv(model, target="random", compiling={"loss": loss}), y=(LABELS > 0)[:, None].astype("float32"))


@on_tensorflow
def test_warnings():
    with pytest.warns(UserWarning, match="3 attack steps of `step_size` 0.1 never reach `epsilon` 0.5"):
        ConAdv(network(), 0.5, step_size=0.1, attack_steps=3)
    with pytest.warns(UserWarning, match="`epsilon` changes nothing where inputs are largest"):
        fit(conadv(epsilon=1e-9), epochs=1)
