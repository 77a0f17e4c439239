"""What the workers of a training tell each other before it begins, and whether they agree."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_lsb import _keras
from keras_lsb._types import Strategy
from keras_lsb.distribute.reduction import worker_count

_ABSENT = "nothing"


def from_all_workers(strategy: Strategy, value: Any) -> list:
    """What every worker passes, in the order of the workers; each has to call it. `value` is what JSON takes."""
    if worker_count(strategy) == 1:
        return [value]
    message = np.frombuffer(json.dumps(value).encode(), "uint8").astype("int32")
    sizes = _gather(strategy, np.array([len(message)], "int32"))[:, 0]
    messages = _gather(strategy, np.resize(message, int(sizes.max())))
    return [json.loads(bytes(row[:size].astype("uint8"))) for row, size in zip(messages, sizes, strict=True)]


def require_agreement(strategy: Strategy, settings: dict) -> None:
    """Compares the settings of all workers; each has to call it.

    Args:
        strategy: the strategy that they train under, None without one.
        settings: nested dictionaries of what has to be the same everywhere, as JSON takes it.

    Raises:
        ValueError: on every worker, if some differ. It names the settings and each worker's value.
    """
    workers = [dict(_flat(found)) for found in from_all_workers(strategy, settings)]
    names = dict.fromkeys(name for found in workers for name in found)
    values = {name: [found.get(name, _ABSENT) for found in workers] for name in names}
    differences = [
        f"{name}: " + ", ".join(f"{value!r} on worker {worker}" for worker, value in enumerate(found))
        for name, found in values.items()
        if any(value != found[0] for value in found)
    ]
    if differences:
        raise ValueError(
            "Workers that train one model must have the same settings. They differ in\n  " + "\n  ".join(differences)
        )


def _flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _gather(strategy: Strategy, row: np.ndarray) -> np.ndarray:
    """The rows of all workers, as a matrix."""
    tf = _keras.tensorflow
    rows = strategy.gather(strategy.run(lambda: tf.constant(row)[None]), axis=0)
    return rows.numpy()[:: len(strategy.extended.worker_devices)]
