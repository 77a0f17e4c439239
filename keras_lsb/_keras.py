"""The one door to Keras: picks Keras 3 or tf_keras once, for the whole package.

The flavour follows ``tf.keras``: with ``TF_USE_LEGACY_KERAS=1`` in the environment it is tf_keras (Keras 2), otherwise
Keras 3 with whatever backend Keras itself selects. No other module imports either of them.

``ops`` is ``keras.ops`` in both flavours, so that every update rule is written once and gives the same numbers.
"""

import contextlib
import functools
import importlib
import inspect
import json
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import keras as keras3
import numpy as np

from keras_lsb._types import Structure, Tensor, Variable

LEGACY = os.environ.get("TF_USE_LEGACY_KERAS", "") in ("1", "true", "True")
BACKEND = keras3.backend.backend()

if LEGACY and BACKEND != "tensorflow":
    raise ImportError(
        "TF_USE_LEGACY_KERAS selects tf_keras, which runs on TensorFlow only. "
        f"Unset KERAS_BACKEND or TF_USE_LEGACY_KERAS. Received: KERAS_BACKEND={BACKEND!r}"
    )

keras: Any = importlib.import_module("tf_keras") if LEGACY else keras3
ops = keras3.ops
tensorflow: Any = importlib.import_module("tensorflow") if BACKEND == "tensorflow" else None
Model: Any = keras.Model
Callback: Any = keras.callbacks.Callback
Layer: Any = keras.layers.Layer
BatchNormalization: Any = keras.layers.BatchNormalization
Optimizer: Any = keras.optimizers.Optimizer
LearningRateSchedule: Any = keras.optimizers.schedules.LearningRateSchedule
serialize_schedule = keras.optimizers.schedules.serialize
deserialize_schedule = keras.optimizers.schedules.deserialize
serialize_object = keras.saving.serialize_keras_object
deserialize_object = keras.saving.deserialize_keras_object
# Keeps functions from being converted to graph code, which fails at some valid Python.
as_written: Callable = (
    (lambda function: function) if tensorflow is None else tensorflow.autograph.experimental.do_not_convert
)
register: Callable = keras.saving.register_keras_serializable(package="keras_lsb")


def register_by_class(cls: type) -> type:
    """Registers a class, also under its bare name: tf_keras writes that for what is inside of wrappers of layers."""
    keras.saving.get_custom_objects()[cls.__name__] = cls
    return register(cls)


def dtype_name(variable: Variable) -> str:
    """Name of a variable's own type, also where mixed precision makes it report the type it is cast to."""
    # Of the class: an attribute that a distributed variable lacks has it reduce its value over all workers.
    dtype = variable.true_dtype if hasattr(type(variable), "true_dtype") else variable.dtype
    return keras3.backend.standardize_dtype(dtype)


def native(variable: Variable) -> Any:
    """The TensorFlow variable inside a Keras variable; on other backends, and for what is none, the argument itself."""
    return variable.value if BACKEND == "tensorflow" and isinstance(variable, keras3.Variable) else variable


def can_compile_update(variable: Variable) -> bool:
    """Whether `compile_update` takes this variable: a plain TensorFlow one, on a platform that has XLA."""
    on_apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return BACKEND == "tensorflow" and type(variable).__name__ == "ResourceVariable" and not on_apple


def compile_update(function: Callable) -> Callable:
    """`function` compiled by XLA, which updates the variables it is given in place."""
    return tensorflow.function(function, jit_compile=True, autograph=False)


# XLA's CPU compiler adds up an array in one long chain of additions; it vectorizes a product with ones, which is three
# times as fast. Accelerators reduce well by themselves, and may round the factors of a product.


def sum_of_squares(array: Tensor) -> Tensor:
    """Sum of the squares of all entries, a scalar."""
    squares = ops.square(array)
    if len(array.shape) > 1 and _sums_by_products():
        columns = array.shape[-1]
        squares = ops.matmul(ops.reshape(squares, (-1, columns)), ops.ones((columns,), dtype=squares.dtype))
    return ops.sum(squares)


def column_sums(matrix: Tensor) -> Tensor:
    """Sums over the first axis of a matrix."""
    if _sums_by_products():
        return ops.matmul(ops.ones((matrix.shape[0],), dtype=matrix.dtype), matrix)
    return ops.sum(matrix, axis=0)


@functools.cache
def _sums_by_products() -> bool:
    # Logical devices: a TPU on another host is none of the physical ones.
    return tensorflow is not None and all(
        device.device_type == "CPU" for device in tensorflow.config.list_logical_devices()
    )


