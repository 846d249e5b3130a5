"""Compilations: where their results are kept between runs, and a count of those that come too late.

After warm-up no request may compile anything. `CompileCounter` counts what this process compiles outside of
`warming_up()`; an engine remembers the count at the end of its warm-up and reports the difference.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from runtime import compat
from runtime.errors import UsageError

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def default_cache_dir() -> Path:
    """The user's cache folder for compiled programs."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "runtime" / "jit"


def enable_compile_cache(directory: Path | None = None) -> Path:
    """Keeps compiled programs in `directory`, else in $JAX_COMPILATION_CACHE_DIR, else in the user's cache folder.

    Everything is kept, however quick to compile or small. Raises UsageError if the folder cannot be made.
    """
    path = directory or Path(os.environ.get(CACHE_VARIABLE) or default_cache_dir())
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{CACHE_VARIABLE}: cannot make the folder {path} ({error.strerror}); allowed: a folder, made if need be"
        ) from error
    compat.update_config("jax_compilation_cache_dir", str(path))
    compat.update_config("jax_persistent_cache_min_compile_time_secs", 0.0)
    compat.update_config("jax_persistent_cache_min_entry_size_bytes", 0)
    return path


class CompileCounter:
    """Counts compilations of this process, those inside `warming_up()` excepted. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_warming = 0
        self._count = 0
        compat.on_compilation(self._compiled)

    @property
    def count(self) -> int:
        """Compilations so far outside of any warm-up."""
        return self._count

    @contextlib.contextmanager
    def warming_up(self) -> Iterator[None]:
        """While any thread is inside, compilations are expected and not counted."""
        with self._lock:
            self._num_warming += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_warming -= 1

    def _compiled(self) -> None:
        with self._lock:
            if self._num_warming == 0:
                self._count += 1


compilations = CompileCounter()
"""The process's one counter; a second would need a second listener for the life of the process."""
