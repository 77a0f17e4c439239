"""LEGW in plain Python: square-root learning rate, linear-epoch gradual warm-up.

Source: You, Hseu, Ying, Demmel, Keutzer, Hsieh, "Large-Batch Training for LSTM and Beyond", 2019, arXiv 1901.08256.
"""

import math


def legw(learning_rate, warmup_epochs, factor):
    """Peak learning rate and warm-up in epochs when the batch is `factor` times the base batch."""
    return learning_rate * math.sqrt(factor), warmup_epochs * factor


def legw_rate(step, schedule, base_batch_size, batch_size, steps_per_epoch, warmup_epochs):
    """Learning rate at `step` (0 at the first update).

    schedule: base recipe, a number or a function of elapsed epochs. warmup_epochs: at `base_batch_size`.
    steps_per_epoch: at `batch_size`.
    """
    epoch = step / steps_per_epoch
    base_rate = schedule(epoch) if callable(schedule) else schedule
    rate, warmup_epochs = legw(base_rate, warmup_epochs, batch_size / base_batch_size)
    if epoch < warmup_epochs:
        return rate * epoch / warmup_epochs
    return rate
