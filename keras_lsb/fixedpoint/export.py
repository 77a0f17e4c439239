"""The integers of solved layers as a C header, with the function that applies them, and as JSON."""

import json
import re
from pathlib import Path

import numpy as np

from keras_lsb.fixedpoint.affine import FixedPoint

_C_TYPES = ((8, "int8_t"), (16, "int16_t"), (32, "int32_t"), (64, "int64_t"))


def export_header(layers: dict[str, FixedPoint], path: str | Path) -> Path:
    """Writes the integers of layers to a C99 header, and beside it, with the suffix .json, as JSON.

    The header holds for each layer `NAME` its arrays and `NAME_apply(channel, x)`, which returns the output of one
    input of one channel. Sums are 64 bits wide; the shift rounds down for negative ones, whatever the compiler's does.

    Args:
        layers: name to solution. Names must be C identifiers.
        path: of the header, such as "batch_norm.h".

    Returns:
        The path of the header.

    Raises:
        ValueError: a name that is no identifier, or integers whose sum could leave 64 bits.
    """
    path = Path(path)
    for name, layer in layers.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(f"`layers` must be named by identifiers of C. Received: {name!r}")
        if layer.largest_sum() >= 2**63 or np.max(layer.shift) > 62:
            raise ValueError(
                f"The sums of layer {name!r} do not fit 64 bits. "
                f"Received: up to {layer.largest_sum()}, shift {np.max(layer.shift)}"
            )
    guard = re.sub(r"\W", "_", path.name.upper())
    parts = [f"#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n"]
    parts += [_layer(name, layer) for name, layer in layers.items()]
    path.write_text("\n".join([*parts, f"#endif /* {guard} */\n"]), encoding="utf-8")
    found = {name: _as_json(layer) for name, layer in layers.items()}
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def _layer(name: str, layer: FixedPoint) -> str:
    columns = _columns(layer)
    arrays = "".join(
        f"static const {_c_type(values)} {name}_{key}[{len(values)}] = {{{', '.join(map(str, values))}}};\n"
        for key, values in columns.items()
    )
    low, high = layer.input_range
    return f"""/* Outputs are exact for inputs from {low} to {high}. */
{arrays}
static inline int32_t {name}_apply(int32_t channel, int32_t x)
{{
    const int64_t sum = (int64_t){name}_multiplier[channel] * x + {name}_offset[channel];
    const int64_t divisor = (int64_t)1 << {name}_shift[channel];
    int64_t result = sum / divisor - (sum % divisor < 0);
    result = result < {name}_low[channel] ? {name}_low[channel] : result;
    return (int32_t)(result > {name}_high[channel] ? {name}_high[channel] : result);
}}
"""


def _columns(layer: FixedPoint) -> dict[str, list[int]]:
    names = ("multiplier", "offset", "shift", "low", "high")
    values = np.broadcast_arrays(layer.multiplier, layer.offset, layer.shift, *layer.output_range)
    return {name: [int(one) for one in array] for name, array in zip(names, values, strict=True)}


def _c_type(values: list[int]) -> str:
    """The narrowest type that holds all values; C has no literal for the least int64_t, which sums leave out."""
    return next(
        name for bits, name in _C_TYPES if all(-(2 ** (bits - 1)) <= value < 2 ** (bits - 1) for value in values)
    )


def _as_json(layer: FixedPoint) -> dict:
    return {**_columns(layer), "input_range": [int(bound) for bound in layer.input_range]}
