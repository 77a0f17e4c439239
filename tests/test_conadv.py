"""`training.ConAdv` gives the weights and logs of the reference, by every way to train, for every kind of model."""

import numpy as np
import pytest

from tests.conadv_problem import (
    BATCH,
    CLASSES,
    GRAPH,
    INITIAL,
    LABELS,
    RATE,
    WEIGHTS,
    X,
    Y,
    adversarial_weights,
    assert_agrees,
    assert_logs,
    assert_same,
    batches,
    conadv,
    cross_entropy,
    expected,
    fit,
    layers,
    network,
    slices,
    train_by_hand,
    train_on_batches,
    weights,
)
from tests.reference import conadv as reference
from tests.support import TENSORFLOW, assert_all_close, error_of, keras, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

on_tensorflow = tensorflow_only("ConAdv")
STEPS = 4  # in an epoch


@pytest.fixture(autouse=True)
def _double():
    """Signs of gradients are then those of the reference."""
    keras.backend.set_floatx("float64")
    keras.mixed_precision.set_global_policy("float64")
    yield
    keras.backend.set_floatx("float32")
    keras.mixed_precision.set_global_policy("float32")


def sgd():
    return keras.optimizers.SGD(RATE)


@pytest.mark.skipif(TENSORFLOW, reason="what ConAdv says on other backends than TensorFlow")
def test_other_backends_are_refused():
    assert "`ConAdv` runs on TensorFlow. Received: backend 'jax'" in error_of(conadv)


@pytest.mark.parametrize("staleness", [0, 1, 2, 3, 50])
def test_both_organisations_of_the_reference_are_the_same(staleness):
    random = np.random.default_rng(3)
    targets = [Y[part][:, random.permutation(CLASSES)] for part in slices()] * 3
    rules = [
        reference.Rule(staleness=staleness, attack_steps=3, step_size=0.2, l2=0.01, targets=targets),
        reference.Rule(staleness=staleness, mode="adversarial", value_range=(-0.9, 0.9)),
    ]
    for rule in rules:
        data = batches(sample_weight=WEIGHTS)
        stale = reference.train_with_stale_weights(reference.start(*INITIAL), data, rule)
        ahead = reference.train_ahead(reference.start(*INITIAL), data, rule)
        for one, other in zip(stale, ahead, strict=True):
            assert_same([one.examples, *one.weights.values()], [other.examples, *other.weights.values()])


@pytest.mark.parametrize("h", [1e-6])
def test_gradients_of_the_reference(h):
    state, (x, y, factors) = reference.start(*INITIAL), batches(sample_weight=WEIGHTS)[0]

    def value():
        return factors @ reference.losses_of(reference.forward(state, x, "main"), y)

    found, into_x = reference.backward(state, reference.forward(state, x, "main"), y, factors, "main")
    arrays = [(state.weights[key], gradient) for key, gradient in found.items()] + [(x := x.copy(), into_x)]
    for array, gradient in arrays:
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + h
            above = value()
            array[place] = kept - h
            assert abs((above - value()) / (2 * h) - gradient[place]) < 1e-7
            array[place] = kept


@on_tensorflow
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_fit_agrees_with_the_reference(staleness):
    model, steps = conadv(staleness=staleness, compiling=GRAPH), expected(staleness=staleness)
    history = fit(model)
    assert_agrees(model, steps)
    for epoch in range(3):
        logs = {name: values[epoch] for name, values in history.items()}
        assert_logs(logs, steps[epoch * STEPS : (epoch + 1) * STEPS])


@on_tensorflow
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_train_on_batch_agrees_with_the_reference(staleness):
    model, steps = conadv(staleness=staleness, compiling=GRAPH if staleness == 2 else {}), expected(staleness=staleness)
    logs = train_on_batches(model)
    assert_agrees(model, steps)
    for found, step in zip(logs, steps, strict=True):
        assert_logs(found, [step])


@on_tensorflow
def test_fit_and_train_on_batch_in_turns():
    """An epoch ends with examples not made ahead: those of the next ones come from the weights that are kept."""
    model = conadv(staleness=2)
    fit(model, epochs=1)
    train_on_batches(model, epochs=1)
    fit(model, epochs=1)
    assert_agrees(model, expected(staleness=2))


