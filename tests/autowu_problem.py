"""A problem on which AutoWU switches in the middle, models for it, and the same training by hand in NumPy."""

import numpy as np

from keras_lsb import _keras
from keras_lsb.callbacks import AutoWU
from keras_lsb.scaling import AutoWUController
from keras_lsb.schedules import AutoWU as Schedule
from tests.support import TENSORFLOW, keras, with_slots

BATCH, STEPS, EPOCHS, MOMENTUM = 64, 5, 24, 0.9
TOTAL = STEPS * EPOCHS
OPTIONS = {"max_learning_rate": 100.0, "min_learning_rate": 0.01, "warmup_fraction": 0.7}
SWITCH = 70  # of at most 84
LONG_ENOUGH = 16  # epochs, to see what follows
_random = np.random.default_rng(7)
X = _random.normal(size=(BATCH * STEPS, 10)).astype("float32")
Y = np.argmax(X @ _random.normal(size=(10, 3)) + _random.normal(size=(BATCH * STEPS, 3)), axis=1)
KERNEL = (0.3 * _random.normal(size=(10, 3))).astype("float32")


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear_model(decay=0.0):
    """Multinomial regression, whose loss has `decay` times the squared weights added."""
    regularizer = keras.regularizers.L2(decay) if decay else None
    model = keras.Sequential(
        [keras.layers.Input((10,)), keras.layers.Dense(3, kernel_regularizer=regularizer, name="output")]
    )
    model.set_weights([KERNEL, np.zeros(3, "float32")])
    return model


def compiled(schedule, model=None, **arguments):
    """The model, compiled with momentum and the schedule."""
    model = linear_model() if model is None else model
    defaults = {"optimizer": keras.optimizers.SGD(schedule, momentum=MOMENTUM), "loss": loss()}
    model.compile(**{"jit_compile": not TENSORFLOW, **defaults, **arguments})
    return with_slots(model)


def made(model=None, callback=None, options=None, total=TOTAL, **arguments):
    """(model, callback) ready for `fit`; `options` are the schedule's, `arguments` those of `compile`."""
    schedule = Schedule(total, **{**OPTIONS, **(options or {})})
    return compiled(schedule, model, **arguments), AutoWU(schedule, **{"verbose": 0, **(callback or {})})


def fit(model, *callbacks, x=X, y=Y, batch_size=BATCH, epochs=EPOCHS, **arguments):
    """Fits without shuffling; the history."""
    arguments = {"shuffle": False, "verbose": 0, **arguments}
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, callbacks=list(callbacks), **arguments).history


def weights(model) -> list[np.ndarray]:
    """Of the model inside the wrapper, or of a plain model."""
    return [value.astype("float64") for value in _keras.host_values(getattr(model, "model", model).weights)]


def batches(x=X, y=Y, batch_size=BATCH) -> list:
    """The batches of an epoch."""
    return [(x[start : start + batch_size], y[start : start + batch_size]) for start in range(0, len(x), batch_size)]


class ByHand:
    """The training in float64.

    Args:
        updates: the batch of each update.
        controller: decides.
        decay: that of `linear_model`.
        execution: a switch takes effect after a multiple of so many updates.

    Attributes:
        losses: each before its update.
        rates: of the updates.
        weights: after the updates.
        switch: the first step of the decay.
    """

    def __init__(self, updates, controller, decay=0.0, execution=1):
        self.controller, self.switch = controller, None
        self.losses, self.rates, self.weights = [], [], []
        kernel, bias = KERNEL.astype("float64"), np.zeros(3)
        velocities = [np.zeros_like(kernel), np.zeros_like(bias)]
        for step, (x, y) in enumerate(updates):
            loss, gradients = loss_and_gradients(kernel, bias, x.astype("float64"), y, decay)
            self.losses.append(loss)
            self.rates.append(self._rate(step, execution))
            velocities = [MOMENTUM * v - self.rates[-1] * g for v, g in zip(velocities, gradients, strict=True)]
            kernel, bias = kernel + velocities[0], bias + velocities[1]
            self.weights.append([kernel, bias])
            if len(self.losses) % controller.steps_per_epoch == 0:
                controller.update(self.losses[-controller.steps_per_epoch :])

    def _rate(self, step, execution) -> float:
        controller = self.controller
        if self.switch is None and controller.phase == "decay" and step % execution == 0:
            self.switch = controller.switch_step if controller.reason == "limit" else step
        if self.switch is None:
            return float(controller.rates.during_warmup(step))
        return float(controller.rates.during_decay(step, self.switch, controller.peak))


def loss_and_gradients(kernel, bias, x, y, decay=0.0):
    """Of `linear_model` on a batch."""
    scores = x @ kernel + bias
    errors = np.exp(scores - scores.max(axis=1, keepdims=True))
    errors /= errors.sum(axis=1, keepdims=True)
    chosen = np.arange(len(y)), y
    value = -np.mean(np.log(errors[chosen])) + decay * np.sum(kernel**2)
    errors[chosen] -= 1
    return value, [x.T @ errors / len(y) + 2 * decay * kernel, errors.mean(axis=0)]


def by_hand(epochs=EPOCHS, options=None, total=TOTAL, interval=STEPS, data=None, **arguments) -> ByHand:
    """`ByHand` on so many epochs of batches, with the schedule's options."""
    controller = AutoWUController(total, interval, **{**OPTIONS, **(options or {})})
    return ByHand((data or batches()) * epochs, controller, **arguments)


class Watch(keras.callbacks.Callback):
    """Sees each batch of `BATCH` examples from outside.

    Attributes:
        losses: of each batch, from the running means that Keras logs.
        updates: done by the optimizer after each batch.
        weights: after each batch.
    """

    def __init__(self):
        super().__init__()
        self.losses, self.updates, self.weights = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        _keras.synchronize(self.model)
        mean = float(np.asarray(logs["loss"]))
        self.losses.append((batch + 1) * mean - (batch * self._mean if batch else 0.0))
        self.updates.append(_keras.updates_done(self.model.optimizer))
        self.weights.append(weights(self.model))
        self._mean = mean


class At(keras.callbacks.Callback):
    """Calls a function with the model when an epoch begins, before callbacks later in the list."""

    def __init__(self, epoch, function):
        super().__init__()
        self.epoch, self.function = epoch, function

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.function(self.model)


def poison(model):
    """Makes all weights NaN."""
    model.set_weights([np.full(np.shape(weight), np.nan) for weight in model.get_weights()])


class Interrupt(keras.callbacks.Callback):
    """Interrupts the training after one batch of an epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.when, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            raise KeyboardInterrupt
