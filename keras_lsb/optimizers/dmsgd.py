"""DmSGD as a Keras optimizer."""

from keras_lsb import _keras, rules
from keras_lsb.optimizers.decentralized import DecentralizedOptimizer
from keras_lsb.topology import Topology, require_stable


@_keras.register
class DmSGD(DecentralizedOptimizer):
    """Momentum SGD on each node, whose weights are then averaged with the neighbours' (adapt, then combine).

        displacement = momentum * displacement + learning_rate * gradient
        z = weight - displacement                                           sent to the neighbours
        weight = z - sum over j of w_ij (z_i - z_j)

    Stable on every topology. Where nodes hold different data it settles away from the optimum of all of them, by a
    squared distance that grows as 1 / (1 - momentum)^2: see `DecentLaM`, whose arguments it shares.

    Args:
        learning_rate: number or schedule of steps, the same on all nodes.
        momentum: in [0, 1).
        weight_decay: added to the gradient, times the weight.
        exclude_from_weight_decay: None for biases and normalization parameters, patterns, or a predicate of the path.
        name: of the optimizer.

    Raises:
        ValueError: an argument out of range.

    Source: the method that Yuan et al., 2021, arXiv 2104.11981, improve on.
    """

    message_rule = staticmethod(rules.dmsgd_message)
    finish_rule = staticmethod(rules.dmsgd)

    def require_topology(self, topology: Topology) -> None:
        require_stable(topology, self.momentum, method="DmSGD")
