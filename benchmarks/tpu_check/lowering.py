"""Lowers the package's arithmetic and training steps for TPUs through TensorFlow, without a TPU or its compiler.

An operation that has no kernel there, or a call of Python, makes the lowering raise. TensorFlow lowers functions of
arrays only, so that a training step, which reads and writes variables, is made one: see `without_variables`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from benchmarks.tpu_check import program
from keras_lsb import _keras, scaling
from keras_lsb._keras import ops
from keras_lsb.scaling.noise_scale import COLUMNS, noise_to_signal, signal_and_noise
from keras_lsb.schedules import LEGW
from keras_lsb.training import ConAdv, Microbatched
from keras_lsb.training.attack import Attack
from keras_lsb.training.look_ahead import Step
from keras_lsb.training.named_inputs import named_inputs
from tests import registry

keras = _keras.keras
_EXAMPLES, _SHAPE, _CLASSES = 12, (8, 8, 3), 5
_LEGW = {"base_batch_size": 4, "batch_size": _EXAMPLES, "steps_per_epoch": 10, "warmup_epochs": 0.5}


class Lowered(NamedTuple):
    """A program as XLA prints it, and as StableHLO, which the TPU compiler takes."""

    hlo: str
    stablehlo: str


def lower(function: Callable, *specs) -> Lowered:
    """The program of `function` for a TPU. `specs` are nested structures of `tf.TensorSpec`.

    Raises:
        ValueError: it does not lower, or what it lowers to would leave the TPU.
    """

    def of_flat(*arrays):
        return function(*tf.nest.pack_sequence_as(specs, arrays))

    compiled = tf.function(of_flat, jit_compile=True, autograph=False)
    with _sums_as_on_accelerators():
        try:
            printed = compiled.experimental_get_compiler_ir(*tf.nest.flatten(specs))
            lowered = Lowered(*(printed(stage=stage, platform_name=platform()) for stage in Lowered._fields))
        except (tf.errors.OpError, ValueError) as error:
            raise ValueError(f"The function does not lower for a TPU: {error}") from error
    if found := program.problems(lowered.hlo):
        raise ValueError(f"The function does not stay on a TPU: {', '.join(found)}")
    return lowered


@functools.cache
def platform() -> str:
    """The platform that is lowered for: TPU, or CPU with TensorFlow wheels that are built without kernels for TPUs.

    The wheel tensorflow has none since they moved to tensorflow-tpu. Most kernels of XLA's CPU are those of all
    platforms; the programs they give are TPU programs once `problems` finds nothing and the TPU compiler takes them.
    """
    square = tf.function(lambda x: x * x, jit_compile=True)
    try:
        square.experimental_get_compiler_ir(tf.TensorSpec([]))(stage="hlo", platform_name="TPU")
    except ValueError:
        return "CPU"
    return "TPU"


def without_variables(function: Callable, *specs) -> Callable:
    """`function` with the present values of variables for what it reads, and what it writes among its results.

    Its operations are those of the original; its numbers are not, where something is read after it is written. Writes
    within the loop over microbatches are left out: the first microbatch, outside of it, does the same.
    """
    written, kinds = [], [kind for kind in type(tf.Variable(0.0)).__mro__ if "assign" in vars(kind)]

    def traced(*arguments):
        with _collecting_writes(kinds, written):
            results = function(*arguments)
        graph = tf.compat.v1.get_default_graph()
        return results, [value for value in written if value.graph is graph]

    with _sums_as_on_accelerators():
        concrete = tf.function(traced, autograph=False).get_concrete_function(*specs)
        return convert_variables_to_constants_v2(concrete, lower_control_flow=False)


def checks() -> dict[str, Callable[[], Lowered]]:
    """What is lowered, by name: each call returns the program, or raises where something does not lower."""
    found = {f"rule {name}": _rule(name) for name in registry.OPTIMIZERS}
    found |= {f"schedule {name}": _schedule(name) for name in registry.SCHEDULES}
    found |= {
        f"step {name} {kind}": _step(name, microbatches)
        for name in registry.CLASSES
        for kind, microbatches in (("Keras", 0), ("Microbatched", 4), ("Microbatched, ragged", 5))
    }
    found |= {f"step {name} ConAdv": _concurrent_step(name) for name in registry.CLASSES}
    return {**found, "noise scale": _noise_scale, "attack": _attack}


def _rule(name: str) -> Callable[[], Lowered]:
    """One update of all variables of the registry by the rule, as the optimizer calls it."""

    def run():
        optimizer = registry.make(name)
        variables = registry.variables_of(registry.inputs()[0])
        optimizer.build(variables)

        def update(weights, gradients, slots, learning_rate, step):
            return [
                optimizer.rule(
                    weight,
                    gradient,
                    *own,
                    learning_rate=learning_rate,
                    step=step,
                    weight_decay=optimizer.weight_decay if decays else 0.0,
                    adapt=adapts,
                    **optimizer.options(path),
                )
                for weight, gradient, own, decays, adapts, path in zip(
                    weights, gradients, slots, optimizer._decays, optimizer._adapts, optimizer._paths, strict=True
                )
            ]

        arrays = [tf.TensorSpec(variable.shape) for variable in variables]
        slots = [[spec] * len(optimizer.slot_names) for spec in arrays]
        return lower(update, arrays, arrays, slots, tf.TensorSpec([]), tf.TensorSpec([]))

    return run


def _schedule(name: str) -> Callable[[], Lowered]:
    def run():
        step = tf.TensorSpec([], tf.int64)
        return lower(without_variables(registry.make_schedule(name), step), step)

    return run


def _step(name: str, microbatches: int) -> Callable[[], Lowered]:
    """The whole of `train_step`: model, loss, metrics, noise scale, schedule and optimizer."""

    def run():
        specs = tf.TensorSpec((_EXAMPLES, *_SHAPE)), tf.TensorSpec((_EXAMPLES,), tf.int32)
        model = training_model(registry.make(name, learning_rate=LEGW(0.5, **_LEGW), fused=False), microbatches)
        return lower(without_variables(lambda x, y: model.train_step((x, y)), *specs), *specs)

    return run


def _concurrent_step(name: str) -> Callable[[], Lowered]:
    """A step of `ConAdv`: both branches on examples made before, the update, the attack on a batch that is ahead."""

    def run():
        images, labels = tf.TensorSpec((_EXAMPLES, *_SHAPE)), tf.TensorSpec((_EXAMPLES,), tf.int32)
        optimizer = registry.make(name, learning_rate=LEGW(0.5, **_LEGW), fused=False)
        model = training_model(optimizer, wrap=lambda inner: ConAdv(inner, 0.1, value_range=(-9.0, 9.0)))

        def step(x, y, adversarial, ahead, labels_ahead):
            crafted, (name,) = [], named_inputs(model.model, x)
            logs = model.train_step(Step((x, y), {name: adversarial}, (ahead, labels_ahead), crafted))
            return logs, crafted

        specs = images, labels, images, images, labels
        return lower(without_variables(step, *specs), *specs)

    return run


def _attack() -> Lowered:
    """Several steps from a random start to random targets, on a linear model."""
    attack = Attack([0.1, 0.2, 0.3], attack_steps=3, random_start=0.5, target="random", value_range=(-9.0, 9.0))

    def run(x, y, kernel, index):
        def loss_of(images, targets_of):
            logits = tf.reshape(images["image"], [_EXAMPLES, -1]) @ kernel
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets_of(logits), logits)
            return tf.reduce_sum(losses)

        return attack(loss_of, {"image": x}, y, index)

    kernel = tf.TensorSpec((int(np.prod(_SHAPE)), _CLASSES))
    images, labels = tf.TensorSpec((_EXAMPLES, *_SHAPE)), tf.TensorSpec((_EXAMPLES,), tf.int32)
    return lower(run, images, labels, kernel, tf.TensorSpec([], tf.int32))


def _noise_scale() -> Lowered:
    def measure(averages, small, big, small_batch, big_batch):
        averages = scaling.update_averages(averages, *signal_and_noise(small, big, small_batch, big_batch), 0.99)
        row = dict(zip(COLUMNS, tf.unstack(averages, axis=-1), strict=True))
        return averages, noise_to_signal(row["trace"], row["grad_sq_norm"], ops.where)

    scalar, norms = tf.TensorSpec([]), tf.TensorSpec([3])
    return lower(measure, tf.TensorSpec([3, len(COLUMNS)]), norms, norms, scalar, scalar)


def training_model(optimizer, microbatches: int = 0, wrap=None):
    """A compiled model that has trained a step, as Keras has it, with `microbatches` or inside what `wrap` returns."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(_SHAPE),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.1),
            layers.Flatten(),
            layers.Dense(_CLASSES),
        ]
    )
    model = Microbatched(model, microbatches, groups={"kernels": "kernel"}) if microbatches else model
    model = wrap(model) if wrap else model
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    random = np.random.default_rng(0)
    batch = random.normal(size=(_EXAMPLES, *_SHAPE)), random.integers(0, _CLASSES, _EXAMPLES)
    model.train_on_batch(*batch)  # makes what is made when first used
    return model


def _sums_as_on_accelerators():
    """Machines without an accelerator sum by products; what is lowered is what a TPU would run."""
    return mock.patch.object(_keras, "_sums_by_products", return_value=False)


@contextlib.contextmanager
def _collecting_writes(kinds: list[type], written: list) -> Iterator[None]:
    def write(variable, value, *_, **__):
        written.append(tf.convert_to_tensor(value, variable.dtype))
        return written[-1]

    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(mock.patch.multiple(kind, assign=write, assign_add=write, assign_sub=write))
        yield
