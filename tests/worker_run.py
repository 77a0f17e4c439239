"""Trains everything that several workers must train as one process does, and prints what came of it as JSON.

`python -m tests.worker_run FOLDER`: the workers of TF_CONFIG, or one process without it. All cases share one start of
TensorFlow.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from keras_lsb import _keras, distribute
from keras_lsb.schedules import LEGW
from keras_lsb.training import Microbatched
from tests import autowu_run, registry
from tests.microbatches import accuracy, compiled
from tests.noise_scale_problem import BATCH, SMALL, START, dataset, network, trained
from tests.support import LEGACY, keras, to_numpy

EPOCHS, STEPS_PER_EPOCH = 2, 3
_random = np.random.default_rng(19)
X = _random.normal(size=(BATCH * STEPS_PER_EPOCH, 5)).astype("float32")
Y = (X[:, 0] > 0).astype("int32") + (X[:, 1] + 0.5 * _random.normal(size=len(X)) > 0)
CLIP = {"global_clipnorm": 0.1}
RECIPE, BASE_BATCH = (
    0.25,
    16,
)  # LEGW at four times the batch: twice the rate, a warm-up of two steps instead of half one


def legw(rate):
    """Warm-up in the first two of the six steps, then decay in each."""
    recipe = keras.optimizers.schedules.InverseTimeDecay(rate, 1.0, 0.5)
    sizes = {"base_batch_size": BASE_BATCH, "batch_size": BATCH, "steps_per_epoch": STEPS_PER_EPOCH}
    return LEGW(recipe, warmup_epochs=1 / 6, **sizes)


def of_registry(name, **changes):
    return registry.make(name, learning_rate=legw(registry.OPTIMIZERS[name][1]["learning_rate"] / 2), **changes)


def stock(cls, rate, **arguments):
    return cls(legw(rate), **arguments)


OPTIMIZERS = {
    **{name: functools.partial(of_registry, name) for name in registry.CLASSES},
    **{f"{name}_clipped": functools.partial(of_registry, name, **CLIP) for name in registry.CLASSES},
    "lars_averaged": functools.partial(of_registry, "lars", use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    "sgd": functools.partial(stock, keras.optimizers.SGD, RECIPE, momentum=0.9, nesterov=True),
    "adam": functools.partial(stock, keras.optimizers.Adam, 2**-6),
}
if not LEGACY:
    OPTIMIZERS["lamb_accumulated"] = functools.partial(of_registry, "lamb", gradient_accumulation_steps=2)
# Examples in the last batch. Shares of the first are equal; of 13 they are not, and of 2 some are empty.
EVEN, UNEVEN = 8, (13, 2)
# With four workers, the optimizers are trained with clipping, and on batches that are less even.
TWO_WORKERS_ONLY = {*registry.CLASSES, "lars_averaged", "adam", "lamb_accumulated", "even", f"microbatched_{UNEVEN[0]}"}
FOUR_WORKERS_ONLY = {*(f"{name}_clipped" for name in registry.CLASSES), "sgd", "uneven", "empty_shares"}
FOUR_WORKERS_ONLY |= {f"microbatched_{UNEVEN[1]}"}
LEFT_OUT = {1: set(), 2: FOUR_WORKERS_ONLY, 4: TWO_WORKERS_ONLY}  # by the number of workers


def lists(arrays) -> list:
    return [np.asarray(to_numpy(array)).tolist() for array in arrays]


def fit(model, examples=BATCH * STEPS_PER_EPOCH, epochs=EPOCHS, **arguments) -> dict:
    """Trains; weights, logs, and the learning rate of each step."""
    inner, rates = getattr(model, "model", model), []
    start = inner.get_weights()

    def note(batch, logs=None):
        if _keras.has_schedule(model.optimizer):
            step = np.int32(_keras.updates_done(model.optimizer))
            rates.append(float(_keras.innermost(model.optimizer)._learning_rate(step)))

    each = keras.callbacks.LambdaCallback(on_train_batch_begin=note)
    history = model.fit(
        dataset(X[:examples], Y[:examples]), epochs=epochs, shuffle=False, verbose=0, callbacks=[each], **arguments
    ).history
    logs = {name: [float(value) for value in values] for name, values in history.items()}
    found = {"weights": lists(inner.get_weights()), "history": logs, "rates": rates}
    return {"start": lists(start), **found}


def with_optimizer(name) -> dict:
    model = compiled(network(), optimizer=OPTIMIZERS[name](), metrics=[accuracy()])
    return fit(model)


def ragged(examples, microbatches=None) -> dict:
    """A last batch that is not full; the estimates of microbatches of other sizes are left out."""
    model = network() if microbatches is None else Microbatched(network(), microbatches, noise_scale=False)
    return fit(compiled(model, metrics=[accuracy()]), len(X) - BATCH + examples)


def empty_shares(microbatches) -> dict:
    """As above, but measured: no share without examples may spoil the averages."""
    model = compiled(Microbatched(network(), microbatches))
    found = fit(model, len(X) - BATCH + UNEVEN[1])
    estimate = model.noise_scale_estimate()
    return {"weights": found["weights"], "start": found["start"], "counts": list(estimate[-2:])}


def whole(folder) -> dict:
    """A network with synchronized batch normalization: validated, evaluated, asked, saved, loaded and trained on."""
    # Without a bias that the normalization would take away: its gradients were rounding errors, its steps whole ones.
    normalization = keras.layers.BatchNormalization(momentum=0.7, synchronized=True, name="normalization")
    model = keras.Sequential(
        [
            keras.layers.Input((5,)),
            keras.layers.Dense(6, use_bias=False),
            normalization,
            keras.layers.Dense(3, name="output"),
        ]
    )
    model.set_weights([START[0], np.ones(6), np.zeros(6), np.zeros(6), np.ones(6), *START[2:]])
    compiled(model, optimizer=of_registry("lamb"), metrics=[accuracy()])
    found = fit(model, validation_data=dataset(X[: BATCH + EVEN], Y[: BATCH + EVEN]))
    found["evaluate"] = [float(value) for value in model.evaluate(dataset(X, Y), verbose=0)]
    found["predict"] = model.predict(dataset(X), verbose=0).tolist()
    path = str(Path(folder) / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    found["loaded"] = lists(loaded.get_weights())
    layer = loaded.get_layer("normalization")
    found["synchronized"], layer.synchronized = layer.synchronized, True
    found["continued"] = [fit(one, epochs=1)["weights"] for one in (model, loaded)]
    return found


def cases(folder, index, replicas) -> dict:
    """What to run, by name. Workers save to folders of their own, except for the backups of tf_keras."""
    own = folder / str(index)
    own.mkdir(parents=True)
    small = SMALL // replicas
    found = {
        **{name: functools.partial(with_optimizer, name) for name in OPTIMIZERS},
        "even": functools.partial(ragged, EVEN),
        "uneven": functools.partial(ragged, UNEVEN[0]),
        **{f"microbatched_{rest}": functools.partial(ragged, rest, small) for rest in UNEVEN},
        "empty_shares": functools.partial(empty_shares, small),
        "noise_scale": functools.partial(trained, small),
        "whole": functools.partial(whole, own),
        "autowu": functools.partial(autowu_run.runs, str((folder if LEGACY else own) / "backup")),
    }
    return {name: case for name, case in found.items() if name not in LEFT_OUT[replicas]}


def main():
    import tensorflow as tf

    distributed = "TF_CONFIG" in os.environ
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"] if distributed else 0
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if distributed else tf.distribute.get_strategy()
    distribute.enable_multi_worker_fit()
    replicas = strategy.num_replicas_in_sync
    results = {"workers": replicas}
    with strategy.scope():
        for name, case in cases(Path(sys.argv[1]), index, replicas).items():
            keras.utils.set_random_seed(7)
            begin = time.perf_counter()
            results[name] = case()
            sys.stderr.write(f"{name}: {time.perf_counter() - begin:.1f} s\n")
            sys.stderr.flush()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
