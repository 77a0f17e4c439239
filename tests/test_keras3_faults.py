"""What Keras 3 does wrong on replicas: the stock classes still do, the package's do not, and tf_keras never did.

A test of stock Keras that fails means that Keras has mended the fault: `distribute/keras3.py` then steps aside by
itself, and what it replaced can go. Batch statistics are in test_batch_statistics.py, `fit` on several workers in
test_workers.py.
"""

import functools
import inspect

import numpy as np
import pytest

from keras_lsb import _keras, distribute
from keras_lsb.distribute import keras3
from keras_lsb.distribute.batch_statistics import READERS
from tests import registry
from tests.support import LEGACY, assert_all_close, keras, keras3_only, tensorflow_only
from tests.test_replicas import train_model

pytestmark = tensorflow_only("tf.distribute")

EMA = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
CASES = {
    "clipping": {"global_clipnorm": 0.05},
    "clipping_by_variable": {"clipnorm": 0.02},
    "moving_average": EMA,
    "moving_average_and_clipping": {**EMA, "clipnorm": 0.02},
}
if not LEGACY:
    CASES |= {
        "accumulation": {"gradient_accumulation_steps": 3},
        "accumulation_and_clipping": {"gradient_accumulation_steps": 2, "global_clipnorm": 0.05},
        "all": {"gradient_accumulation_steps": 2, "global_clipnorm": 0.05, **EMA},
    }


def stock(**arguments):
    return keras.optimizers.SGD(0.5, momentum=0.9, **arguments)


def gap(make):
    """The largest difference between the weights of two replicas and of one device."""
    return max(np.abs(two - one).max() for two, one in zip(train_model(make, 2), train_model(make, 0), strict=True))


EVERYTHING = list(CASES)[-1]


@functools.cache
def on_one_device(name, case):
    return train_model(lambda: registry.make(name, **CASES.get(case, {})), 0)


@pytest.mark.parametrize(
    ("name", "replicas", "case"),
    # LAMB does not see the size of its gradients, LARS with decay does.
    [("lamb", 2, case) for case in CASES]
    + [("lars", 2, case) for case in CASES if case == "accumulation"]
    + [(name, 4, EVERYTHING) for name in registry.CLASSES],
)
def test_optimizers_of_the_package(name, replicas, case):
    one = on_one_device(name, case)
    assert_all_close(train_model(lambda: registry.make(name, **CASES[case]), replicas), one, 1e-6)
    plain = on_one_device(name, None)
    assert max(np.abs(a - b).max() for a, b in zip(one, plain, strict=True)) > 1e-3, "the arguments change nothing"


@pytest.mark.parametrize("case", ["clipping", "clipping_by_variable"])
def test_stock_clipping(case):
    found = gap(lambda: stock(**CASES[case]))
    assert found < 1e-6 if LEGACY else found > 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if case in ("accumulation", "moving_average")])
def test_stock_conditions(case):
    if LEGACY:
        assert gap(lambda: stock(**CASES[case])) < 1e-6
        return
    with pytest.raises(Exception, match="merge_call"):
        train_model(lambda: stock(**CASES[case]), 2)


@keras3_only("the fault")
def test_stock_statistics_are_those_of_the_first_replica():
    from tests.test_batch_statistics import expected_statistics, local, trained

    model = trained()
    for name in READERS:
        assert inspect.unwrap(getattr(keras.Model, name)) is not getattr(keras.Model, name)
    saved = inspect.unwrap(keras.Model.get_weights)(model)[2]
    np.testing.assert_array_equal(saved, local(model.layers[0].moving_mean)[0])
    assert np.abs(saved - expected_statistics()[0]).max() > 0.1


def optimizer_class(body: str):
    """A class with Keras' method of that source, found as the guard finds it."""
    source = f"def _backend_apply_gradients(self, grads, trainable_variables):\n    {body}\n"
    return type("Stock", (_keras.Optimizer,), {"_backend_apply_gradients": lambda *_: None, "source": source})


@pytest.fixture
def sources(monkeypatch):
    """Has the guard read the sources of classes that bring their own."""
    real = inspect.getsource
    known = {}
    monkeypatch.setattr(inspect, "getsource", lambda function: known.get(function) or real(function))
    return known


@keras3_only("the guard's method")
@pytest.mark.parametrize(
    ("body", "mended"),
    [
        ("self._backend_update_step(grads, trainable_variables, self.learning_rate)", False),
        ("self._backend_update_step(self._clip_gradients(grads), trainable_variables, self.learning_rate)", True),
        ("ops.cond(is_update_step, update, accumulate)", True),
    ],
)
def test_guard_of_the_optimizers(sources, body, mended):
    cls = optimizer_class(body)
    sources[cls._backend_apply_gradients] = cls.source
    base = keras3.replicated(cls)
    assert issubclass(base, cls)
    assert issubclass(base, keras3._ActsOnTheSum) is mended


def test_guard_sees_this_keras():
    assert issubclass(keras3.ReplicatedOptimizer, keras3._ActsOnTheSum) is not LEGACY


def build_without_the_fault(model, iterator=None, data_batch=None):
    model._symbolic_build(data_batch=data_batch)


@keras3_only("the guard's method")
def test_guard_of_fit_on_several_workers(monkeypatch):
    trainer = keras3._trainer()
    module = inspect.getmodule(trainer)
    monkeypatch.setattr(trainer, keras3._BUILD, build_without_the_fault)
    monkeypatch.setattr(module, keras3._REDUCE, lambda values, strategy, reduction: values)
    assert keras3.name_the_remedy() is False
    assert distribute.enable_multi_worker_fit() is False
    assert vars(trainer)[keras3._BUILD] is build_without_the_fault


@keras3_only("the replacement")
def test_enabling_replaces_each_method_once(monkeypatch):
    trainer = keras3._trainer()
    module = inspect.getmodule(trainer)
    for owner, name in ((trainer, keras3._BUILD), (module, keras3._REDUCE)):
        monkeypatch.setattr(owner, name, vars(owner)[name])  # put back at the end
    assert keras3._stock(trainer) is not vars(trainer)[keras3._BUILD], "importing the package names the remedy"
    assert distribute.enable_multi_worker_fit() is True
    assert distribute.enable_multi_worker_fit() is False
