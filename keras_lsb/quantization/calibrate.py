"""Ranges of activations from data, before quantization-aware training begins."""

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from keras_lsb import _keras
from keras_lsb._types import Layer, Model, Structure, Tensor, Variable
from keras_lsb.quantization.data import batches


def calibrate(model: Model, representative_data: Structure) -> None:
    """Sets the range of each quantized activation of a quantization-aware model to the one it has on data.

    tfmot starts every range at -6 to 6 and moves it by a thousandth of the way in each step of training, so that larger
    values, such as sums of many blocks, are cut off for thousands of steps. From here the ranges move on as before.
    All else in the model stays as it is, batch statistics too.

    Args:
        model: from `quantize_model`, or from tfmot's `quantize_apply`; of tf_keras.
        representative_data: inputs: an array of examples, or an iterable of batches, each an array or a list of one
            array per input. An array is one batch.

    Raises:
        ValueError: a model without quantized activations; data without a batch; values that are not finite, with the
            name of the first layer that has them. The ranges are then those of before.
    """
    recorders = [_Recorder(*place) for layer in model._flatten_layers() for place in _places(layer)]
    if not recorders:
        raise ValueError(
            "`model` must have been quantized for training, by `quantize_model` or tfmot's `quantize_apply`. "
            f"Received: {type(model).__name__} {model.name!r} without quantized activations"
        )
    found = None
    with contextlib.ExitStack() as stack:
        for recorder in recorders:
            stack.enter_context(recorder)
        for found in batches(representative_data, len(model.inputs)):
            model([_keras.tensorflow.convert_to_tensor(one) for one in found], training=False)
        if found is None:
            raise ValueError("`representative_data` must hold a batch of examples. Received: none")
        stack.pop_all()
        for recorder in recorders:
            recorder.restore_quantizer()


def _places(layer: Layer) -> Iterator[tuple]:
    """(layer, holder, attribute) of what quantizes the activations of a layer, as tfmot's wrappers hold it."""
    if type(layer).__name__ == "QuantizeLayer" and layer.quantizer:
        yield layer, layer, "quantizer"
    if getattr(layer, "_output_quantizers", None):
        yield layer, layer, "_output_quantizers"
    for activation in getattr(layer, "_quantize_activations", ()):
        yield layer, activation, "quantizer"


class _Recorder:
    """Takes the place of a quantizer in `with`: gives its ranges what comes, and quantizes by them.

    An error in `with` gives the ranges back as they were.
    """

    def __init__(self, layer: Layer, holder: Any, attribute: str):
        self._layer, self._holder, self._attribute = layer, holder, attribute
        self._original = getattr(holder, attribute)
        self._quantizer = self._original if attribute == "quantizer" else self._original[0]
        self._before: dict = {}

    def __enter__(self) -> Self:
        # Not by assignment, which Keras would track.
        vars(self._holder)[self._attribute] = self if self._attribute == "quantizer" else [self]
        return self

    def __exit__(self, *error: Any) -> None:
        self.restore_quantizer()
        for variable, value in self._before.values():
            variable.assign(value)

    def restore_quantizer(self) -> None:
        """Puts the quantizer back."""
        vars(self._holder)[self._attribute] = self._original

    def __call__(self, inputs: Tensor, training: Any, weights: Any, **options: Any) -> Tensor:
        if "min_var" in weights:
            self._widen(inputs, weights["min_var"], weights["max_var"])
        return self._quantizer(inputs, False, weights=weights, **options)

    def _widen(self, inputs: Tensor, minimum: Variable, maximum: Variable) -> None:
        values = np.asarray(inputs)
        if not np.isfinite(values).all():
            raise ValueError(
                "`representative_data` must give finite activations. "
                f"Received: NaN or infinity in layer {self._layer.name!r}"
            )
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        if getattr(self._quantizer, "symmetric", False):
            low, high = min(low, -high), max(-low, high)
        if id(minimum) in self._before:
            low, high = min(low, float(minimum)), max(high, float(maximum))
        else:
            for variable in (minimum, maximum):
                self._before[id(variable)] = variable, np.asarray(variable)
        minimum.assign(low)
        maximum.assign(high)
