"""Compiling one case and judging it: how long, how large, and whether its temporaries stay below what they may be."""

import time
from typing import Any

import msgspec
from jax.sharding import Mesh

from kernels.aot import compile_for
from kernels.compile.cases import Case


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the compiler said to one case; sizes are its own figures."""

    op: str
    shape: str
    models: str
    compile_s: float
    temp_bytes: int = 0
    max_temp_bytes: int = 0
    code_bytes: int = 0
    limit: str
    """What `max_temp_bytes` is the size of."""
    reason: str = ""
    """Why the case failed; empty if it did not."""

    @property
    def failed(self) -> bool:
        """Whether it does not compile, or takes more temporaries than it may."""
        return bool(self.reason)

    @property
    def name(self) -> str:
        """The op and its shape."""
        return f"{self.op} {self.shape}"


def compile_case(mesh: Mesh, case: Case) -> Outcome:
    """Compiles the case for the mesh. Whatever the compiler or the op refuses becomes the outcome's reason."""
    start = time.monotonic()
    try:
        compiled = compile_for(mesh, case.function, *case.args, donate=case.donate)
    except Exception as error:  # the compiler's errors have no common type, and every one is an answer here
        return _outcome(case, start, reason=f"{type(error).__name__}: {error}")
    memory = compiled.memory_analysis()
    temp_bytes = int(memory.temp_size_in_bytes)
    reason = ""
    if temp_bytes >= case.max_temp_bytes:
        reason = f"{temp_bytes} bytes of temporaries; allowed: less than {case.limit}, {case.max_temp_bytes} bytes"
    return _outcome(
        case,
        start,
        temp_bytes=temp_bytes,
        code_bytes=int(memory.generated_code_size_in_bytes),
        reason=reason,
    )


def _outcome(case: Case, start: float, **rest: Any) -> Outcome:
    return Outcome(
        op=case.op,
        shape=case.shape,
        models=case.models,
        compile_s=time.monotonic() - start,
        max_temp_bytes=case.max_temp_bytes,
        limit=case.limit,
        **rest,
    )
