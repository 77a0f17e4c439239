"""The attack that makes adversarial examples: its settings, checked, and its steps on a model."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from keras_lsb import _keras, rules
from keras_lsb._checks import choice, proportion, whole
from keras_lsb._keras import ops
from keras_lsb._types import Radius, Structure, Tensor, ValueRange
from keras_lsb.distribute.reduction import replica_index

tf = _keras.tensorflow
_SCALE = 128.0  # of the loss: gradients of single values vanish in float16, and only their signs are used


class Attack:
    """Settings of an attack within a ball of the maximum norm. `training.ConAdv` describes the arguments.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        epsilon: Radius,
        step_size: Radius | None = None,
        attack_steps: int = 1,
        *,
        random_start: float = 0.0,
        target: str | None = None,
        value_range: ValueRange | None = None,
        seed: int = 0,
    ):
        self.epsilon = _radius("epsilon", epsilon)
        self.attack_steps = whole("attack_steps", attack_steps)
        self.step_size = None if step_size is None else _radius("step_size", step_size)
        self.random_start = proportion("random_start", random_start)
        self.target = target if target is None else choice("target", target, ("random",))
        self.value_range = None if value_range is None else _checked_range(value_range)
        self.seed = whole("seed", seed, minimum=0)
        self._warn_of_short_steps()

    def get_config(self) -> dict:
        """The arguments, as JSON takes them."""
        names = ("epsilon", "step_size", "attack_steps", "random_start", "target", "value_range", "seed")
        return {name: getattr(self, name) for name in names}

    def __call__(self, loss_of: Callable, inputs: dict, targets: Structure, index: int | Tensor) -> dict:
        """Adversarial versions of `inputs`, of the same shapes and types.

        Args:
            loss_of: function of (inputs, targets_of) that returns the loss to raise: the sum over examples, or a
                positive multiple of it. `targets_of` gives the labels to compute it with from the predictions.
            inputs: name -> tensor, of all that is attacked.
            targets: labels of the batch.
            index: number of the batch, which random numbers are drawn for, a scalar tensor.
        """
        balls = {
            name: rules.ball(x, _of_input(self.epsilon, name), _of_input(self.value_range, name))
            for name, x in inputs.items()
        }
        images = self._start(inputs, balls, index)
        descend = self.target is not None

        def step(images: dict) -> dict:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(images)
                loss = loss_of(images, lambda predictions: self._attacked_targets(targets, predictions, index))
                scaled = tf.cast(loss, tf.float32) * _SCALE
            gradients = tape.gradient(scaled, images)
            moved = {}
            for name, image in images.items():
                if gradients[name] is None:
                    raise ValueError(
                        f"The loss has no gradient with respect to input {name!r}: something on the way from it is not "
                        "differentiable. Name the inputs to attack with `perturb`."
                    )
                moved[name] = rules.attack_step(image, gradients[name], *balls[name], self._step(name, descend))
            return moved

        if self.attack_steps == 1:
            return _stopped(step(images))
        loop = tf.while_loop(
            lambda number, images: number < self.attack_steps,
            lambda number, images: (number + 1, step(images)),
            (tf.constant(0), images),
            parallel_iterations=1,
        )
        return _stopped(loop[1])

    def require_attackable(self, inputs: dict) -> None:
        """Raises a ValueError that names an input without a radius, or with values outside of `value_range`."""
        for argument in ("epsilon", "step_size"):
            value = getattr(self, argument)
            missing = [name for name in inputs if isinstance(value, dict) and name not in value]
            if missing:
                raise ValueError(
                    f"`{argument}` must name every input that is attacked. Received: {value}, without {missing}"
                )
        for name, x in inputs.items():
            value_range = _of_input(self.value_range, name)
            if value_range is not None:
                _require_in_range(name, _array(x), value_range)

    def warn_of_lost_steps(self, inputs: dict, compute_dtype: str | None) -> None:
        """Warns where epsilon is less than half of a last digit of the inputs in the type that they are computed in."""
        for name, x in inputs.items():
            dtype = min(x.dtype.name, compute_dtype or x.dtype.name, key=_digits)
            largest = float(np.max(np.abs(_array(x)), initial=0))
            radius = np.min(np.abs(np.asarray(_of_input(self.epsilon, name))))
            half_digit = 2.0 ** (np.floor(np.log2(largest or 1.0)) - _digits(dtype)) / 2
            if 0 < radius < half_digit:
                warnings.warn(
                    f"`epsilon` changes nothing where inputs are largest: {radius:.3g} is less than half a last digit "
                    f"({half_digit:.3g}) of {largest:.3g} in {dtype}, in which input {name!r} is computed",
                    stacklevel=2,
                )

    def _start(self, inputs: dict, balls: dict[str, tuple[Tensor, Tensor]], index: int | Tensor) -> dict:
        if not self.random_start:
            return inputs
        coin = tf.random.stateless_uniform([], _seed(self.seed, index, 0))  # the same on all replicas: one per batch
        images = {}
        for number, (name, x) in enumerate(inputs.items()):
            seed = _seed(self.seed, index, 2 + number, replica_index())
            noise = tf.random.stateless_uniform(tf.shape(x), seed, -1.0, 1.0, x.dtype)
            epsilon = _of_input(self.epsilon, name)
            images[name] = rules.random_start(x, noise, coin, epsilon, *balls[name], self.random_start)
        return images

    def _attacked_targets(self, targets: Structure, predictions: Structure, index: int | Tensor) -> Structure:
        if self.target is None:
            return targets
        if any(len(_keras.leaves(structure)) != 1 for structure in (targets, predictions)):
            raise ValueError("`target='random'` needs one output with class labels. Received: several outputs")
        (targets,), (predictions,) = _keras.leaves(targets), _keras.leaves(predictions)
        classes = predictions.shape[-1]
        if classes is None or classes < 2:
            raise ValueError(f"`target='random'` needs an output of at least 2 classes. Received: {classes}")
        vectors = len(targets.shape) == len(predictions.shape) and targets.shape[-1] == classes
        shape = tf.shape(targets)[:-1] if vectors else tf.shape(targets)
        seed = _seed(self.seed, index, 1, replica_index())
        offsets = tf.random.stateless_uniform(shape, seed, 1, classes, tf.int32)
        return rules.shifted_targets(targets, offsets, classes)

    def _step(self, name: str, descend: bool) -> np.ndarray:
        step = _of_input(self.step_size, name)
        step = np.asarray(_of_input(self.epsilon, name)) / self.attack_steps if step is None else np.asarray(step)
        return -step if descend else step

    def _warn_of_short_steps(self) -> None:
        if self.step_size is None:
            return
        names = [*self.epsilon] if isinstance(self.epsilon, dict) else [""]
        for name in names:
            step, radius = (np.asarray(_of_input(value, name)) for value in (self.step_size, self.epsilon))
            if (self.attack_steps * step < radius * (1 - 1e-6)).any():
                warnings.warn(
                    f"{self.attack_steps} attack steps of `step_size` {step.tolist()} never reach `epsilon` "
                    f"{radius.tolist()}",
                    stacklevel=4,
                )


