"""Reading the text of a compiled TPU program: its instructions in their order, with what their cost depends on. Pure.

The compiler writes this text after code generation (checked with libtpu 0.0.52). Only there does an instruction's
`backend_config` carry `estimated_cycles`: fusions, products and copies have it, Pallas kernels, sorts, gathers,
scatters and asynchronous copies do not. Where an array lies stands in its layout: nothing is HBM, `S(1)` VMEM.
"""

import math
import re

import msgspec

NO_ESTIMATE = 1 << 60
"""From here on the compiler's number stands for "unknown"."""

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-<>]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-<>]+) = (.*)$")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+(?:e\w+)?)\[([\d,]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-<>]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_VALUE = re.compile(r"\s*constant\((\d+)\)")
_DIRECTION = re.compile(r"direction=(\w\w)")
_KERNEL = re.compile(r'custom_call_target="tpu_custom_call".*?op_name="[^"]*?(\w+)/pallas_call')
_CALLED = re.compile(r"(calls|to_apply|body|condition|true_computation|false_computation)=%([\w.\-<>]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_BITS = re.compile(r"\d+")


class Array(msgspec.Struct, frozen=True):
    """One array of a result: its bytes, without the padding of its tiles, and whether it lies in HBM."""

    num_bytes: int
    in_hbm: bool


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction. `cycles` is the compiler's estimate, None where it has none.

    `arrays` are those of the result, flat. `called` has the computations by role: `calls`, `body`, ...; the branches of
    a conditional are in `branches`, that of a false predicate first. `kernel` names a Pallas kernel; `value` is that of
    a whole constant, `direction` that of a comparison, as `LT`.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...] = ()
    operands: tuple[str, ...] = ()
    cycles: int | None = None
    called: dict[str, str] = {}
    branches: tuple[str, ...] = ()
    kernel: str | None = None
    value: int | None = None
    direction: str | None = None


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """A program: its computations by name, and which of them is the entry."""

    entry: str
    computations: dict[str, tuple[Instruction, ...]]

    @property
    def kernels(self) -> frozenset[str]:
        """The Pallas kernels that it calls."""
        return frozenset(
            each.kernel for instructions in self.computations.values() for each in instructions if each.kernel
        )

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` runs: jax's loops count from 0 to a constant that their condition compares with.

        None if the condition is another one.
        """
        condition = self.computations[loop.called["condition"]]
        constants = {each.name: each.value for each in condition if each.value is not None}
        root = condition[-1]
        return constants.get(root.operands[-1]) if root.opcode == "compare" and root.direction == "LT" else None


def parse_module(text: str) -> Module:
    """The program from its text. Raises ValueError for text without an entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(found[1], found[2]))
    if entry is None:
        raise ValueError("the text of the program has no entry computation")
    return Module(entry=entry, computations={name: tuple(found) for name, found in computations.items()})


def _instruction(name: str, rest: str) -> Instruction:
    end = _end_of_shape(rest)
    shape, tail = rest[:end], rest[end:]
    opcode = _OPCODE.match(tail)
    if opcode is None:
        raise ValueError(f"instruction {name}: no operation in {rest[:80]!r}")
    closed = opcode.end() + _closing(tail[opcode.end() :])
    cycles, kernel = _CYCLES.search(tail), _KERNEL.search(tail)
    value, direction = _VALUE.match(tail), _DIRECTION.search(tail)
    branches = _BRANCHES.search(tail)
    called = dict(_CALLED.findall(tail[closed:]))
    either = tuple(called[role] for role in ("false_computation", "true_computation") if role in called)
    return Instruction(
        name=name,
        opcode=opcode[1],
        arrays=tuple(_array(*found) for found in _ARRAY.findall(shape)),
        operands=tuple(_NAME.findall(tail[opcode.end() : closed])),
        cycles=int(cycles[1]) if cycles and int(cycles[1]) < NO_ESTIMATE else None,
        called=called,
        branches=tuple(_NAME.findall(branches[1])) if branches else either,
        kernel=kernel[1] if kernel else None,
        value=int(value[1]) if value else None,
        direction=direction[1] if direction else None,
    )


def _end_of_shape(text: str) -> int:
    """Where the type ends: after its closing bracket if it is a tuple, else at the first blank."""
    return 1 + _closing(text[1:]) + 1 if text.startswith("(") else text.index(" ")


def _closing(text: str) -> int:
    """Where the bracket closes that was opened just before."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def _array(dtype: str, dims: str, layout: str) -> Array:
    bits = _BITS.search(dtype)
    size = int(bits[0]) if bits else 8  # a predicate takes a byte
    num_bytes = math.prod(int(dim) for dim in dims.split(",") if dim) * size // 8
    return Array(num_bytes, bool(dims) and "S(" not in layout)  # a scalar is where the core keeps its numbers
