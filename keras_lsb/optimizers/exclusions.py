"""Which variables a rule leaves out: by regular expression on the variable's path, or by predicate."""

import re
import warnings
from collections.abc import Callable, Sequence

from keras_lsb import _keras

Exclusion = Sequence[str] | Callable[[str], bool] | None

# Biases and normalization parameters, by name and role: the last part of the path in either flavour of Keras.
DEFAULT_EXCLUSION = (r"bias$", r"(^|[/_])(gamma|beta)$", r"norm[^/]*/(scale|offset)$")


def variable_path(variable) -> str:
    """`layer/name` of a variable, the same in both flavours: Keras 3's `path`, or the name without ":0"."""
    return getattr(variable, "path", None) or variable.name.split(":")[0]


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


def excluded(argument: str, exclusion: Exclusion, paths: Sequence[str]) -> list[bool]:
    """Tells for each path whether it is excluded; warns of a pattern that matches none of them.

    Args:
        argument: name of the optimizer's argument, for the warning.
        exclusion: None for biases and normalization parameters, an empty list for nothing, patterns that are searched
            (not anchored) in the path, or a predicate of the path.
        paths: paths of the variables that the optimizer updates.
    """
    if callable(exclusion):
        return [bool(exclusion(path)) for path in paths]
    patterns = DEFAULT_EXCLUSION if exclusion is None else exclusion
    for pattern in exclusion or ():
        if not any(re.search(pattern, path) for path in paths):
            warnings.warn(
                f"`{argument}` holds {pattern!r}, which matches no variable: nothing is excluded by it. Patterns are "
                f"searched in the variable's path. Received: {argument}={list(exclusion)!r}, paths={list(paths)!r}",
                stacklevel=2,
            )
    return [any(re.search(pattern, path) for pattern in patterns) for path in paths]


def serialize_function(value):
    """`value` for `get_config`, with a function turned into its Keras serialization."""
    return _keras.serialize_object(value) if callable(value) else value


def deserialize_function(value, custom_objects=None):
    """The inverse of `serialize_function`."""
    if isinstance(value, dict) and "class_name" in value:
        return _keras.deserialize_object(value, custom_objects=custom_objects)
    return value
