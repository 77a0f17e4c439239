"""Models and data for the tests of `training.ConAdv`, its reference on them, and any model trained by hand."""

import os
import subprocess
import sys

import numpy as np

from keras_lsb.training import ConAdv
from tests.microbatches import weights
from tests.reference import conadv as reference
from tests.support import LEGACY, TENSORFLOW, assert_all_close, assert_close, keras, to_numpy

if TENSORFLOW:
    import tensorflow as tf

BATCH, RATE, MOMENTUM, BN_MOMENTUM, CLASSES = 8, 0.1, 0.9, 0.75, 3
_random = np.random.default_rng(21)
X = np.round(_random.uniform(-1, 1, size=(29, 4)) * 64) / 64  # batches of 8, 8, 8 and 5
LABELS = _random.integers(0, CLASSES, size=29)
Y = np.eye(CLASSES)[LABELS]
WEIGHTS = np.round(_random.uniform(0.25, 3, size=29) * 64) / 64
EPOCHS = 3
INITIAL = [
    _random.normal(size=(4, 5)),
    0.1 * _random.normal(size=5),
    _random.uniform(0.5, 1.5, size=5),
    0.1 * _random.normal(size=5),
    0.2 * _random.normal(size=5),
    _random.uniform(0.5, 1.5, size=5),
    0.7 * _random.normal(size=(5, CLASSES)),
    0.1 * _random.normal(size=CLASSES),
]


def layers(l2: float = 0.0) -> list:
    """The network of the reference, without its input; it starts alike whenever it is built."""
    first, last = (keras.initializers.GlorotUniform(seed=seed) for seed in (1, 2))
    regularizer = keras.regularizers.L2(l2) if l2 else None
    return [
        keras.layers.Dense(5, kernel_initializer=first, kernel_regularizer=regularizer, name="hidden"),
        keras.layers.BatchNormalization(momentum=BN_MOMENTUM, epsilon=reference.BN_EPSILON, name="normal"),
        keras.layers.Activation("tanh"),
        keras.layers.Dense(CLASSES, kernel_initializer=last, name="output"),
    ]


def network(l2: float = 0.0):
    """The network of the reference."""
    model = keras.Sequential([keras.layers.Input((4,)), *layers(l2)])
    model.set_weights(INITIAL)
    return model


def without_normalization():
    """A network like it, but for its normalization."""
    dense, _, active, output = layers()
    return keras.Sequential([keras.layers.Input((4,)), dense, active, output])


def cross_entropy(**arguments):
    return keras.losses.CategoricalCrossentropy(from_logits=True, **arguments)


def conadv(model=None, staleness=1, compiling=None, **arguments):
    """A compiled `ConAdv`, which runs eagerly unless told otherwise."""
    arguments = {"epsilon": 0.25, **arguments}
    wrapped = ConAdv(network() if model is None else model, staleness=staleness, **arguments)
    settings = {"run_eagerly": True, "jit_compile": False, "loss": cross_entropy()} | (compiling or {})
    settings.setdefault("optimizer", keras.optimizers.SGD(RATE, momentum=MOMENTUM))
    wrapped.compile(**settings)
    return wrapped


GRAPH = {"run_eagerly": False}


def fit(model, x=X, y=Y, epochs=EPOCHS, **arguments) -> dict:
    """Fits without shuffling; the history."""
    keywords = {"batch_size": BATCH, "shuffle": False, "verbose": 0} | arguments
    return model.fit(x, y, epochs=epochs, **keywords).history


