"""A slice's own thread: runs blocking calls in order, away from the event loop.

The thread is a daemon: a call that never returns keeps neither the server from ending nor other slices from working.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any

import anyio
from anyio.from_thread import run_sync
from anyio.lowlevel import EventLoopToken, current_token

from actors.context import EngineFailure, EngineTimeout


class _Call:
    """One call and its outcome."""

    def __init__(self, call: Callable[[], Any], token: EventLoopToken) -> None:
        self.call = call
        self.token = token
        self.done = anyio.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Lane:
    """See the module. Made on the event loop; `close` lets the thread end after its current call."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, call: Callable[[], Any], timeout_s: float) -> Any:
        """Runs the call after those before it. Raises EngineTimeout, or EngineFailure with the cause chained."""
        entry = _Call(call, current_token())
        self._calls.put(entry)
        with anyio.move_on_after(timeout_s):
            await entry.done.wait()
        if not entry.done.is_set():
            raise EngineTimeout(f"no answer within {timeout_s:g} s")
        if entry.error is not None:
            raise EngineFailure(f"{type(entry.error).__name__}: {entry.error}") from entry.error
        return entry.result

    def close(self) -> None:
        """Ends the thread once it is idle."""
        self._calls.put(None)

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            try:
                entry.result = entry.call()
            except BaseException as error:  # the lane is the border: whatever a call raises belongs to its caller
                entry.error = error
            try:
                run_sync(entry.done.set, token=entry.token)
            except RuntimeError:  # the event loop has ended: nobody waits any more
                return
