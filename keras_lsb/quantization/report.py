"""What `verify` has found, as numbers and as a table."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class LayerReport(NamedTuple):
    """One normalization in a LiteRT file.

    Attributes:
        name: of the layer.
        channels: of the layer.
        exact: channels whose outputs are right for all 256 inputs.
        wrong_inputs: pairs of channel and input, of 256 a channel, with a wrong output.
        outputs: that the interpreter has computed of the data.
        mismatches: of those, the ones that are not the exact integer.
        largest: difference among them, LSB.
        broken: mismatches in channels that are called exact; any is a defect.
    """

    name: str
    channels: int
    exact: int
    wrong_inputs: int
    outputs: int
    mismatches: int
    largest: int
    broken: int


class OutputReport(NamedTuple):
    """One output of the model, against the prediction of the Keras model in steps of the file's output.

    Attributes:
        name: of the tensor.
        outputs: that were compared.
        mismatches: of those, the ones in which the nearest step of the prediction is another.
        largest: difference among them, LSB.
    """

    name: str
    outputs: int
    mismatches: int
    largest: int


class Report(NamedTuple):
    """What a LiteRT file computes; `str` of it is a table.

    Attributes:
        target_kernel: which of LiteRT's kernels has run it.
        chosen_for: the kernel that its integers were chosen for; None if `to_tflite` has not chosen any.
        examples: that were run.
        operators: number of each operator, by name.
        float_operators: those that compute in floating point between input and output, each with its tensor.
        missing: layers of the model that have no int8 operator in the file.
        layers: one report for each normalization.
        outputs: one report for each output of the model.
    """

    target_kernel: str
    chosen_for: str | None
    examples: int
    operators: dict[str, int]
    float_operators: tuple[str, ...]
    missing: tuple[str, ...]
    layers: tuple[LayerReport, ...]
    outputs: tuple[OutputReport, ...]

    @property
    def ok(self) -> bool:
        """Whether all is integer, every normalization is there, and channels that are called exact are."""
        return not self.float_operators and not self.missing and not any(layer.broken for layer in self.layers)

    def _notes(self) -> list[str]:
        if self.chosen_for in (None, self.target_kernel):
            return []
        return [f"note: integers that were chosen for {self.chosen_for} are not exact on {self.target_kernel}"]

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.operators.items()))
        lines = [
            f"LiteRT kernel {self.target_kernel}, integers chosen for {self.chosen_for or 'none'}; "
            f"{self.examples} examples",
            *self._notes(),
            f"operators: {counts}",
            "float operators: " + ("none" if not self.float_operators else ""),
            *(f"  {name}" for name in self.float_operators),
            *(f"no int8 operator: {name}" for name in self.missing),
            *_table(
                ("normalization", "channels", "exact", "wrong of 256 each", "outputs", "mismatches", "largest LSB"),
                [tuple(layer)[:-1] for layer in self.layers],
            ),
            *_table(("output against Keras", "outputs", "mismatches", "largest LSB"), map(tuple, self.outputs)),
            *(
                f"BROKEN: {layer.broken} mismatches in exact channels of {layer.name}"
                for layer in self.layers
                if layer[-1]
            ),
            "OK" if self.ok else "FAILED",
        ]
        return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    """Lines of a table with a blank one before; none without rows."""
    rows = [[str(cell) for cell in row] for row in rows]
    if not rows:
        return []
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    aligned = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in [head, *rows])
    ]
    return ["", *aligned]
