"""Hessian-vector products of a model's loss."""

from collections.abc import Iterator, Sequence

import numpy as np

from keras_lsb import _keras, scaling
from keras_lsb._checks import whole
from keras_lsb._keras import ops
from keras_lsb._types import Model, Structure
from keras_lsb.training.derivatives import loss_derivatives


class CurvatureProbe:
    """Measures the curvature of a model's loss along its gradient on one batch, without touching its state.

    The loss is that of inference (no dropout, moving statistics in batch normalization), so that it is a function of
    the weights alone. The Hessian is that of the batch's own loss, which for a small batch is a biased estimate of the
    Hessian over all data.

    Args:
        model: a built and compiled model, on one replica.
        x: inputs of the batch.
        y: targets.
        sample_weight: weights of the examples.
        microbatches: parts for B_noise and B_simple, which must divide the batch: a gradient and a Hessian-vector
            product for each. 1 leaves both out: one gradient, one Hessian-vector product.

    Raises:
        ValueError: a batch that `microbatches` does not divide.
    """

    def __init__(
        self, model: Model, x: Structure, y: Structure, sample_weight: Structure = None, *, microbatches: int = 1
    ):
        self.microbatches = whole("microbatches", microbatches)
        self.batch = _keras.map_structure(ops.convert_to_tensor, (x, y, sample_weight))
        self.examples = int(_keras.leaves(x)[0].shape[0])
        if self.examples % self.microbatches:
            raise ValueError(
                "`microbatches` must divide the batch. "
                f"Received: microbatches={self.microbatches}, a batch of {self.examples} examples"
            )
        self._gradient, self._product = loss_derivatives(model)

    def __call__(self) -> scaling.Curvature:
        """The curvature at the present weights."""
        gradients = [self._gradient(*self.batch)]
        if self.microbatches > 1:
            gradients += [self._gradient(*part) for part in self._parts()]
        forms, sq_norms = [], []
        for gradient in gradients:
            product = self._product(*self.batch, gradient)
            forms.append(sum(_dot(a, b) for a, b in zip(gradient, product, strict=True)))
            sq_norms.append(sum(_dot(a, a) for a in gradient))
        return scaling.curvature(forms, sq_norms, (self.examples // self.microbatches, self.examples))

    def _parts(self) -> Iterator[tuple]:
        size = self.examples // self.microbatches
        for start in range(0, self.examples, size):
            yield _keras.map_structure(lambda array, start=start: array[start : start + size], self.batch)


def _dot(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    return float(ops.sum(ops.multiply(left, right)))
