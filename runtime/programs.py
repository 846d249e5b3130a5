"""The compiled programs of one engine: compiled ahead, kept, and called with exactly the shapes they were made for.

A compiled executable refuses other shapes, so once all are there nothing can compile behind a request's back.
Tracing and compiling run in a few threads: XLA compiles without the interpreter lock.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from runtime import compat
from runtime.host_memory import give_back

Progress = Callable[[str, int, int], None]
"""Told after each program: its label, how many are done, how many there are."""

_MAX_THREADS = 4

_INTERPRETER = Lock()
"""Held by the one program that may use Pallas' TPU interpreter, whose memory and semaphores belong to the process."""


class Key(NamedTuple):
    """Which program: what it does, and its bucket sizes."""

    kind: str
    first: int = 0
    second: int = 0

    def __str__(self) -> str:
        sizes = [str(size) for size in (self.first, self.second) if size]
        return " ".join([self.kind, "x".join(sizes)]).strip()


class Programs:
    """Programs by key. `precision` is jax's matmul precision, None for its default.

    `mesh` is set while they are traced: Pallas reads from it which chip it compiles for. None sets none. With
    `alone` a call returns when the program is done, and no two such programs of this process run at once.
    """

    def __init__(self, precision: str | None, mesh: Mesh | None = None, *, alone: bool = False) -> None:
        self._precision = precision
        self._mesh = mesh
        self._alone = alone
        self._lower: dict[Key, Callable[[], jax.stages.Lowered]] = {}
        self._compiled: dict[Key, jax.stages.Compiled] = {}

    def __len__(self) -> int:
        return len(self._lower)

    def add(self, key: Key, lower: Callable[[], jax.stages.Lowered]) -> None:
        """Registers a program; `lower` traces it when it is compiled."""
        self._lower[key] = lower

    def __iter__(self) -> Iterator[Key]:
        return iter(self._lower)

    def __getitem__(self, key: Key) -> Callable[..., Any]:
        """The compiled program; compiled now if warm-up was skipped."""
        program = self.compiled(key)
        return partial(_alone, program) if self._alone else program

    def compiled(self, key: Key) -> jax.stages.Compiled:
        """The compiled program with its analyses."""
        if key not in self._compiled:
            self._compile(key)
        return self._compiled[key]

    def compile_with(self, key: Key, options: Mapping[str, Any]) -> jax.stages.Compiled:
        """The program compiled with options of the compiler, for what it tells then; not kept."""
        with jax.default_matmul_precision(self._precision), compat.traced_for(self._mesh):
            return self._lower[key]().compile(compiler_options=dict(options))

    def compile_all(self, progress: Progress) -> None:
        """Compiles what is not compiled yet. `progress` is called from this thread."""
        todo = [key for key in self._lower if key not in self._compiled]
        done = len(self) - len(todo)
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            futures = {pool.submit(self._compile, key): key for key in todo}
            for future in as_completed(futures):
                future.result()
                done += 1
                give_back()
                progress(str(futures[future]), done, len(self))

    def _compile(self, key: Key) -> None:
        with jax.default_matmul_precision(self._precision), compat.traced_for(self._mesh):
            self._compiled[key] = self._lower[key]().compile()


def _alone(program: Callable[..., Any], *args: Any) -> Any:
    with _INTERPRETER:
        return compat.block_until_ready(program(*args))