def steps_per_execution(model: Model) -> int:
    """Training steps that `fit` runs per call of the training function."""
    steps = getattr(model, "steps_per_execution", None) or getattr(model, "_steps_per_execution", None)
    return 1 if steps is None else int(read(steps))


def reduce_logs(model: Model, logs: Structure) -> Structure:
    """What the replicas of a model return from a training step, as the one value of each that `fit` takes."""
    strategy = model.distribute_strategy
    trainer: Any
    if LEGACY:
        trainer, reduction = inspect.getmodule(keras.Model), model.distribute_reduction_method
    else:  # the module that has `fit`, in which `enable_multi_worker_fit` mends the reduction
        trainer, reduction = inspect.getmodule(keras.Model.fit), "auto"
    return trainer.reduce_per_replica(logs, strategy, reduction=reduction)


def count_training_step(model: Model) -> None:
    """Tells tf_keras, whose callbacks ask for it, of a step that its own training function has not made."""
    if LEGACY:
        model._train_counter.assign_add(1)


def unpack(data: Structure) -> tuple:
    """(x, y, sample_weight) of what `fit` hands to a training step; None for what is absent."""
    return keras.utils.unpack_x_y_sample_weight(data)


def loss_scale(optimizer: Optimizer) -> Tensor:
    """Factor by which mixed precision scales the loss, a float32 scalar; 1 without it."""
    scale: Any = getattr(optimizer, "scale_loss", None) or getattr(optimizer, "get_scaled_loss", lambda loss: loss)
    return scale(ops.ones((), "float32"))


