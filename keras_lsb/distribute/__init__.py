"""Training on several replicas: the only place that knows that there is more than one."""

from keras_lsb.distribute.batch_statistics import average_batch_statistics, average_before_reading
from keras_lsb.distribute.keras3 import MultiWorkerFitError, enable_multi_worker_fit, name_the_remedy

__all__ = ["MultiWorkerFitError", "average_batch_statistics", "enable_multi_worker_fit"]

average_before_reading()
name_the_remedy()
