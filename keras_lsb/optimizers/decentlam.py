"""DecentLaM as a Keras optimizer."""

from keras_lsb import _keras, rules
from keras_lsb.optimizers.decentralized import DecentralizedOptimizer
from keras_lsb.topology import Topology, require_stable


@_keras.register
class DecentLaM(DecentralizedOptimizer):
    """Momentum SGD whose nodes average with their neighbours, without the bias that momentum adds.

        z = weight - learning_rate * gradient                               sent to the neighbours
        displacement = momentum * displacement + learning_rate * gradient + sum over j of w_ij (z_i - z_j)
        weight = weight - displacement

    Made and compiled in `distribute.decentralized(strategy, topology)`, each replica is a node i with weights of its
    own and the gradient of the mean loss of its own examples; w_ij are the topology's. On one replica it is Keras' SGD
    with momentum, bit for bit. Nesterov's momentum is not offered: it is not known for this method.

    Args:
        learning_rate: a number >= 0, or a schedule of steps such as `keras_lsb.schedules.LEGW`; the same on all nodes.
        momentum: in [0, 1); 0 is decentralized SGD.
        weight_decay: L2 decay, added to the gradient before the exchange, >= 0.
        exclude_from_weight_decay: patterns searched in the variable's path, or a predicate of the path. None excludes
            biases and normalization parameters, [] nothing.
        name: name of the optimizer.
        **kwargs: Keras' own: clipnorm, clipvalue, global_clipnorm, which clip each node's gradient before the exchange;
            `use_ema` and `gradient_accumulation_steps` work on one replica only. `fused=True` compiles the update of
            large variables on one replica, which then rounds otherwise than Keras' SGD.

    Raises:
        ValueError: an argument out of range; when it is built, a topology on which the nodes would drift apart at this
            momentum, with the growth per step and what would work.

    Source: Yuan et al., 2021, arXiv 2104.11981.
    """

    message_rule = staticmethod(rules.decentlam_message)
    finish_rule = staticmethod(rules.decentlam)

    def require_topology(self, topology: Topology) -> None:
        require_stable(topology, self.momentum)