def slices(count: int = len(X)) -> list:
    """The examples of each batch of an epoch."""
    return [slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


def train_on_batches(model, x=X, y=Y, epochs=EPOCHS, sample_weight=None) -> list[dict]:
    """The same by `train_on_batch`; its logs."""
    logs = []
    for _ in range(epochs):
        for part in slices():
            of_part = (None if array is None else _part(array, part) for array in (x, y, sample_weight))
            model.reset_metrics()
            logs.append(model.train_on_batch(*of_part, return_dict=True))
    return logs


def _part(array, part):
    if isinstance(array, dict):
        return {name: value[part] for name, value in array.items()}
    return [value[part] for value in array] if isinstance(array, list) else array[part]


def batches(y=Y, sample_weight=None, epochs=EPOCHS) -> list:
    """Those of a run, for the reference."""
    weights = np.ones(len(X)) if sample_weight is None else sample_weight
    return [(X[part], y[part], weights[part]) for part in slices()] * epochs


def expected(rule=None, y=Y, sample_weight=None, **settings) -> list[reference.Step]:
    """The steps of the reference."""
    rule = rule or reference.Rule(learning_rate=RATE, momentum=MOMENTUM, bn_momentum=BN_MOMENTUM, **settings)
    return reference.train_with_stale_weights(reference.start(*INITIAL), batches(y, sample_weight), rule)


def adversarial_weights(model) -> list[np.ndarray]:
    """Those of the second set, layer by layer."""
    return [to_numpy(variable) for layer in model.adversarial_set.layers for variable in layer.weights]


def assert_agrees(model, steps, atol=1e-6):
    """The model ends with both sets as the reference does, and was trained at all."""
    last, shared = steps[-1], ("kernel", "bias", "output_kernel", "output_bias")
    sets = {}
    for name in (reference.MAIN, reference.ADVERSARIAL):
        found = [last.weights[name, "gamma"], last.weights[name, "beta"]]
        sets[name] = [*found, last.moving[name, "mean"], last.moving[name, "variance"]]
    wanted = [last.weights[name] for name in shared]
    assert_all_close(weights(model), [*wanted[:2], *sets["main"], *wanted[2:]], atol)
    if model.mode in ("concurrent", "sequential"):
        assert_all_close(adversarial_weights(model), sets["adversarial"], atol)
        different = np.abs(sets["adversarial"][0] - sets["main"][0]).max()
        assert different > 1e-3 or not np.any(model.attack.epsilon)
    assert np.abs(last.weights["kernel"] - INITIAL[0]).max() > 0.05


def assert_logs(found: dict, steps, atol=1e-6):
    """The logs of an epoch are the means over its examples."""
    sizes = np.array([step.size for step in steps])
    for name in ("loss", "clean_loss", "adversarial_loss"):
        mean = (sizes * [getattr(step, name) for step in steps]).sum() / sizes.sum()
        assert_close(float(found[name]), mean, atol)


def assert_same(found, wanted):
    """Bit for bit."""
    assert len(found) == len(wanted)
    for left, right in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(left, right)


_WITHOUT_PACKAGE = """
import sys
sys.modules["keras_lsb"] = None
import json
import numpy as np
if sys.argv[1] == "1":
    import tf_keras as keras
else:
    import keras
"""


def run_without_package(code: str, folder) -> str:
    """What `code` prints in a process in `folder` that cannot import the package; it has json, np and keras."""
    command = [sys.executable, "-c", _WITHOUT_PACKAGE + code, "1" if LEGACY else "0"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def train_by_hand(make, data, staleness=0, epsilon=0.25, attacked=None, loss=None):
    """Any model, with a copy for the second set and one for the attack; (weights, weights of the copy).

    `make` returns the model as it begins, `data` are batches, `attacked` names inputs of a dict or places of a list;
    gradient descent at RATE.
    """
    main, twin, old = make(), make(), make()
    loss = loss or cross_entropy()
    own = [_is_normalization(main, variable) for variable in main.trainable_variables]
    kept = [[np.array(v) for v in twin.get_weights()]] * (staleness + 1)
    for x, y in data:
        kept = [*kept[1:], [np.array(v) for v in twin.get_weights()]]
        old.set_weights(kept[0])
        x = tf.nest.map_structure(tf.constant, x)
        places = attacked if attacked is not None else (None,)
        with tf.GradientTape() as tape:
            inputs = [x if place is None else x[place] for place in places]
            tape.watch(inputs)
            value = loss(y, old(x, training=True))
        moved = [a + epsilon * tf.sign(g) for a, g in zip(inputs, tape.gradient(value, inputs), strict=True)]
        examples = moved[0]
        if attacked is not None:
            examples = dict(x) if isinstance(x, dict) else list(x)
            for place, image in zip(places, moved, strict=True):
                examples[place] = image
        clean, adversarial = _gradients(main, x, y, loss), _gradients(twin, examples, y, loss)
        pairs = zip(main.trainable_variables, twin.trainable_variables, clean, adversarial, own, strict=True)
        for one, other, g, h, is_own in pairs:
            for variable, gradient in ((one, g if is_own else g + h), (other, h if is_own else g + h)):
                variable.assign(np.array(variable) - RATE * gradient)
    return weights(main), weights(twin)


def _gradients(model, x, y, loss):
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=True))
    native = [getattr(variable, "value", variable) for variable in model.trainable_variables]
    native = model.trainable_weights if not native or callable(native[0]) else native
    return [np.array(gradient) for gradient in tape.gradient(value, native)]


def _is_normalization(model, variable) -> bool:
    layers = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
    return any(variable is own for layer in layers for own in layer.weights)
