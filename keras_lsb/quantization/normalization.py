"""Batch normalization whose inference is the integer operator that ships."""

from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Tensor
from keras_lsb.quantization import simulation


@_keras.register_by_class
class FixedPointNormalization(_keras.BatchNormalization):
    """Batch normalization that LiteRT runs as one int8 operator, wherever it stands in a model.

    Training is that of `BatchNormalization`, whose arguments and variables it has. Inference is a 1x1 depthwise
    convolution with a kernel of 8 bits per channel, which `to_tflite` turns into integers with the exact outputs.
    Channels are last; inputs have rank 2, 3 or 4.

    Raises:
        ValueError: when built for inputs of another rank, or with an `axis` that is not the last; on a backend other
            than TensorFlow.
    """

    def __init__(self, *arguments: Any, **options: Any):
        if _keras.tensorflow is None:
            raise ValueError(
                "`FixedPointNormalization` needs the TensorFlow backend, from which LiteRT files are written. "
                f"Received: KERAS_BACKEND={_keras.BACKEND!r}"
            )
        super().__init__(*arguments, **options)

    def build(self, input_shape: Any) -> None:
        """Creates the variables of `BatchNormalization`."""
        rank = len(input_shape)
        axis = _keras.single_axis(self.axis)
        if rank not in (2, 3, 4) or axis not in (-1, rank - 1):
            raise ValueError(
                f"`FixedPointNormalization` {self.name!r} takes inputs of rank 2, 3 or 4 with the channels last. "
                f"Received: input_shape={tuple(input_shape)}, axis={self.axis}"
            )
        super().build(input_shape)

    def call(self, inputs: Tensor, training: bool | Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalizes by the batch in training, by the moving statistics as the integer operator does otherwise."""
        options = {} if mask is None else {"mask": mask}
        normalize = super().call
        return _keras.if_training(
            self, training, lambda: normalize(inputs, training=True, **options), lambda: self._infer(inputs)
        )

    @_keras.as_written
    def _infer(self, inputs: Tensor) -> Tensor:
        dtype = inputs.dtype
        gamma, beta, mean, variance = (
            None if variable is None else _keras.tensorflow.cast(_keras.native(variable), "float32")
            for variable in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        with _keras.tensorflow.name_scope(getattr(self, "export_scope", None) or "fixed_point"):
            scale, offset = simulation.affine(gamma, beta, mean, variance, self.epsilon)
            outputs = simulation.depthwise(_keras.tensorflow.cast(inputs, "float32"), scale, offset)
        return _keras.tensorflow.cast(outputs, dtype)