def _digits(dtype: str) -> int:
    """Binary digits of a floating type after the first."""
    return {"bfloat16": 7, "float16": 10, "float32": 23}.get(dtype, 52)


def _array(x: Structure) -> np.ndarray:
    return np.asarray(tf.cast(x, tf.float64))


def _require_in_range(name: str, x: np.ndarray, value_range: Sequence) -> None:
    low, high = (np.asarray(bound) for bound in value_range)
    slack = 1e-5 * np.abs(high - low)  # bounds and data are rounded separately
    if (x < low - slack).any() or (x > high + slack).any():
        raise ValueError(
            "Inputs must lie in `value_range`, which clips adversarial examples. Received: "
            f"value_range={value_range}, input {name!r} from {x.min():.6g} to {x.max():.6g}"
        )


def device_scope(devices: str | list[str] | None) -> AbstractContextManager:
    """The scope of the device to attack on: that of `devices`, one for all replicas or a list with one for each.

    Raises:
        ValueError: a list that is shorter than this process has replicas.
    """
    if devices is None:
        return contextlib.nullcontext()  # None would have TensorFlow leave the device of the replica
    if isinstance(devices, str):
        return tf.device(devices)
    replica = int(tf.get_static_value(tf.convert_to_tensor(replica_index())) or 0)
    if replica >= len(devices):
        raise ValueError(
            "`attack_device` must be one device, or name one for each replica of this process. "
            f"Received: attack_device={devices}, replica {replica}"
        )
    return tf.device(devices[replica])


def _stopped(images: dict) -> dict:
    return {name: ops.stop_gradient(image) for name, image in images.items()}


def _seed(seed: int, index: int | Tensor, purpose: int, replica: int | Tensor = 0) -> Tensor:
    key = tf.stack([tf.cast(seed, tf.int32), tf.cast(index, tf.int32)])
    return tf.random.fold_in(key, tf.cast(replica, tf.int32) * 1024 + purpose)


def _of_input(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else value


def _radius(name: str, value: Any) -> Any:
    """A number or a tuple of numbers, one per channel, or a dict of such by input."""
    if isinstance(value, dict):
        return {key: _radius(name, one) for key, one in value.items()}
    numbers = np.asarray(value, "float64") if not isinstance(value, (str, bytes, bool)) else np.asarray(np.nan)
    if not np.isfinite(numbers).all() or (numbers < 0).any() or numbers.ndim > 1:
        raise ValueError(
            f"`{name}` must be a finite number >= 0 in the units of the inputs, or one per channel. "
            f"Received: {name}={value!r}"
        )
    return numbers.tolist() if numbers.ndim else float(numbers)


def _checked_range(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _checked_range(one) for key, one in value.items()}
    try:
        low, high = (np.asarray(bound, "float64") for bound in value)
        good = low.ndim <= 1 and high.ndim <= 1 and (low < high).all()
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            "`value_range` must be (low, high) with low < high, each a number or one per channel. "
            f"Received: value_range={value!r}"
        )
    return [low.tolist(), high.tolist()]
