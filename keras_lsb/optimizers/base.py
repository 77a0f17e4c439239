"""The Keras side of every optimizer: slots, exclusions, precision and config, around a rule that is pure."""

import abc
import functools
import logging
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Self

from keras_lsb import _keras
from keras_lsb._checks import non_negative
from keras_lsb._keras import ops
from keras_lsb._types import Schedule, Tensor, Variable
from keras_lsb.distribute.keras3 import ReplicatedOptimizer
from keras_lsb.distribute.reduction import is_replicated
from keras_lsb.optimizers.exclusions import (
    Exclusion,
    VariablePath,
    check_exclusion,
    deserialize_selection,
    excluded,
    serialize_selection,
    warn_of_idle_patterns,
)

logger = logging.getLogger("keras_lsb")

# What the base class of each flavour takes besides the learning rate, the decay and the name.
_BASE_ARGUMENTS = {"clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum", "ema_overwrite_frequency"}
_BASE_ARGUMENTS |= (
    {"jit_compile", "mesh", "is_legacy_optimizer"}
    if _keras.LEGACY
    else {"loss_scale_factor", "gradient_accumulation_steps"}
)


class RuleOptimizer(ReplicatedOptimizer, abc.ABC):
    """Base of the package's optimizers: a subclass names its slots and hands arrays to a rule.

    A subclass defines `slot_names`, `rule` and `hyperparameters`. The base keeps one slot of each name per variable,
    computes in float32 (float64 for float64 variables) whatever the variable's type, sums sparse gradients into dense
    ones, applies decay only inside the rule and round-trips the config.

    Args:
        fused: on TensorFlow, whether XLA compiles the update of each large variable into few passes over its memory,
            also where the model itself is not compiled. Shapes that occur often are compiled once.
    """

    slot_names: tuple[str, ...] = ()

    # Constructor arguments that select variables.
    selections: tuple[str, ...] = ("exclude_from_weight_decay", "exclude_from_layer_adaptation")

    # Entries from which a compiled update of a variable is worth its launch; below, TensorFlow's own ops are faster.
    fuse_from: float = 16_384

    def __init__(
        self,
        learning_rate: float | Schedule,
        weight_decay: float,
        exclude_from_weight_decay: Exclusion,
        exclude_from_layer_adaptation: Exclusion,
        name: str,
        *,
        fused: bool = True,
        **kwargs: Any,
    ):
        unknown = sorted(set(kwargs) - _BASE_ARGUMENTS)
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no argument {unknown[0]!r}. "
                f"Received: {unknown[0]}={kwargs[unknown[0]]!r}. Besides its own it takes {sorted(_BASE_ARGUMENTS)}"
            )
        if isinstance(learning_rate, numbers.Real):
            # A number of any kind, such as a scalar of NumPy, becomes a float.
            learning_rate = non_negative("learning_rate", learning_rate)  # type: ignore[arg-type]
        arguments = {"name": name, "weight_decay": None, **kwargs}
        if _keras.LEGACY:
            super().__init__(**arguments)
            self._learning_rate = self._build_learning_rate(learning_rate)
        else:
            super().__init__(learning_rate=learning_rate, **arguments)
        # Set after the base class, whose own decay is a pass of its own: see `_apply_weight_decay`.
        self.weight_decay = non_negative("weight_decay", weight_decay)
        self.fused = bool(fused)
        self._decay_exclusion = check_exclusion("exclude_from_weight_decay", exclude_from_weight_decay)
        self._adaptation_exclusion = check_exclusion("exclude_from_layer_adaptation", exclude_from_layer_adaptation)

    @abc.abstractmethod
    def rule(
        self,
        weight: Tensor,
        gradient: Tensor,
        *slots: Tensor,
        learning_rate: Tensor,
        step: Tensor,
        weight_decay: float,
        adapt: bool,
        **options: Any,
    ) -> tuple:
        """One update: `(what to subtract from the weight, *new slots)`.

        Args:
            weight, gradient: arrays of one shape, float32 or float64.
            *slots: the variable's slots, in the order of `slot_names`.
            learning_rate: scalar.
            step: number of this update, 1 at the first, a float scalar.
            weight_decay: decay of this variable, 0 where it is excluded.
            adapt: False where the variable is excluded from layer adaptation.
            **options: what `options` says of the variable.
        """

    @abc.abstractmethod
    def hyperparameters(self) -> dict:
        """The subclass' own constructor arguments, for `get_config`."""

    def patterns(self) -> dict:
        """The arguments that hold patterns, to warn of those that match nothing."""
        return {
            "exclude_from_weight_decay": self._decay_exclusion,
            "exclude_from_layer_adaptation": self._adaptation_exclusion,
        }

    def options(self, path: str) -> dict:
        """Further arguments of the rule for the variable at `path`; values are hashable."""
        return {}

    def build(self, variables: Sequence[Variable]) -> None:
        """Creates the slots of `variables` and decides which of them are excluded."""
        if getattr(self, "_paths", None) is not None:
            return
        super().build(variables)
        paths = [VariablePath(variable) for variable in variables]
        for argument, patterns in self.patterns().items():
            warn_of_idle_patterns(argument, patterns, paths)
        # Keras' own `exclude_from_weight_decay` method, if the user has called it, counts as well.
        uses_decay = [self._use_weight_decay(variable) for variable in variables]
        self._decays = [
            uses and not excluded(self._decay_exclusion, path) for uses, path in zip(uses_decay, paths, strict=True)
        ]
        self._adapts = [not excluded(self._adaptation_exclusion, path) for path in paths]
        self._slots = {name: [self._add_slot(variable, name) for variable in variables] for name in self.slot_names}
        self._paths = paths
        logger.info("%s\n%s", self.name, self.summary())

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor | None = None) -> None:
        """Updates one variable and its slots in place."""
        index = self.index_of(variable)
        arguments = {
            "weight_decay": self.weight_decay if self._decays[index] else 0.0,
            "adapt": self._adapts[index],
            **self.options(self._paths[index]),
        }
        variables = [_keras.native(v) for v in (variable, *(self._slots[name][index] for name in self.slot_names))]
        shape = tuple(variables[0].shape)
        can_fuse = self.fused and math.prod(shape) >= self.fuse_from and not is_replicated(variables[0])
        if can_fuse and all(_keras.can_compile_update(v) for v in variables):
            update = self._compiled_update(shape, _keras.dtype_name(variables[0]), tuple(sorted(arguments.items())))
        else:
            update = functools.partial(self._update, arguments=arguments)
        dtype = compute_dtype(variable)
        rate = ops.cast(self.learning_rate if learning_rate is None else learning_rate, dtype)
        # A sparse gradient that was summed over replicas has lost its static shape.
        gradient = ops.reshape(ops.cast(gradient, dtype), shape)
        update(gradient, rate, ops.cast(self.iterations, dtype) + 1, *variables)

    def index_of(self, variable: Variable) -> int:
        """Place of a variable among those that the optimizer was built with."""
        return self._index_dict[self._var_key(variable)] if _keras.LEGACY else self._get_variable_index(variable)

    def summary(self) -> str:
        """A table of the variables: whether each is decayed and adapted. Known once the optimizer is built."""
        if getattr(self, "_paths", None) is None:
            raise ValueError("The optimizer is not built yet: call `build(variables)` or train one step first.")
        width = max(len(path) for path in self._paths)
        rows = [f"{'variable':{width}}  weight decay  layer adaptation"]
        for path, decays, adapts in zip(self._paths, self._decays, self._adapts, strict=True):
            rows.append(f"{path:{width}}  {'yes' if decays else 'no':12}  {'yes' if adapts else 'no'}")
        return "\n".join(rows)

    def get_config(self) -> dict:
        config = super().get_config()
        if _keras.LEGACY:
            rate = self._serialize_hyperparameter(self._learning_rate)
            config["learning_rate"] = rate if isinstance(rate, dict) else float(rate)
        selected = (self._decay_exclusion, self._adaptation_exclusion)
        own = dict(zip(RuleOptimizer.selections, map(serialize_selection, selected), strict=True))
        return {
            **config,
            "weight_decay": self.weight_decay,
            **{name: own[name] for name in self.selections},
            "fused": self.fused,
            **self.hyperparameters(),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> Self:
        config = dict(config)
        for argument in cls.selections:
            config[argument] = deserialize_selection(config.get(argument), custom_objects)
        return super().from_config(config, custom_objects=custom_objects)

    def _update(
        self, gradient: Tensor, learning_rate: Tensor, step: Tensor, variable: Variable, *slots: Tensor, arguments: dict
    ) -> None:
        dtype = compute_dtype(variable)
        weight = ops.cast(variable, dtype)
        values = [ops.cast(slot, dtype) for slot in slots]
        change, *values = self.rule(weight, gradient, *values, learning_rate=learning_rate, step=step, **arguments)
        for slot, value in zip(slots, values, strict=True):
            slot.assign(value)
        if _keras.dtype_name(variable) == dtype:
            variable.assign_sub(change)
        else:
            variable.assign(ops.cast(weight - change, _keras.dtype_name(variable)))

    def _compiled_update(self, shape: tuple[int, ...], dtype: str, arguments: tuple) -> Callable:
        """`_update` compiled for one shape: variables of the same shape and treatment share it."""
        if not hasattr(self, "_compiled_updates"):
            self._compiled_updates = _Untracked()
        key = (shape, dtype, arguments)
        if key not in self._compiled_updates.functions:
            function = functools.partial(self._update, arguments=dict(arguments))
            self._compiled_updates.functions[key] = _keras.compile_update(function)
        return self._compiled_updates.functions[key]

    def _apply_weight_decay(self, variables: Sequence[Variable]) -> None:
        """Does nothing: decay is part of the rule. The base class would decay in a pass of its own."""

    def _add_slot(self, variable: Variable, name: str) -> Variable:
        dtype = compute_dtype(variable)
        if _keras.dtype_name(variable) == dtype:
            return self.add_variable_from_reference(variable, name)
        slot_name = f"{VariablePath(variable).replace('/', '_')}_{name}"
        return self.add_variable(variable.shape, dtype=dtype, name=slot_name)


class _Untracked:
    """Keeps compiled functions out of sight of Keras' and TensorFlow's attribute tracking."""

    def __init__(self) -> None:
        self.functions: dict[tuple, Callable] = {}


def compute_dtype(variable: Variable) -> str:
    """float64 for float64 variables, float32 for all others: norms and moments overflow in half precision."""
    return "float64" if _keras.dtype_name(variable) == "float64" else "float32"
