"""Reads programs as XLA prints them: what would leave the TPU, and what a step sends and moves."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_SHAPE = re.compile(r"\b(?P<type>pred|token|opaque|[a-z]+\d\w*)\[(?P<sizes>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<operation>[a-z][\w-]*)\((?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) (?:\(.*)?\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_DYNAMIC = re.compile(r"\b(?:pred|[a-z]+\d\w*)\[[^\]]*<=\d[^\]]*\]")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_OFF_CHIP = {"infeed", "outfeed", "send", "recv", "send-done", "recv-done"}
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_MOVE_NOTHING = "AllocateBuffer", "ConcatBitcast"
_SLICES = {"slice", "dynamic-slice"}
COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast"}


class Instruction(NamedTuple):
    """One line of a program."""

    shape: str
    operation: str
    operands: list[str]
    called: list[str]
    text: str


def problems(text: str) -> list[str]:
    """What keeps a program from running on a TPU alone: calls of the host, transfers, shapes known only later."""
    found = [f"dynamic shape {shape}" for shape in _DYNAMIC.findall(text)]
    for instructions in computations(text)[0].values():
        for name, instruction in instructions.items():
            target = _TARGET.search(instruction.text)
            if instruction.operation in _OFF_CHIP:
                found.append(f"{instruction.operation} {name}")
            elif target and re.search("callback|host|python", target[1], re.IGNORECASE):
                found.append(f"call of {target[1]} {name}")
    return list(dict.fromkeys(found))


def computations(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """The instructions of each computation by name, and the name of the one that runs."""
    found, entry, current = {}, "", {}
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = found[head["name"]] = {}
            entry = head["name"] if head["entry"] else entry
        elif match := _INSTRUCTION.match(line):
            operands = re.findall(r"%([\w.-]+)", match["rest"].partition("), ")[0])
            branches = [name.strip(" %") for names in _BRANCHES.findall(match["rest"]) for name in names.split(",")]
            called = [*_CALLED.findall(match["rest"]), *branches]
            current[match["name"]] = Instruction(match["shape"], match["operation"], operands, called, line)
    return found, entry


def shape_bytes(shape: str, in_memory: bool = False) -> int:
    """Bytes of a shape or of a tuple of them; `in_memory` leaves out what is kept on the chip itself."""
    return math.ceil(sum(_sizes(shape, in_memory)))


def collectives(text: str, trips: int) -> dict[str, tuple[int, int]]:
    """For each kind of exchange between chips, how often it runs in a step and the bytes of its results.

    Args:
        text: a compiled program.
        trips: how often the body of a loop runs; the text does not say it.
    """
    program, entry = computations(text)
    found = {}
    for instruction, _, times in _executed(program, entry, trips, into_fusions=True):
        kind = instruction.operation.removesuffix("-start")
        if kind in COLLECTIVES:
            count, size = found.get(kind, (0, 0))
            found[kind] = count + times, size + times * shape_bytes(instruction.shape)
    return found


def memory_traffic(text: str, trips: int) -> int:
    """Bytes that a step reads and writes in the memory of one chip.

    What a fused kernel takes and gives is counted once, whatever it computes inside; on-chip memory is not counted, nor
    the padding of layouts. Arguments as for `collectives`.
    """
    program, entry = computations(text)
    return sum(
        times * _traffic(instruction, siblings, program)
        for instruction, siblings, times in _executed(program, entry, trips, into_fusions=False)
    )


def _sizes(shape: str, in_memory: bool) -> Iterator[float]:
    for match in _SHAPE.finditer(shape):
        if in_memory and re.search(r"S\([1-9]", match["layout"] or ""):
            continue
        bits = re.search(r"\d+", match["type"])
        size = 1 if match["type"] == "pred" else int(bits[0]) / 8 if bits else 0
        yield size * math.prod(int(number) for number in match["sizes"].split(",") if number)


def _executed(program, name, trips, into_fusions, times=1) -> Iterator[tuple[Instruction, dict, int]]:
    """Each instruction that runs, with its siblings and how often. Sums that reductions apply are not followed."""
    for instruction in program[name].values():
        yield instruction, program[name], times
        operation = instruction.operation
        if operation == "while":
            yield from _executed(program, instruction.called[0], trips, into_fusions, times * trips)
        elif operation in {"call", "conditional", "async-start"} or (into_fusions and operation == "fusion"):
            for called in instruction.called:
                yield from _executed(program, called, trips, into_fusions, times)


def _traffic(instruction, siblings, program) -> int:
    operation, shape = instruction.operation, instruction.shape
    if operation in _FREE | {"while", "call", "conditional", "async-start"} or operation.endswith("-done"):
        return 0
    if any(f'custom_call_target="{name}"' in instruction.text for name in _MOVE_NOTHING):
        return 0
    if operation == "slice-start":  # ((whole,), slice, flag)
        whole, part = (match[0] for match in list(_SHAPE.finditer(shape))[:2])
        return _read_by_slice(whole, part) + shape_bytes(part, in_memory=True)
    if operation.endswith("-start"):  # its result is a tuple of what is written, what is read, and a flag
        return shape_bytes(shape, in_memory=True)
    if operation == "fusion":
        read = sum(_read_by_fusion(program[instruction.called[0]], siblings, instruction.operands))
    elif operation in _SLICES:
        read = _read_by_slice(siblings[instruction.operands[0]].shape, shape)
    else:
        read = sum(shape_bytes(siblings[name].shape, in_memory=True) for name in instruction.operands)
    return read + shape_bytes(shape, in_memory=True)


def _read_by_slice(whole: str, part: str) -> int:
    return shape_bytes(part) if shape_bytes(whole, in_memory=True) else 0


def _read_by_fusion(inside, siblings, operands) -> Iterator[int]:
    """Bytes that a fused kernel reads of each operand: only the slices, where it takes nothing else of it."""
    parameters = {
        int(re.search(r"parameter\((\d+)\)", instruction.text)[1]): name
        for name, instruction in inside.items()
        if instruction.operation == "parameter"
    }
    for index, operand in enumerate(operands):
        whole = shape_bytes(siblings[operand].shape, in_memory=True)
        users = [instruction for instruction in inside.values() if parameters[index] in instruction.operands]
        if users and all(user.operation in _SLICES for user in users):
            whole = min(whole, sum(shape_bytes(user.shape) for user in users))
        yield whole
