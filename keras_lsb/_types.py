"""Names for what Keras, its backends and Matplotlib leave untyped: Any for a type checker, but not for a reader.

Both Kerases and all backends have their own classes for each, of which one process imports some.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

Tensor: TypeAlias = Any  # of a backend, or an array of NumPy; in rules also what JAX traces
Variable: TypeAlias = Any  # of either Keras or TensorFlow
Structure: TypeAlias = Any  # tensors or arrays in nested lists, tuples and dictionaries; None for what is absent
Layer: TypeAlias = Any
Model: TypeAlias = Any
Optimizer: TypeAlias = Any
Schedule: TypeAlias = Any  # a LearningRateSchedule
Strategy: TypeAlias = Any  # of tf.distribute; None on a backend without it
Axes: TypeAlias = Any  # of Matplotlib

PerChannel: TypeAlias = float | Sequence[float]  # a number, or one per channel
Radius: TypeAlias = PerChannel | Mapping[str, PerChannel]  # for all inputs of a model, or by input
ValueRange: TypeAlias = tuple[PerChannel, PerChannel] | Mapping[str, tuple[PerChannel, PerChannel]]  # likewise

# Base class of what is mixed into classes of Keras, whose methods and attributes it uses.
if TYPE_CHECKING:
    Mixin: TypeAlias = Any
else:
    Mixin = object
