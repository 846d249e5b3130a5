"""What the two commands of this package print: progress bars on a terminal, complete plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_WIDTH = 200
"""Columns of tables where there is no terminal to fit them to."""


def make_console() -> Console:
    """A console on standard output that neither wraps nor colours numbers."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(width=width, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Yields what is told the name of each step as it starts.

    On a terminal a bar shows name, count and time; elsewhere nothing is shown and callers print what they finish.
    """
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        started = 0

        def step(name: str) -> None:
            nonlocal started
            bar.update(task, completed=started, description=name)
            started += 1

        yield step
