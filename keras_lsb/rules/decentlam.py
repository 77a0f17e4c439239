"""DecentLaM and DmSGD: momentum SGD whose nodes average with their neighbours, as a message and a finish around it.

Source: Yuan, Chen, Huang, Zhang, Pan, Xu, Yin, "DecentLaM: Decentralized Momentum SGD for Large-batch Deep Training",
2021, arXiv 2104.11981; DmSGD as the adapt-then-combine rule that it improves on.

Every node makes its message z, the exchange returns to node i the disagreement sum over j of w_ij (z_i - z_j), and the
finish makes of it the step. Only +, - and * are used, so that arrays of NumPy serve as well as tensors.
"""

from keras_lsb._types import Tensor


def decentlam_message(
    weight: Tensor, gradient: Tensor, displacement: Tensor, *, learning_rate: Tensor, momentum: float
) -> Tensor:
    """What DecentLaM sends to its neighbours: `z = weight - learning_rate * gradient`.

    Args:
        weight, gradient: arrays of one shape, float32 or wider. The gradient is that of the mean loss of the node's own
            batch, with weight decay already added.
        learning_rate: scalar, the same on all nodes.
        displacement, momentum: not used; they are what `dmsgd_message` needs.
    """
    del displacement, momentum
    return weight - learning_rate * gradient


def decentlam(
    gradient: Tensor, displacement: Tensor, disagreement: Tensor, *, learning_rate: Tensor, momentum: float
) -> tuple[Tensor, ...]:
    """One DecentLaM update: `(step, displacement)`, where `weight - step` is the new weight.

        displacement = momentum * displacement + (learning_rate * gradient + disagreement)
        step = displacement

    The bracket is learning_rate * gt_i of the paper, x_i - sum over j of w_ij (x_j - learning_rate g_j), because the
    weights of a node sum to 1. Written with differences of messages
      - nodes that agree have a disagreement of exactly 0, whatever the rounding of the weights. Otherwise their sum,
        which is not quite 1 in float32, acts as a growth or decay that momentum amplifies;
      - nothing is divided by the learning rate, which may be 0;
      - one node does what Keras' SGD with momentum does, to the last bit;
      - messages may be rounded for the way, if both ends of an edge use the rounded ones: what two nodes give each
        other still cancels, and the mean of all nodes does not move.

    The learning rate is inside the displacement, as in Keras' SGD. The paper's velocity is in gradient units: hand in
    `momentum * learning_rate / learning_rate of the step before` for that, and `momentum` while the latter is 0.

    Args:
        gradient: as given to `decentlam_message`.
        displacement: in parameter units, shape of the gradient; zeros before the first step.
        disagreement: sum over the neighbours j of w_ij (z_i - z_j), shape of the gradient; zeros on one node.
        learning_rate: scalar of this step.
        momentum: in [0, 1); 0 is decentralized SGD.
    """
    displacement = momentum * displacement + (learning_rate * gradient + disagreement)
    return displacement, displacement


def dmsgd_message(
    weight: Tensor, gradient: Tensor, displacement: Tensor, *, learning_rate: Tensor, momentum: float
) -> Tensor:
    """What DmSGD sends to its neighbours: the weight that momentum SGD on the node's own gradients would have.

        z = weight - (momentum * displacement + learning_rate * gradient)

    Args:
        weight, gradient, displacement: arrays of one shape, as for `decentlam_message` and `dmsgd`.
        learning_rate, momentum: scalars.
    """
    return weight - _local_displacement(gradient, displacement, learning_rate, momentum)


def dmsgd(
    gradient: Tensor, displacement: Tensor, disagreement: Tensor, *, learning_rate: Tensor, momentum: float
) -> tuple[Tensor, ...]:
    """One DmSGD update: `(step, displacement)`, where `weight - step` is the new weight.

        displacement = momentum * displacement + learning_rate * gradient
        step = displacement + disagreement

    The disagreement stays outside the momentum: stable on every graph, but the nodes settle away from the optimum of
    all data by a squared distance that grows as 1 / (1 - momentum)^2.

    Args:
        gradient, displacement, disagreement, learning_rate, momentum: as for `decentlam`, with `dmsgd_message` for z.
    """
    displacement = _local_displacement(gradient, displacement, learning_rate, momentum)
    return displacement + disagreement, displacement


def _local_displacement(gradient: Tensor, displacement: Tensor, learning_rate: Tensor, momentum: float) -> Tensor:
    return momentum * displacement + learning_rate * gradient
