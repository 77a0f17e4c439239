"""Training on several replicas: the only place that knows that there is more than one."""

from keras_lsb.distribute.batch_statistics import average_batch_statistics, average_before_reading
from keras_lsb.distribute.keras3 import MultiWorkerFitError, enable_multi_worker_fit, name_the_remedy
from keras_lsb.distribute.node_scope import NeighbourLostError, decentralized, report_failed_exchanges
from keras_lsb.distribute.nodes import consensus

__all__ = [
    "MultiWorkerFitError",
    "NeighbourLostError",
    "average_batch_statistics",
    "consensus",
    "decentralized",
    "enable_multi_worker_fit",
]

average_before_reading()
name_the_remedy()
report_failed_exchanges()
