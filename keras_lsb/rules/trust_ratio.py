"""The layer-wise trust ratio that LARS and LAMB share."""

from keras_lsb._keras import ops, sum_of_squares
from keras_lsb._types import Tensor


def euclidean_norm(array: Tensor) -> Tensor:
    """Euclidean norm of a whole variable, a scalar; the absolute value of a scalar.

    Args:
        array: of any shape, float32 or wider: the sum of squares of 1e5 entries of size 1 overflows float16.
    """
    return ops.sqrt(sum_of_squares(array))


def trust_ratio(
    weight_norm: Tensor,
    update_norm: Tensor,
    *,
    coefficient: float = 1.0,
    weight_decay: float = 0.0,
    epsilon: float = 0.0,
) -> Tensor:
    """`coefficient * weight_norm / (update_norm + weight_decay * weight_norm + epsilon)`, or 1 if either norm is 0.

    A NaN norm is not hidden: the ratio is then 1 and the NaN gradient itself reaches the weights. A norm that
    overflows to infinity gives 0 or NaN.

    Args:
        weight_norm: norm of the variable, a scalar.
        update_norm: norm of what the rule would subtract (LAMB) or of the gradient (LARS), a scalar.
        coefficient: LARS' trust coefficient; 1 in LAMB.
        weight_decay: LARS' decay, which counts as part of the gradient's norm; 0 in LAMB.
        epsilon: added to the denominator.
    """
    ratio = coefficient * weight_norm / (update_norm + weight_decay * weight_norm + epsilon)
    return ops.where(ops.logical_and(weight_norm > 0, update_norm > 0), ratio, ops.ones_like(ratio))