VARIANTS = {
    "loss_weights": {"loss_weights": (0.75, 0.25)},
    "several_steps": {"attack_steps": 3, "step_size": 0.125},
    "steps_of_their_own_size": {"attack_steps": 3, "staleness": 0},
    "sequential": {"mode": "sequential"},
    "adversarial": {"mode": "adversarial", "staleness": 2, "loss_weights": (3.0, 0.5)},
    "none": {"mode": "none", "loss_weights": (3.0, 0.5)},
    "value_range": {"value_range": (-1.0, 1.0)},
    "range_and_radius_per_channel": {
        "value_range": ((-1.0, -1.1, -1.2, -1.0), (1.0, 1.05, 1.0, 1.1)),
        "epsilon": (0.1, 0.2, 0.05, 0.3),
    },
    "at_inference": {"attack_training": False, "staleness": 2},
    "adversarial_at_inference": {"attack_training": False, "mode": "adversarial", "staleness": 1},
    "no_radius": {"epsilon": 0.0},
}


BY_BATCHES = ("several_steps", "adversarial", "at_inference")


@on_tensorflow
@pytest.mark.parametrize(
    ("name", "by"), [*((name, fit) for name in VARIANTS), *((name, train_on_batches) for name in BY_BATCHES)]
)
def test_arguments_agree_with_the_reference(name, by):
    arguments = {"staleness": 1, **VARIANTS[name]}
    model, steps = conadv(**arguments), expected(**arguments)[: 2 * STEPS]
    logs = by(model, epochs=2)
    assert_agrees(model, steps)
    if by is fit and model.mode in ("concurrent", "sequential"):
        assert_logs({key: values[-1] for key, values in logs.items()}, steps[-STEPS:])
    last = logs[-1] if by is train_on_batches else logs
    extra = {"clean_loss", "adversarial_loss"} & set(last)
    assert extra == {"adversarial": {"adversarial_loss"}, "none": set()}.get(model.mode, extra)


@on_tensorflow
def test_sample_weights_smoothing_and_regularizer():
    smooth = Y * 0.75 + 0.25 / CLASSES
    model = conadv(network(l2=0.05), staleness=2, compiling={"loss": cross_entropy(label_smoothing=0.25)})
    steps = expected(staleness=2, l2=0.05, y=smooth, sample_weight=WEIGHTS)[: 2 * STEPS]
    history = fit(model, sample_weight=WEIGHTS, epochs=2)
    assert_agrees(model, steps)
    assert_logs({key: values[-1] for key, values in history.items()}, steps[-STEPS:])


