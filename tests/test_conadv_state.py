"""What `training.ConAdv` holds and saves: the second set, attacks that change nothing, files of the model, going on."""

import json

import numpy as np
import pytest

from keras_lsb import callbacks, optimizers, schedules
from keras_lsb.training import ConAdv, Microbatched
from tests.autowu_problem import Interrupt
from tests.conadv_problem import (
    BATCH,
    GRAPH,
    RATE,
    X,
    Y,
    adversarial_weights,
    assert_same,
    conadv,
    cross_entropy,
    fit,
    layers,
    network,
    run_without_package,
    weights,
    without_normalization,
)
from tests.support import LEGACY, TENSORFLOW, assert_all_close, keras, tensorflow_only

if TENSORFLOW:
    import tensorflow as tf

pytestmark = tensorflow_only("ConAdv")
IMAGES, ONE_HOT = X.astype("float32"), Y.astype("float32")


def with_dropout():
    """Dropout behind the normalization, and weights of the network."""
    dense, normal, active, output = layers()
    model = keras.Sequential([keras.layers.Input((4,)), dense, normal, active, keras.layers.Dropout(0.25), output])
    model.set_weights(network().get_weights())
    return model


def everything(model) -> list[np.ndarray]:
    """All variables there are: weights of both sets, seeds of dropout, metrics, the optimizer, what is kept."""
    found = list(model.variables) + list(model.model.variables) + list(model.adversarial_set.variables)
    if model.optimizer is not None:
        found += list(model.optimizer.variables() if callable(model.optimizer.variables) else model.optimizer.variables)
    found += [variable for metric in model.metrics for variable in metric.variables]
    return [np.array(tf.convert_to_tensor(variable)) for variable in found]


def test_second_set_begins_as_a_copy():
    model = conadv()
    assert_same(adversarial_weights(model), weights(model)[2:6])
    names = {v.name if LEGACY else v.path for v in model.adversarial_set.weights}
    assert len(names) == 4


def test_fact_7_statistics_stay_apart(monkeypatch):
    """Whatever the adversarial images are, at a rate of 0."""
    ends = []
    for shift in (0.0, 100.0):
        model = conadv(staleness=1, compiling={"optimizer": keras.optimizers.SGD(0.0)})
        stock = model.craft

        def craft(*arguments, stock=stock, shift=shift, **keywords):
            return {name: image + shift for name, image in stock(*arguments, **keywords).items()}

        object.__setattr__(model, "craft", craft)
        fit(model, epochs=1)
        predicted = model.predict(X, verbose=0)
        ends.append((weights(model), [predicted], adversarial_weights(model)))
    (main, predicted, adversarial), (other_main, other_predicted, other_adversarial) = ends
    assert_same(main, other_main)
    assert_same(predicted, other_predicted)
    assert np.abs(adversarial[2] - other_adversarial[2]).min() > 1.0
    assert np.abs(main[4] - network().get_weights()[4]).max() > 1e-2


def test_fact_8_evaluation_knows_the_main_set_only():
    model = conadv(compiling={"metrics": ["accuracy"]})
    fit(model, epochs=1)
    before = [model.predict(X, verbose=0), np.array(model.evaluate(X, Y, verbose=0))]
    for variable in model.adversarial_set.layers[0].weights:
        variable.assign(np.full(variable.shape, 7.0))
    assert_same([model.predict(X, verbose=0), np.array(model.evaluate(X, Y, verbose=0))], before)
    assert_same([model.model.predict(X, verbose=0)], before[:1])


@pytest.mark.parametrize("staleness", [0, 2])
def test_fact_10_an_attack_changes_no_variable(staleness):
    settings = {"random_start": 0.5, "target": "random", "attack_steps": 2, "loss_weights": (0.5, 0.5)}
    model = conadv(with_dropout(), staleness=staleness, compiling={"metrics": ["accuracy"]}, **settings)
    fit(model, epochs=1)
    before = everything(model)
    batch = tf.constant(IMAGES[:BATCH]), tf.constant(ONE_HOT[:BATCH])
    images = model.craft(batch, tf.constant(3))
    model.craft_now(batch)
    tf.function(lambda: model.craft(batch, tf.constant(3)))()
    model.adversarial_examples(IMAGES, ONE_HOT)
    assert_same(everything(model), before)
    assert np.abs(next(iter(images.values())) - IMAGES[:BATCH]).max() > 0.1


