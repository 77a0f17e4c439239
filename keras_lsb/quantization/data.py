"""Data that users hand over to have activations measured on."""

from collections.abc import Iterator

import numpy as np

from keras_lsb._types import Structure


def batches(data: Structure, inputs: int) -> Iterator[list[np.ndarray]]:
    """Batches as lists of one array per input.

    Args:
        data: an array of examples, or an iterable of batches, each an array or a list of one array per input.
        inputs: of the model.
    """
    for batch in [data] if isinstance(data, np.ndarray) else data:
        yield [np.asarray(one) for one in (batch if isinstance(batch, (list, tuple)) and inputs > 1 else [batch])]
