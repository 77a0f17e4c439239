"""LEGW as a Keras learning-rate schedule."""

from keras_lsb import _keras
from keras_lsb._checks import non_negative, positive
from keras_lsb._types import Schedule
from keras_lsb.scaling.legw import legw
from keras_lsb.schedules.warmup import LinearWarmup


@_keras.register
class LEGW(LinearWarmup):
    """One small-batch recipe at any batch size: sqrt(k) times its learning rate, k times its warm-up epochs.

        value(t) = sqrt(k) * s(t / n) * min(1, t / W),    k = batch_size / base_batch_size,    W = warmup_epochs * k * n

    with t the number of updates done so far, n = `steps_per_epoch` and s the recipe's schedule as a function of epochs.
    What the recipe says in epochs stays at the same epoch; only the warm-up is stretched, so that it takes the same
    number of steps at every batch size. With a warm-up, value(0) is exactly 0: the first update leaves the weights
    alone, while batch-norm statistics and Adam's moments already move.

    Ramp and decay are multiplied: the decay already runs while the ramp rises. To reproduce recipes that decay over
    the epochs *after* the warm-up, pass a schedule that is flat until then (the documentation has an example).

    Args:
        learning_rate: learning rate of the recipe at `base_batch_size`: a positive number, or a LearningRateSchedule
            whose argument is read in **epochs**, so that one recipe serves every batch size.
        base_batch_size: batch size at which the recipe was tuned, in examples, over all replicas and microbatches.
        batch_size: batch size in use, in examples, over all replicas and microbatches. Smaller than the base is legal.
        steps_per_epoch: optimizer updates per epoch **at `batch_size`** as `fit` executes them, may be fractional.
            With gradient accumulation in Keras 3, schedules see one step per microbatch: count those.
        warmup_epochs: warm-up of the recipe at `base_batch_size` in epochs, may be fractional; 0 means none.
        epochs: length of the training in epochs, if known. It turns a warm-up that would outlast the training, and a
            schedule written in steps, into a warning.
        name: name of the schedule.

    Raises:
        ValueError: an argument out of range; the message names it and its value.

    Source: You, Hseu, Ying, Demmel, Keutzer, Hsieh, 2019, arXiv 1901.08256.

    Examples:
        >>> schedule = LEGW(0.1, base_batch_size=256, batch_size=4096, steps_per_epoch=16, warmup_epochs=2)
        >>> [round(float(schedule(step)), 6) for step in (0, 256, 512, 10**6)]
        [0.0, 0.2, 0.4, 0.4]
        >>> print(schedule.summary())
        LEGW: peak learning rate 0.4, warm-up 32 epochs = 512 steps, 16 steps per epoch
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        base_batch_size: float,
        batch_size: float,
        steps_per_epoch: float,
        warmup_epochs: float,
        epochs: float | None = None,
        name: str | None = None,
    ):
        self.base_batch_size = positive("base_batch_size", base_batch_size)
        self.batch_size = positive("batch_size", batch_size)
        self.base_warmup_epochs = non_negative("warmup_epochs", warmup_epochs)
        multiplier, warmup = legw(1.0, self.base_warmup_epochs, self.factor)
        super().__init__(
            learning_rate,
            steps_per_epoch=steps_per_epoch,
            warmup_epochs=warmup,
            multiplier=multiplier,
            epochs=epochs,
            name=name,
        )

    @property
    def factor(self) -> float:
        """Batch-size factor k."""
        return self.batch_size / self.base_batch_size

    def get_config(self) -> dict:
        return {
            **self._recipe_config(),
            "base_batch_size": self.base_batch_size,
            "batch_size": self.batch_size,
            "warmup_epochs": self.base_warmup_epochs,
        }

    def _received_warmup(self) -> float:
        return self.base_warmup_epochs
