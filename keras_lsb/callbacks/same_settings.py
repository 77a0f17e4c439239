"""Ends a training at once whose workers were started with different settings."""

import json
from typing import Any

from keras_lsb import _keras
from keras_lsb.distribute.agreement import require_agreement
from keras_lsb.distribute.reduction import strategy_of


class SameSettings(_keras.Callback):
    """Compares, before the first step, what each worker was started with; a no-op for a single one.

    What is compared: the configuration of the optimizer with its schedule, shapes and types of the
    weights, epochs and steps, TensorFlow's seed, the versions of the packages, and what is passed.

    Args:
        **settings: anything else that has to be the same on all workers, as JSON takes it: `batch_size=1024`.

    Raises:
        ValueError: a setting that JSON does not take; when training begins, on every worker, settings that differ. It
            names them and each worker's value.
    """

    def __init__(self, **settings: Any):
        super().__init__()
        for name, value in settings.items():
            try:
                json.dumps(value)
            except TypeError as error:
                raise ValueError(
                    f"A setting must be what JSON takes: numbers, strings, lists and dictionaries of them. "
                    f"Received: {name}={value!r}"
                ) from error
        self.settings = settings

    def on_train_begin(self, logs: dict | None = None) -> None:
        settings = {**_keras.training_settings(self.model, self.params), **self.settings}
        require_agreement(strategy_of(self.model), settings)
