"""Loading of quantization-aware models."""

import importlib
from contextlib import AbstractContextManager
from typing import Any, Self

from keras_lsb import _keras
from keras_lsb.quantization.aware import require_tfmot

_WRAPPERS = ("QuantizeLayer", "QuantizeWrapper", "QuantizeWrapperV2")


def quantize_scope() -> AbstractContextManager:
    """A scope in which `load_model` knows tfmot's objects and ours: .h5 files, SavedModels, and .keras files too.

    tfmot's own scope does not load .keras files: its layers are built twice there, and count their variables twice.

    Raises:
        ValueError: in Keras 3, which tfmot does not know.
        ImportError: without tensorflow-model-optimization.
    """
    require_tfmot()
    tools = importlib.import_module("tensorflow_model_optimization").quantization.keras
    with tools.quantize_scope():
        mended = {name: _mended(_keras.keras.saving.get_registered_object(name)) for name in _WRAPPERS}
    return _Scope(tools.quantize_scope(), _keras.keras.saving.custom_object_scope(mended))


class _Scope:
    """Two scopes, the second inside of the first."""

    def __init__(self, *scopes: Any):
        self._scopes = scopes

    def __enter__(self) -> Self:
        for scope in self._scopes:
            scope.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for scope in reversed(self._scopes):
            scope.__exit__(*error)


def _mended(wrapper: Any) -> type:
    """A wrapper of tfmot that is built once, and finds its variables in .keras files."""

    class Mended(wrapper):
        """As tfmot's."""

        built: bool

        def build(self, input_shape: Any) -> None:
            """Builds what is not built."""
            if not self.built:
                super().build(input_shape)
                self.built = True

        def load_own_variables(self, store: Any) -> None:
            """Takes the last variables of the store: those before are of the layer inside, which has them too."""
            own = [*self._trainable_weights, *self._non_trainable_weights]
            first = len(store.keys()) - len(own)
            for place, variable in enumerate(own, first):
                variable.assign(store[str(place)])

    Mended.__name__ = Mended.__qualname__ = wrapper.__name__
    return Mended