@on_tensorflow
@pytest.mark.parametrize("shape", [(29,), (29, 1)])
def test_class_indices(shape):
    model = conadv(compiling={"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)})
    fit(model, y=LABELS.reshape(shape), epochs=1)
    assert_agrees(model, expected(staleness=1)[:STEPS])


@on_tensorflow
def test_metrics_are_those_of_the_clean_batch():
    model = conadv(compiling={"metrics": [keras.metrics.CategoricalCrossentropy(from_logits=True, name="entropy")]})
    history, steps = fit(model, epochs=1), expected()[:STEPS]
    assert history["entropy"][0] == pytest.approx(history["clean_loss"][0], abs=1e-6)
    assert abs(steps[0].clean_loss - steps[0].adversarial_loss) > 0.05


@on_tensorflow
@pytest.mark.parametrize("compiling", [{"steps_per_execution": 2}, {"jit_compile": True}], ids=str)
def test_ways_to_execute(compiling):
    model = conadv(staleness=2, compiling=GRAPH | compiling)
    fit(model)
    assert_agrees(model, expected(staleness=2))


def dataset(**_):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)


def unknown_size(**_):
    data = dataset().filter(lambda x, y: True)
    assert int(data.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    return data


@on_tensorflow
@pytest.mark.parametrize("staleness", [1, 6])
def test_dataset_of_unknown_size(staleness):
    model = conadv(staleness=staleness)
    model.fit(unknown_size(), epochs=2, verbose=0)
    assert_agrees(model, expected(staleness=staleness)[: 2 * STEPS])
    assert model.optimizer.iterations == 2 * STEPS


@on_tensorflow
@pytest.mark.parametrize("steps_per_epoch", [1, 4])
def test_endless_data(steps_per_epoch):
    """The look-ahead goes on from epoch to epoch, where the data do."""
    model = conadv(staleness=2)
    model.fit(dataset().repeat(), steps_per_epoch=steps_per_epoch, epochs=8 // steps_per_epoch, verbose=0)
    assert_agrees(model, expected(staleness=2)[: 2 * STEPS])


@on_tensorflow
@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_data_that_end_early():
    """What was made ahead for batches that never come is dropped, and none is trained on twice."""
    model = conadv(staleness=2)
    model.fit(dataset().repeat(2), steps_per_epoch=20, epochs=1, verbose=0)
    assert model.optimizer.iterations == 2 * STEPS
    assert_agrees(model, expected(staleness=2)[: 2 * STEPS])


def functional():
    inputs = keras.layers.Input((4,))
    outputs = inputs
    for layer in layers():
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    model.set_weights(INITIAL)
    return model


def nested():
    first, second, *rest = layers()
    inputs = keras.layers.Input((4,))
    inner = keras.Sequential([keras.layers.Input((4,)), first, second])
    outputs = inner(inputs)
    for layer in rest:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    model.set_weights(INITIAL)
    return model


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.normal, self.active, self.outer = layers()

    def call(self, inputs, training=None):
        return self.outer(self.active(self.normal(self.hidden(inputs), training=training)))


def built_subclass():
    model = Subclass()
    model(X[:2])
    model.set_weights(INITIAL)
    return model


@on_tensorflow
@pytest.mark.parametrize("make", [functional, nested, built_subclass])
def test_kinds_of_models(make):
    model = conadv(make(), staleness=1)
    fit(model, epochs=2)
    assert_agrees(model, expected(staleness=1)[: 2 * STEPS])


@on_tensorflow
@pytest.mark.parametrize(
    ("make", "compiling"),
    [(Subclass, GRAPH), (Subclass, {}), (lambda: keras.Sequential(layers()), {})],
    ids=["subclass-graph", "subclass-eager", "sequential-eager"],
)
def test_models_built_by_their_first_batch(make, compiling):
    model = conadv(make(), staleness=2, compiling=compiling)
    fit(model, epochs=2)
    other = conadv(keras.Sequential([keras.layers.Input((4,)), *layers()]), staleness=2)
    fit(other, epochs=2)
    assert_all_close(weights(model), weights(other), 1e-6)
    assert_all_close(adversarial_weights(model), adversarial_weights(other), 1e-6)


def seeded(shape, seed):
    return 0.5 * np.random.default_rng(seed).normal(size=shape)


def filled(model):
    """With weights that are the same each time, variances positive."""
    values = [
        np.abs(seeded(np.shape(value), seed)) + 0.5 if np.ndim(value) == 1 else seeded(np.shape(value), seed)
        for seed, value in enumerate(model.get_weights())
    ]
    model.set_weights(values)
    return model


def shared():
    """One dense layer and one normalization, both called twice."""
    dense, normal = keras.layers.Dense(4, name="twice"), keras.layers.BatchNormalization(momentum=0.5, name="normal")
    inputs = keras.layers.Input((4,))
    once = keras.layers.Activation("tanh")(normal(dense(inputs)))
    again = keras.layers.Activation("tanh")(normal(dense(once)))
    return filled(keras.Model(inputs, keras.layers.Dense(CLASSES)(again)))


def two_inputs():
    inputs = [keras.layers.Input((2,), name="image"), keras.layers.Input((2,), name="other")]
    hidden = [keras.layers.BatchNormalization()(keras.layers.Dense(3)(one)) for one in inputs]
    merged = keras.layers.Activation("tanh")(keras.layers.Concatenate()(hidden))
    return filled(keras.Model(inputs, keras.layers.Dense(CLASSES)(merged)))


class OfDict(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = two_inputs()

    def call(self, inputs, training=None):
        return self.inner([inputs["image"], inputs["other"]], training=training)


def of_dict():
    model = OfDict()
    model({"image": X[:2, :2], "other": X[:2, 2:]})
    return model


STRUCTURES = {
    "shared": (shared, X, None, None),
    "list": (two_inputs, [X[:, :2], X[:, 2:]], ["other"], [1]),
    "list_all": (two_inputs, [X[:, :2], X[:, 2:]], None, [0, 1]),
    "dict": (two_inputs, {"image": X[:, :2], "other": X[:, 2:]}, ["image"], ["image"]),
    "dict_of_subclass": (of_dict, {"other": X[:, 2:], "image": X[:, :2]}, ["image"], ["image"]),
}


@on_tensorflow
@pytest.mark.parametrize(("name", "by"), [*((name, fit) for name in STRUCTURES), ("dict", train_on_batches)])
def test_structures_agree_with_training_by_hand(name, by):
    make, x, perturb, places = STRUCTURES[name]
    model = conadv(make(), staleness=1, perturb=perturb, compiling={"optimizer": sgd()})
    by(model, x=x, epochs=2)
    data = [(tf.nest.map_structure(lambda a, p=part: a[p], x), Y[part]) for part in slices()] * 2
    main, twin = train_by_hand(make, data, staleness=1, attacked=places)
    assert_all_close(weights(model), main, 1e-6)
    own = adversarial_weights(model)[:4]
    gammas = [w for w in twin if np.shape(w) == np.shape(own[0])]
    assert any(np.allclose(own[0], gamma, rtol=0, atol=1e-6) for gamma in gammas)
    assert len(adversarial_weights(model)) == 4 * len(model.adversarial_set.layers)
