"""Training on several replicas: the only place that knows that there is more than one."""

from keras_lsb.distribute.multi_worker import enable_multi_worker_fit

__all__ = ["enable_multi_worker_fit"]
