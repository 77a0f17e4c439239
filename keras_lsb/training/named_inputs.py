"""The inputs of a model by name, whatever structure they come in."""

from collections.abc import Sequence

from keras_lsb._types import Model, Structure


def named_inputs(model: Model, x: Structure) -> dict:
    """The inputs of a model by name; a dict of one for a single tensor, "inputs" where the model has no name for it.

    Raises:
        ValueError: a structure that is neither a tensor nor a flat list, tuple or dict of tensors.
    """
    if isinstance(x, dict):
        named = dict(x)
    elif isinstance(x, (list, tuple)):
        names = _input_names(model)
        names = names if len(names) == len(x) else [str(index) for index in range(len(x))]
        named = dict(zip(names, x, strict=True))
    else:
        return {(_input_names(model) or ["inputs"])[0]: x}
    if any(isinstance(value, (dict, list, tuple)) for value in named.values()):
        raise ValueError(f"Inputs must be a tensor, or a flat list or dict of tensors. Received: {type(x).__name__}")
    return named


def _input_names(model: Model) -> list:
    return [getattr(one, "name", "").split(":")[0] for one in getattr(model, "inputs", None) or ()]


def with_inputs(x: Structure, named: dict, changed: dict) -> Structure:
    """The structure `x`, whose inputs by name are `named`, with some of them changed."""
    values = {**named, **changed}
    if isinstance(x, dict):
        return values
    return type(x)(values.values()) if isinstance(x, (list, tuple)) else next(iter(values.values()))


def perturbed_inputs(named: dict, perturb: Sequence[str] | None) -> dict:
    """Those of the inputs by name that are attacked: all, or those that `perturb` names.

    Raises:
        ValueError: a name that no input has, or an input that is not of a floating type.
    """
    missing = [name for name in perturb or () if name not in named]
    if missing:
        raise ValueError(
            f"`perturb` must name inputs, which are {list(named)}. Received: perturb={list(perturb or [])}"
        )
    chosen = {name: x for name, x in named.items() if perturb is None or name in perturb}
    for name, x in chosen.items():
        if not x.dtype.is_floating:
            raise ValueError(
                f"Only inputs of a floating type can be attacked: cast {name!r}, or name others with `perturb`. "
                f"Received: input {name!r} of type {x.dtype.name}"
            )
    return chosen
