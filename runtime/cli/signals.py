"""SIGTERM and SIGINT: the first one asks the server to drain, the second one ends the process at once."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_SHOW_CURSOR = "\x1b[?25h"
"""A progress bar that is cut short leaves the cursor hidden."""
STOPPING = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Remembers the first stop signal of the process and wakes the event loop that waits for it."""

    def __init__(self) -> None:
        self._received = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def install(self) -> None:
        """Takes the signals over; from the main thread, before anything slow is done."""
        for number in STOPPING:
            signal.signal(number, self._handle)

    async def wait(self) -> None:
        """Returns once a first signal has come."""
        if self._event is None:
            self._event = asyncio.Event()
            self._loop = asyncio.get_running_loop()
        if self._received:
            self._event.set()
        await self._event.wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            leave(128 + number)
        self._received = True
        if self._loop is not None and self._event is not None:
            self._loop.call_soon_threadsafe(self._event.set)


@contextlib.contextmanager
def leave_on_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once while the block runs.

    As an exception it could get lost in a library, in a callback for one, and a download's threads would be waited for.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        leave(128 + number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave(code: int) -> NoReturn:
    """Ends the process now, whatever its threads are doing, without a trace."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream.isatty():
                stream.write(_SHOW_CURSOR)
            stream.flush()
        except (OSError, ValueError, RuntimeError):  # closed, broken, or interrupted while writing
            continue
    os._exit(code)


def leave_after(delay_s: float, code: int, reason: str) -> threading.Timer:
    """A safety net for shutdown: gives the reason and ends the process after a delay unless it is cancelled."""

    def give_up() -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            sys.stderr.write(f"{reason}\n")
        leave(code)

    timer = threading.Timer(delay_s, give_up)
    timer.daemon = True
    timer.start()
    return timer
