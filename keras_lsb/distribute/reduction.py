"""Keras 3 on several replicas: gradients are summed first and clipped afterwards.

Stock Keras 3 clips each replica's gradient before the sum, so that clipnorm and global_clipnorm change with the number
of replicas. Here clipping waits for the sum. tf_keras already clips the sum, and JAX has no replicas to sum over.
"""

from keras_lsb import _keras
from keras_lsb._keras import ops

_REDUCTION = "_all_reduce_sum_gradients"


def densify(gradients):
    """Turns sparse gradients into dense ones, duplicates summed; None stays None."""
    return [
        ops.segment_sum(gradient.values, gradient.indices, num_segments=gradient.dense_shape[0])
        if hasattr(gradient, "indices")
        else gradient
        for gradient in gradients
    ]


def is_replicated(variable) -> bool:
    """Whether the variable is one replica's copy of a distributed variable."""
    return hasattr(variable, "_distributed_container")


class _ClipsDense(_keras.Optimizer):
    """Clips the dense gradient: the norm of a sparse one would count its duplicate rows apart."""

    def _clip_gradients(self, grads):
        return super()._clip_gradients(densify(grads))


class _ClipsTheSum(_keras.Optimizer):
    """Delays clipping until the gradients of all replicas are summed."""

    def _clip_gradients(self, grads):
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        reduced = super()._all_reduce_sum_gradients(grads_and_vars)
        gradients = super()._clip_gradients(densify([gradient for gradient, _ in reduced]))
        return [(gradient, variable) for gradient, (_, variable) in zip(gradients, reduced, strict=True)]


# Only Keras 3's TensorFlow optimizer has the method. Where a later Keras has none, its own order of things is kept.
ReplicatedOptimizer = _ClipsTheSum if hasattr(_keras.Optimizer, _REDUCTION) else _ClipsDense