def unscale(optimizer: Optimizer, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients of the scaled loss as the optimizer takes them: unscaled in tf_keras, while Keras 3 does it itself."""
    return optimizer.get_unscaled_gradients(gradients) if hasattr(optimizer, "get_unscaled_gradients") else gradients


def add_local_weight(layer: Layer, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Variable:
    """A weight that each replica updates for itself, with values that are the same on all; zeros at first."""
    arguments = {"name": name, "shape": shape, "initializer": "zeros", "dtype": dtype, "trainable": False}
    if LEGACY:
        kind, first = tensorflow.VariableSynchronization.ON_READ, tensorflow.VariableAggregation.ONLY_FIRST_REPLICA
        arguments |= {"synchronization": kind, "aggregation": first}
    return layer.add_weight(**arguments)


def read(variable: Variable) -> Tensor:
    """Value of a weight outside of the replicas."""
    variable = native(variable)
    if isinstance(variable, keras3.Variable):
        return variable.value
    return variable.read_value() if hasattr(variable, "read_value") else variable


def scalar(value: float) -> Tensor:
    """A float32 variable of the graph that no model tracks; on a backend without a graph of variables, the number."""
    return value if tensorflow is None else tensorflow.Variable(value, trainable=False, dtype="float32")


def assigned(variable: Variable, value: float) -> Tensor:
    """What stands for `scalar` once it has another value."""
    if tensorflow is None:
        return value
    variable.assign(value)
    return variable


def update_metrics(
    model: Model,
    loss: Tensor,
    examples: int | Tensor,
    x: Structure,
    y: Structure,
    y_pred: Structure,
    sample_weight: Structure,
) -> None:
    """Adds a batch to the metrics as Keras' own training step does. `loss` is the mean over its examples."""
    if LEGACY:  # tf_keras has added the loss when it computed it, and reads results only outside of loops
        model.compiled_metrics.update_state(y, y_pred, sample_weight)
    else:
        model._loss_tracker.update_state(loss, sample_weight=examples)
        model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def state_value(variables: Sequence[Variable], values: Sequence[Tensor], function: Callable) -> Any:
    """Result of `function` while `variables` have `values`, on a backend whose training state is passed along."""
    with keras3.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
        return function()


def has_schedule(optimizer: Optimizer) -> bool:
    """Whether the learning rate of an optimizer is a schedule or another function of the step."""
    rate = innermost(optimizer)._learning_rate
    return isinstance(rate, LearningRateSchedule) or (callable(rate) and not hasattr(rate, "assign"))


def learning_rate(optimizer: Optimizer) -> float:
    """The learning rate of an optimizer that has no schedule."""
    return float(read(innermost(optimizer).learning_rate))


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Sets a learning rate that is no schedule."""
    innermost(optimizer).learning_rate = value


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside the wrappers of mixed precision."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def map_structure(function: Callable, structure: Structure) -> Structure:
    """Applies `function` to the arrays of a nested structure; what is absent stays None."""
    return keras3.tree.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)


def leaves(structure: Structure) -> list:
    """The arrays of a nested structure."""
    return [leaf for leaf in keras3.tree.flatten(structure) if leaf is not None]


def iterations(optimizer: Optimizer) -> Variable:
    """The variable that schedules take the step from: it counts updates, or microbatches that Keras 3 accumulates."""
    return innermost(optimizer)._iterations


def updates_done(optimizer: Optimizer) -> int:
    """Value of `iterations`, read from the device."""
    return int(np.array(read(iterations(optimizer))))


def batch_statistics(model: Model) -> list:
    """Moving statistics that the replicas of a model keep each for itself: those of its batch normalization."""
    return [
        variable
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built and layer.trainable
        if not getattr(layer, "synchronized", False)
        for variable in layer.non_trainable_variables
        if "moving" in variable.name
    ]


def packed_inputs(model: Model, arrays: Sequence) -> Structure:
    """Arrays in the order of a model's inputs in the structure that the model takes: one, a list or a dictionary."""
    structure = getattr(model, "_inputs_struct", None)
    if structure is None:
        return arrays[0] if len(arrays) == 1 else list(arrays)
    return keras3.tree.pack_sequence_as(structure, list(arrays))


def single_axis(axis: int | list[int]) -> int | list[int]:
    """The axis of a batch normalization, which tf_keras turns into a list when it is built."""
    return axis if isinstance(axis, int) or len(axis) > 1 else axis[0]


def if_training(
    layer: Layer, training: bool | Tensor | None, train: Callable[[], Tensor], infer: Callable[[], Tensor]
) -> Tensor:
    """Result of one of two functions, of the first in training; frozen layers infer. `training` may be a tensor."""
    if LEGACY:
        training = layer._get_training_value(training)
    elif not layer.trainable:
        training = False
    known = tensorflow.get_static_value(training) if tensorflow.is_tensor(training) else bool(training)
    if known is None:
        return tensorflow.cond(tensorflow.cast(training, "bool"), train, infer)
    return train() if known else infer()


def loss_tracker(model: Model) -> Any:
    """The metric to which each step of training and of evaluation adds its loss, the mean over its examples."""
    return model.compiled_loss._total_loss_mean if LEGACY else model._loss_tracker


def remake_train_function(model: Model) -> None:
    """Has the training function traced anew, also while `fit` runs."""
    model.make_train_function(force=True)


_WATCHED = "keras_lsb_watched"


def watch_executions(model: Model, function: Callable[[], None]) -> None:
    """Has `function` called after each call of the training function, within which `fit` runs one or more steps.

    A callback with a method for batches would have Keras fetch the logs from the device after each of them.
    """
    stock = getattr(model.train_function, _WATCHED, model.train_function)

    def watched(*arguments: Any) -> Any:
        result = stock(*arguments)
        if BACKEND == "jax":  # what `fit` will do, so that `synchronize` finds the state after this call
            parts = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")
            model._jax_state = dict(zip(parts, result[1], strict=True))
        function()
        return result

    setattr(watched, _WATCHED, stock)
    model.train_function = watched


def stop_watching_executions(model: Model) -> None:
    """Undoes `watch_executions`."""
    model.train_function = getattr(model.train_function, _WATCHED, model.train_function)


def read_constants_anew(model: Model) -> None:
    """Has the training step see changed Python numbers, on the backend that has compiled the old ones into it."""
    if tensorflow is None and model.train_function is not None:
        step = model.train_step

        @functools.wraps(step)
        def renewed(*arguments: Any) -> Any:  # JAX does not trace the same function twice
            return step(*arguments)

        model.train_step = renewed
        remake_train_function(model)


def synchronize(model: Model) -> None:
    """Brings variables up to date while `fit` runs, on the backend that keeps their values elsewhere meanwhile."""
    if BACKEND == "jax" and getattr(model, "_jax_state", None) is not None:
        model.jax_state_sync()


def updated_values(variables: Sequence[Variable], values: Sequence[Tensor], function: Callable) -> list:
    """Values of `variables` after `function`, `values` before, on a backend whose training state is passed along."""
    with keras3.StatelessScope(state_mapping=list(zip(variables, values, strict=True))) as scope:
        function()
    return [scope.get_current_value(variable) for variable in variables]


def training_state(model: Model) -> list:
    """Weights of a model and state of its optimizer, but for the count of updates and the learning rate."""
    optimizer = innermost(model.optimizer)
    left_out = [
        id(getattr(optimizer, name, None)) for name in ("_iterations", "_learning_rate", "_current_learning_rate")
    ]
    return [variable for variable in [*model.weights, *model.optimizer.variables] if id(variable) not in left_out]


def training_settings(model: Model, params: dict) -> dict:
    """What defines a training, as JSON takes it; `params` are those that `fit` gives to callbacks."""
    optimizer = json.loads(json.dumps(serialize_object(model.optimizer), default=str))
    weights = {str(index): f"{dtype_name(v)} {list(v.shape)}" for index, v in enumerate(model.weights)}
    versions = {"keras": keras.__version__, "keras_lsb": package_version()}
    seed = None
    if tensorflow is not None:
        versions["tensorflow"] = tensorflow.__version__
        seed = tensorflow.compat.v1.get_seed(0)[0]
    steps = {name: params.get(name) for name in ("epochs", "steps")}
    return {"optimizer": optimizer, "weights": weights, "versions": versions, "seed": seed, **steps}


def state_bytes(model: Model) -> int:
    """An upper bound of the size of a weights file."""
    variables = [*model.weights, *model.optimizer.variables]
    bits = [int("".join(filter(str.isdigit, dtype_name(variable))) or 8) for variable in variables]
    entries = [int(np.prod(variable.shape)) for variable in variables]
    return sum(count * size // 8 + 16_384 for count, size in zip(entries, bits, strict=True)) + 2**20


def package_version() -> str:
    """Version of this package."""
    return importlib.import_module("keras_lsb").__version__


def build_optimizer(model: Model) -> None:
    """Creates the state of a model's optimizer, if there is none yet."""
    if getattr(model.optimizer, "built", False):
        return
    scope = contextlib.nullcontext() if tensorflow is None else model.distribute_strategy.scope()
    with scope:
        model.optimizer.build(model.trainable_variables)


class _Resumed:
    """Tells tf_keras where `fit` goes on."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def maybe_load_initial_counters_from_ckpt(
        self, steps_per_epoch: int | None, initial_epoch: int, mode: str
    ) -> tuple[int, int]:
        """(epoch, step) to begin with."""
        return self.epoch, 0


def begin_at(model: Model, epoch: int | None) -> None:
    """Has `fit`, which has just begun, go on with an epoch; None undoes it for later calls."""
    if LEGACY:
        model._training_state = None if epoch is None else _Resumed(epoch)
    else:
        model._initial_epoch = epoch


def host_values(variables: Sequence[Variable]) -> list:
    """Copies of the values of variables in host memory."""
    return [np.array(read(variable)) for variable in variables]


# What weights files look into: of the kinds that tf_keras takes, a loss has no state of its own.
_SAVEABLE: Any = (
    (keras.losses.Loss,) if LEGACY else tuple(k for k in keras.Layer.__mro__ if k.__name__ == "KerasSaveable")
)
_TRACKABLE: Any = () if tensorflow is None else (tensorflow.train.experimental.PythonState,)


class HostState(*_SAVEABLE, *_TRACKABLE):  # type: ignore[misc]  # bases are known at run time only
    """Puts state that is no variable into weights files and checkpoints, once it is an attribute of an optimizer.

    Args:
        get: returns the state, as JSON takes it.
        set: takes such a state; it is not called for files without one.
    """

    def __init__(self, get: Callable[[], Any], set: Callable[[Any], None]):
        self._get, self._set = get, set

    def serialize(self) -> str:
        """For TensorFlow's checkpoints."""
        if tensorflow is None:
            return json.dumps(self._get())
        with tensorflow.__internal__.eager_context.eager_mode():  # a SavedModel is written while a graph is built
            return json.dumps(self._get())

    def deserialize(self, string: str | bytes) -> None:
        """For TensorFlow's checkpoints."""
        self._set(json.loads(string))

    def save_own_variables(self, store: Any) -> None:
        """For weights files, which hold arrays."""
        store["json"] = np.frombuffer(self.serialize().encode(), "uint8")

    def load_own_variables(self, store: Any) -> None:
        """For weights files."""
        if "json" in store.keys():  # noqa: SIM118
            self.deserialize(bytes(np.array(store["json"])).decode())

    def _obj_type(self) -> str:
        return "Metric"  # which of its attributes Keras 3 does not look into