def test_fact_10_a_model_without_batch_statistics_has_no_second_set():
    model = conadv(without_normalization())
    history = fit(model)
    assert model.adversarial_set.layers == []
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("when", ["before", "after"])
def test_frozen_normalization_stays_frozen(when):
    inner = network()
    if when == "before":
        inner.get_layer("normal").trainable = False
    model = ConAdv(inner, 0.25, staleness=2)
    inner.get_layer("normal").trainable = False
    model.compile(keras.optimizers.SGD(RATE), cross_entropy(), run_eagerly=True, jit_compile=False)
    start = weights(model)
    fit(model, epochs=1)
    assert_same(weights(model)[2:6], start[2:6])
    assert_same(adversarial_weights(model), start[2:6])
    assert np.abs(weights(model)[0] - start[0]).max() > 1e-3


def test_weights_that_are_unfrozen_later_are_refused():
    inner = network()
    inner.get_layer("output").trainable = False
    model = ConAdv(inner, 0.25)
    inner.get_layer("output").trainable = True
    model.compile(keras.optimizers.SGD(RATE), cross_entropy(), run_eagerly=True, jit_compile=False)
    with pytest.raises(ValueError, match="Weights must be trainable when `ConAdv` wraps them"):
        fit(model, epochs=1)


_LOAD = """
import tensorflow as tf
x = np.array(json.load(open("x.json")), "float32")
model = keras.models.load_model("model.keras")
exported = tf.saved_model.load("exported")
served = exported.serve(x)
names = [f"{w.name} {list(w.shape)}" for w in model.weights]
print(json.dumps([np.array(model(x)).tolist(), np.array(served).tolist(), names]))
"""


def test_fact_9_saved_and_exported_models_need_no_package(tmp_path):
    model = conadv(staleness=1)
    fit(model, IMAGES, ONE_HOT)
    model.save(tmp_path / "model.keras")
    model.export(str(tmp_path / "exported"))
    (tmp_path / "x.json").write_text(json.dumps(IMAGES.tolist()))
    loaded, served, names = json.loads(run_without_package(_LOAD, tmp_path).splitlines()[-1])
    wanted = model.predict(IMAGES, verbose=0)
    assert_all_close([loaded, served], [wanted, wanted], 1e-6)
    assert names == [f"{w.name} {list(w.shape)}" for w in network().weights]


def test_config_round_trip():
    arguments = {"epsilon": [0.1, 0.2, 0.3, 0.4], "step_size": 0.2, "attack_steps": 3, "staleness": 4}
    arguments |= {"loss_weights": (0.25, 0.75), "random_start": 0.5, "target": "random", "value_range": [-2.0, 2.0]}
    arguments |= {"mode": "adversarial", "perturb": ["image"], "attack_training": False, "attack_device": "CPU:0"}
    arguments |= {"seed": 5, "microbatches": 2, "noise_scale": False, "decay": 0.5, "interval": 3, "groups": {"a": "b"}}
    model = ConAdv(network(), name="wrapped", **arguments)
    config = json.loads(json.dumps(model.get_config()))
    again = ConAdv.from_config(config)
    assert json.loads(json.dumps(again.get_config())) == config
    for name, value in arguments.items():
        found = config[name]
        assert (tuple(found) if isinstance(value, tuple) else found) == value, name
    assert set(config) == {"model", "name", *arguments}


def resumable():
    model = conadv(network(), staleness=2, random_start=0.6, target="random")
    model.optimizer.build(model.trainable_variables)
    return model


