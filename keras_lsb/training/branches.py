"""A second set of batch normalization for a model, and passes through a model that leave its state alone."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Layer, Model, Tensor, Variable
from keras_lsb.distribute.reduction import local_copy

keras = _keras.keras
_NORMALIZATIONS = (keras.layers.BatchNormalization,)
if _keras.LEGACY:  # whose synchronized kind is no subclass of the plain one
    _NORMALIZATIONS += (keras.layers.experimental.SyncBatchNormalization,)


def normalizations(model: Model) -> list:
    """The layers of a model, nested ones included, that normalize with statistics of the batch."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, _NORMALIZATIONS)]


class AdversarialSet(_keras.Layer):
    """For each batch normalization of a model another one, with gamma, beta and moving statistics of its own."""

    def __init__(self, name: str = "adversarial_set"):
        super().__init__(name=name)
        self.built = True
        self.layers: list[Layer] = []
        self._originals: tuple = ()

    def fill(self, model: Model) -> None:
        """Creates the second set of a built model, once."""
        originals = normalizations(model)
        if self._originals or not originals:
            return
        made = []
        for layer in originals:
            config = {**layer.get_config(), "name": f"{layer.name}_adversarial"}
            twin = type(layer).from_config(config)
            twin.build(layer.get_build_config()["input_shape"])
            twin.built = True
            made.append(twin)
        # Not as an attribute that Keras tracks: these layers belong to the model.
        object.__setattr__(self, "_originals", tuple(originals))
        self.layers = made
        self.copy()

    def copy(self) -> None:
        """Gives the second set the values of the first."""
        for layer, twin in zip(self._originals, self.layers, strict=True):
            for source, variable in zip(layer.weights, twin.weights, strict=True):
                variable.assign(_keras.read(source))

    def in_place(self) -> AbstractContextManager:
        """A context in which the model normalizes with this set."""
        pairs = list(zip(self._originals, self.layers, strict=True))
        for layer, twin in pairs:
            if twin.trainable != layer.trainable:
                twin.trainable = layer.trainable
        return redirected([(layer, "call", twin.call) for layer, twin in pairs])


@contextlib.contextmanager
def leaving_state(
    model: Model, adversarial_set: AdversarialSet, values: Iterable[tuple[Variable, Tensor]] = ()
) -> Iterator[None]:
    """Within it, passes through the model read its state and change none of it, in training mode too.

    Keras 3: nothing at all. tf_keras: no moving statistics, the only state of its own layers that is a variable.

    Args:
        values: pairs of a variable and the value that it has for these passes, in Keras 3; see `swapped`.
    """
    if not _keras.LEGACY:
        with _keras.keras3.StatelessScope(state_mapping=values):
            yield
        return
    layers = [*normalizations(model), *adversarial_set.layers]
    methods = [(layer, name) for layer in layers for name in ("_assign_moving_average", "_assign_new_value")]
    with redirected([(layer, name, lambda variable, *_: variable) for layer, name in methods]):
        yield


@contextlib.contextmanager
def swapped(values: Iterable[tuple[Variable, Tensor]]) -> Iterator[None]:
    """Within it, variables of tf_keras have other values; `values` are pairs of both. Those they had come back."""
    if not _keras.LEGACY or not values:
        yield
        return
    copies = [local_copy(variable) for variable, _ in values]
    kept = [_keras.tensorflow.identity(copy) for copy in copies]
    for copy, (_, value) in zip(copies, values, strict=True):
        copy.assign(value)
    try:
        yield
    finally:
        for copy, value in zip(copies, kept, strict=True):
            copy.assign(value)


_active = threading.local()  # replicas are traced in threads of their own, in turns


@contextlib.contextmanager
def redirected(methods: list) -> Iterator[None]:
    """Within it, in this thread, calls of methods go to others. `methods` are (owner, name, replacement)."""
    stack = _active.__dict__.setdefault("stack", [])
    for owner, name, _ in methods:
        _Redirection.install(owner, name)
    stack.append({(id(owner), name): replacement for owner, name, replacement in methods})
    try:
        yield
    finally:
        stack.pop()
        for owner, name, _ in methods:
            owner.__dict__[name].remove()


class _Redirection:
    """Stands in a layer's attributes for one of its methods, as long as any thread redirects it."""

    @staticmethod
    def install(owner: Any, name: str) -> None:
        found = owner.__dict__.get(name)
        if not isinstance(found, _Redirection):
            found = _Redirection(owner, name)
            object.__setattr__(owner, name, found)
        found._uses += 1

    def __init__(self, owner: Any, name: str):
        self._owner, self._name, self._uses = owner, name, 0
        self._own = owner.__dict__.get(name)
        self._stock = getattr(owner, name)

    def remove(self) -> None:
        self._uses -= 1
        if self._uses:
            return
        object.__delattr__(self._owner, self._name)
        if self._own is not None:
            object.__setattr__(self._owner, self._name, self._own)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        for redirections in reversed(_active.__dict__.get("stack", [])):
            if replacement := redirections.get((id(self._owner), self._name)):
                return replacement(*arguments, **keywords)
        return self._stock(*arguments, **keywords)
