"""Responses that run on without their clients: started, watched, cancelled.

Each is a task of the server's own event loop that only its cancel, or the loop's end, stops. What it does becomes
visible through `response` and, where it is streamed, through the log of its events.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import anyio

from api.errors import INTERNAL_ERROR
from api.responses.objects import ResponseObject
from api.responses.output import Event
from api.responses.prepare import Prepared
from api.responses.progress import Progress, encode_events

logger = logging.getLogger(__name__)

Emit = Callable[[list[Event]], Awaitable[None]]


class BackgroundRun:
    """One response in the background. `events` are those so far, by number; nobody reads them if it is not streamed."""

    def __init__(self, prepared: Prepared, progress: Progress, *, streamed: bool) -> None:
        self.prepared = prepared
        self.progress = progress
        self.events: list[bytes] = []
        self.over = anyio.Event()
        self._streamed = streamed
        self._scope = anyio.CancelScope()
        self._changed = anyio.Event()
        self._log(progress.queue())

    @property
    def response(self) -> ResponseObject:
        """The response as it stands."""
        return self.progress.response

    async def run(self, work: Callable[[Emit], Awaitable[list[Event]]], on_over: Callable[[], None]) -> None:
        """Runs `work` to its end, or until it is cancelled; then calls `on_over`. Raises nothing."""
        try:
            with self._scope:
                last = await work(self._emit)
            if self._scope.cancelled_caught:
                last = self.progress.cancel()
        except Exception:
            logger.exception("background response %s failed in the server", self.response.id)
            last = self.progress.fail(INTERNAL_ERROR)
        self._log(last)
        on_over()
        self.over.set()

    async def cancel(self) -> None:
        """Stops it where it is and waits until that has happened."""
        self._scope.cancel()
        await self.over.wait()

    async def more(self, seen: int) -> bool:
        """Waits until there are more than `seen` events; False when there never will be."""
        while len(self.events) <= seen and not self.over.is_set():
            await self._changed.wait()
        return len(self.events) > seen

    async def _emit(self, events: list[Event]) -> None:
        self._log(events)

    def _log(self, events: list[Event]) -> None:
        if self._streamed:
            self.events += [encode_events([event]) for event in events]
        self._changed.set()
        self._changed = anyio.Event()


class BackgroundRuns:
    """Those that run now, by id."""

    def __init__(self) -> None:
        self._runs: dict[str, BackgroundRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, response_id: str) -> BackgroundRun | None:
        """The run with this id, if it is still running."""
        return self._runs.get(response_id)

    def start(
        self,
        run: BackgroundRun,
        work: Callable[[Emit], Awaitable[list[Event]]],
        on_over: Callable[[BackgroundRun], None],
    ) -> None:
        """Starts it; `on_over` is called when it has come to its end."""
        self._runs[run.response.id] = run

        def end() -> None:
            del self._runs[run.response.id]
            on_over(run)

        # A task of the loop's, not of a task group: the request that starts it is over before it.
        task = asyncio.create_task(run.run(work, end))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
