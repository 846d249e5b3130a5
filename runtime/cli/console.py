"""What the operator sees while the server starts: rich progress bars on a terminal, plain lines in a log."""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, Literal, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Unit = Literal["programs", "steps", "bytes"]
Advance = Callable[[int, int], None]
"""Told (done, total) whenever something was finished; callable from any thread."""


class Report:
    """Start-up output on standard output. Without a terminal every line is complete, plain and flushed.

    Nothing is raised when nobody reads it, as in `runtime up | head -3`: the rest is not shown and serving goes on.
    """

    def __init__(self) -> None:
        self._output = _Output(sys.stdout or io.StringIO())  # a process can be started without one
        self._console = Console(file=cast(IO[str], self._output), highlight=False, soft_wrap=True)

    @property
    def is_terminal(self) -> bool:
        """Whether somebody is watching."""
        return self._console.is_terminal

    def line(self, text: str = "", style: str | None = None) -> None:
        """One line."""
        if self.is_terminal:
            self._console.print(text, style=style, markup=False)
        else:
            self._output.write(text + "\n")
            self._output.flush()

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values in two columns."""
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.line(f"  {name:<{width}}  {value}")

    @contextlib.contextmanager
    def progress(self, what: str, unit: Unit) -> Iterator[Advance]:
        """A progress bar, or one line when it is complete. Its total comes with the first step."""
        if not self.is_terminal:
            yield _Counter(self, what, unit)
            return
        columns = (
            TextColumn("  {task.description:<20}"),
            BarColumn(bar_width=32),
            DownloadColumn(binary_units=True) if unit == "bytes" else MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


class _Output:
    """A text stream that drops what cannot be written, from the first failure on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Takes all of the text."""
        try:
            self._stream.write(text)
        except OSError:
            self._discard()
        return len(text)

    def flush(self) -> None:
        """Passes on what was written."""
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _discard(self) -> None:
        """Sends the rest nowhere: what is still buffered, and what Python flushes when the process ends, as well."""
        with contextlib.suppress(OSError):
            target = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, target)
            os.close(nowhere)


class _Counter:
    """Progress without a terminal: silent until all is done."""

    def __init__(self, report: Report, what: str, unit: Unit) -> None:
        self._report = report
        self._what = what
        self._unit = unit
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._told = False

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if done >= total and not self._told:
                self._told = True
                amount = human_bytes(total) if self._unit == "bytes" else f"{total} {self._unit}"
                self._report.line(f"  {self._what}: {amount} in {time.monotonic() - self._started:.1f} s")


def human_bytes(size: int) -> str:
    """A size as people read it: 512 B, 3.5 MiB, 1.0 GiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
