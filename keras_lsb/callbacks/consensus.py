"""Whether the nodes of a decentralized training agree, and what it costs them."""

from keras_lsb import _keras
from keras_lsb.distribute.nodes import bytes_per_step, consensus_distance, has_nodes


class Consensus(_keras.Callback):
    """Logs `consensus_distance` and `bytes_sent` at the end of each epoch.

    `consensus_distance` is sum_i ||x_i - xbar||^2 / (n ||xbar||^2) of the nodes' weights x_i and their average: 0 where
    all agree. `bytes_sent` is what a node sends in a step, the mean over nodes and steps. It stands before callbacks
    that read logs, such as TensorBoard and CSVLogger. All workers have to use it.

    Raises:
        ValueError: when training begins, if the model is not made in `distribute.decentralized`.
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not has_nodes(self.model):
            raise ValueError(
                "`Consensus` needs a model that is made in `keras_lsb.distribute.decentralized(strategy, topology)`, "
                "on several replicas."
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs |= {"consensus_distance": consensus_distance(self.model), "bytes_sent": bytes_per_step(self.model)}