def test_fact_14_saved_weights_go_on_as_if_never_stopped(tmp_path):
    whole = resumable()
    fit(whole, epochs=3)
    first = resumable()
    fit(first, epochs=1)
    first.save_weights(tmp_path / "run.weights.h5")
    second = resumable()
    second.load_weights(tmp_path / "run.weights.h5")
    fit(second, epochs=2)
    assert_same([*weights(second), *adversarial_weights(second)], [*weights(whole), *adversarial_weights(whole)])
    fresh = resumable()
    fresh.model.set_weights(first.model.get_weights())
    fit(fresh, epochs=2)
    assert np.abs(weights(fresh)[0] - weights(whole)[0]).max() > 1e-6


def test_fact_14_backup_goes_on_as_if_never_stopped(tmp_path):
    whole = resumable()
    fit(whole, epochs=3)
    stopped = resumable()
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, callbacks=[keras.callbacks.BackupAndRestore(str(tmp_path)), Interrupt(1, 2)])
    again = resumable()
    fit(again, callbacks=[keras.callbacks.BackupAndRestore(str(tmp_path))])
    assert_same([*weights(again), *adversarial_weights(again)], [*weights(whole), *adversarial_weights(whole)])


def test_composition_with_microbatches():
    ends = []
    for make in (
        lambda: conadv(without_normalization(), microbatches=4, staleness=1),
        lambda: conadv(Microbatched(without_normalization(), 4), staleness=1),
        lambda: conadv(without_normalization(), staleness=1),
    ):
        model = make()
        history = fit(model, IMAGES, ONE_HOT, epochs=2)
        ends.append((model, history))
    (one, history), (other, other_history), (plain, plain_history) = ends
    assert_same(weights(one), weights(other))
    assert history == other_history
    assert_all_close(weights(one), weights(plain), 1e-5)
    assert history["clean_loss"] == pytest.approx(plain_history["clean_loss"], abs=1e-5)
    assert history["noise_scale"][-1] > 0
    assert "noise_scale" not in plain_history


def test_callback_of_the_noise_scale():
    model = conadv(microbatches=4, staleness=1)
    callback = callbacks.NoiseScale(verbose=0)
    history = fit(model, IMAGES, ONE_HOT, epochs=2, callbacks=[callback])
    assert "noise_scale_low" in history
    assert callback.history[-1].step == 8


@pytest.mark.parametrize("name", ["LARS", "LAMB"])
def test_optimizers_and_schedules(name):
    rate = schedules.LEGW(0.05, base_batch_size=4, batch_size=BATCH, steps_per_epoch=4, warmup_epochs=0.5)
    model = conadv(staleness=1, compiling={"optimizer": getattr(optimizers, name)(rate)})
    history = fit(model, IMAGES, ONE_HOT)
    assert np.isfinite(history["loss"]).all()
    assert np.abs(weights(model)[0] - network().get_weights()[0]).max() > 1e-4


def test_autowu():
    schedule = schedules.AutoWU(12, steps_per_check=2)
    model = conadv(staleness=1, compiling={"optimizer": keras.optimizers.SGD(schedule)})
    callback = callbacks.AutoWU(verbose=0)
    history = fit(model, IMAGES, ONE_HOT, callbacks=[callback])
    assert len(callback.losses) == 12
    sizes = np.array([8, 8, 8, 5])
    mean = (callback.losses[-4:] * sizes).sum() / sizes.sum()
    assert mean == pytest.approx(history["loss"][-1], abs=1e-5)


def test_a_rate_of_zero_gives_the_same_for_every_staleness():
    ends = []
    for staleness in (0, 1, 3):
        model = conadv(staleness=staleness, random_start=0.5, compiling={"optimizer": keras.optimizers.SGD(0.0)})
        ends.append([*weights(model), *adversarial_weights(model), np.array(fit(model, epochs=2)["adversarial_loss"])])
    assert_same(ends[1], ends[0])
    assert_same(ends[2], ends[0])


def test_later_epochs_do_not_retrace():
    """tf_keras goes on to the next epoch without an end of the data, so that the last one is the first to show it."""
    model, counts = conadv(staleness=1, compiling=GRAPH), []
    for _ in range(2):
        fit(model, epochs=2)
        functions = model.train_function._update, model.train_function._craft
        counts.append([function.experimental_get_tracing_count() for function in functions])
    assert counts[0] == counts[1], counts
    assert counts[0][0] <= 5
