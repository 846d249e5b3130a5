"""One compiled step program, as its time is estimated from: its instructions, its operations and its weights."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import msgspec

from runtime.compile.hlo import Module, parse_module
from runtime.programs import Key, Programs

STEP_KINDS = frozenset({"prefill", "decode", "mixed", "sample"})
"""Programs that compute with weights."""
_TEXT = "*.after_codegen.txt"


class StepProgram(msgspec.Struct, frozen=True, kw_only=True):
    """`flop` are XLA's, without the Pallas kernels; `weights_bytes` are the arguments that a step only reads."""

    module: Module
    flop: float
    weights_bytes: int


def compile_step(programs: Programs, key: Key) -> tuple[jax.stages.Compiled, StepProgram]:
    """Compiles a program and reads what the compiler writes of it. Raises what the compiler raises."""
    with TemporaryDirectory(prefix="runtime-compile-") as folder:
        compiled = programs.compile_with(key, {"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        texts = list(Path(folder).glob(_TEXT))
        if len(texts) != 1:
            raise RuntimeError(f"the compiler wrote {len(texts)} files {_TEXT} of {key}, expected 1")
        module = parse_module(texts[0].read_text())
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis()
    return compiled, StepProgram(
        module=module,
        flop=float(costs.get("flops", 0.0)),
        weights_bytes=memory.argument_size_in_bytes - memory.alias_size_in_bytes,
    )
