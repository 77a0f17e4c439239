"""Which variables a rule leaves out: by regular expression on the variable's path, or by predicate."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from keras_lsb import _keras
from keras_lsb._types import Variable

Exclusion = Sequence[str] | Callable[["VariablePath"], bool] | None

# Biases and normalization parameters, by name and role: the last part of the path in either flavour of Keras.
DEFAULT_EXCLUSION = (r"bias$", r"(^|[/_])(gamma|beta)$", r"norm[^/]*/(scale|offset)$")


class VariablePath(str):
    """`layer/name` of a variable, the same in both flavours: Keras 3's `path`, or tf_keras' name without ":0".

    It also knows the variable's `name` (the last part), `shape` and `dtype`, so that a predicate may go by them:
    `lambda variable: len(variable.shape) < 2`.
    """

    shape: tuple[int, ...]
    dtype: str

    def __new__(cls, variable: Variable) -> "VariablePath":
        path = super().__new__(cls, getattr(variable, "path", None) or variable.name.split(":")[0])
        path.shape = tuple(variable.shape)
        path.dtype = _keras.dtype_name(variable)
        return path

    @property
    def path(self) -> str:
        """The path as a plain string."""
        return str(self)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.rpartition("/")[2]


def check_exclusion(argument: str, exclusion: Exclusion) -> Exclusion:
    """`exclusion` with its patterns checked; raises a ValueError that names `argument` and the pattern."""
    if exclusion is None or callable(exclusion):
        return exclusion
    if isinstance(exclusion, str):
        raise ValueError(f"`{argument}` must be a list of patterns, not one string. Received: {argument}={exclusion!r}")
    for pattern in exclusion:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`{argument}` holds {pattern!r}, which is not a regular expression: {error}. "
                f"Received: {argument}={exclusion!r}"
            ) from error
    return list(exclusion)


def excluded(exclusion: Exclusion, path: VariablePath) -> bool:
    """Whether the variable at `path` is excluded.

    Args:
        exclusion: None for biases and normalization parameters, an empty list for nothing, patterns that are searched
            (not anchored) in the path, or a predicate of the `VariablePath`.
        path: path of the variable.
    """
    if callable(exclusion):
        return bool(exclusion(path))
    return any(re.search(pattern, path) for pattern in (DEFAULT_EXCLUSION if exclusion is None else exclusion))


def warn_of_idle_patterns(argument: str, patterns: Any, paths: Sequence[str]) -> None:
    """Warns of each of the user's patterns that matches no variable: a silent typo would cost a run.

    Args:
        argument: name of the optimizer's argument.
        patterns: regular expressions; None or a function is left alone.
        paths: paths of the variables that the optimizer updates.
    """
    if patterns is None or callable(patterns):
        return
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            warnings.warn(
                f"`{argument}` holds {pattern!r}, which matches no variable and so does nothing. Patterns are searched "
                f"in the variable's path. Received: {argument}={patterns!r}, with variables {list(paths)!r}",
                stacklevel=3,
            )


def serialize_selection(value: Any) -> Any:
    """`value` for `get_config`: a function as its Keras serialization, patterns as plain lists and dictionaries."""
    if callable(value):
        return _keras.serialize_object(value)
    if isinstance(value, dict):
        return {pattern: list(axes) for pattern, axes in value.items()}
    return value if value is None else list(value)


def deserialize_selection(value: Any, custom_objects: dict | None = None) -> Any:
    """The inverse of `serialize_selection`."""
    if isinstance(value, dict) and "class_name" in value:
        return _keras.deserialize_object(value, custom_objects=custom_objects)
    return value
