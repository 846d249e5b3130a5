"""What compiling a topology came to: one record per program and per kind of slice. These become tables and JSON."""

import msgspec

from runtime.compile.memory import Need, Static
from runtime.topology import Role


class ProgramOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One program. Bytes are the compiler's for one device; `error` is its reason when it refused."""

    name: str
    compile_s: float
    argument_bytes: int = 0
    output_bytes: int = 0
    alias_bytes: int = 0
    temporary_bytes: int = 0
    code_bytes: int = 0
    error: str | None = None

    @property
    def extra_bytes(self) -> int:
        """What a call needs beside its arguments: temporaries, and outputs that are not donated arguments."""
        return self.temporary_bytes + self.output_bytes - self.alias_bytes


class SliceOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Slices of one role and TP, which run the same programs. Without `programs` the weights left no room to try."""

    role: Role
    names: tuple[str, ...]
    tp: int
    attention: str
    page_size: int
    num_rows: int
    static: Static
    programs: tuple[ProgramOutcome, ...]
    need: Need | None

    @property
    def errors(self) -> tuple[ProgramOutcome, ...]:
        """The programs that did not compile."""
        return tuple(program for program in self.programs if program.error is not None)

    @property
    def missing_bytes(self) -> int:
        """How much memory a device lacks; 0 if everything fits."""
        return self.static.missing_bytes if self.need is None else self.need.missing_bytes

    @property
    def is_good(self) -> bool:
        """Whether all of it compiles and fits."""
        return not self.errors and self.missing_bytes == 0 and self.need is not None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run."""

    model: str
    dtype: str
    target: str
    topology: str
    context_tokens: int
    chunk_tokens: int
    jax_version: str
    libtpu_version: str
    compile_s: float
    slices: tuple[SliceOutcome, ...]

    @property
    def is_good(self) -> bool:
        """Whether every slice's programs compile and fit."""
        return all(part.is_good for part in self.slices)
