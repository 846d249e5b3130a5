"""What one HTTP request turned out to be: gathered while it runs, for the access log, the metrics and the traces.

The edge begins a record for each request and puts it where the request's own tasks find it; the gateway's client is
wrapped, so that every route that generates is observed without knowing it. Prompts, answers and keys are not looked at.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar

import msgspec

from actors.client import ClientEvent, EngineClient, GenerateRequest
from actors.messages import Completed, Delta, Failed, FinishReason, Status
from actors.stage_clock import StageTimes
from api.metrics import Metrics

ABORTED = "abort"
"""Finish reason of choices whose client went away."""


class EngineRecord(msgspec.Struct, kw_only=True):
    """One prompt of a request. Times are seconds on the monotonic clock, `first_at` None before the first token.

    `finished` has each choice's finish reason by its number; `code` is the error's where it failed.
    """

    request: str
    began_at: float
    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    first_at: float | None = None
    ended_at: float | None = None
    finished: dict[int, FinishReason] = {}
    timings: tuple[StageTimes, ...] = ()
    code: str | None = None


class RequestRecord(msgspec.Struct, kw_only=True):
    """One HTTP request since its arrival. Times are seconds on the monotonic clock, `wall_ns` is `began_at` in UTC.

    `route`, `status` and `ended_at` are known at its end; a response that never began has no status.
    """

    request_id: str
    began_at: float
    wall_ns: int
    ended_at: float | None = None
    route: str = ""
    status: int | None = None
    engine: list[EngineRecord] = []


current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)
"""The record of the HTTP request in whose tasks this is read."""


class ObservedClient:
    """The gateway's client, with its events told to the metrics and to the request's record."""

    def __init__(self, client: EngineClient, metrics: Metrics, now: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._metrics = metrics
        self._now = now

    def stream(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[ClientEvent]]:
        """As the client's own."""
        return self._observed(request)

    async def status(self) -> Status:
        """As the client's own."""
        return await self._client.status()

    @asynccontextmanager
    async def _observed(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[ClientEvent]]:
        outer = current_record.get()
        began_at = self._now()
        record = EngineRecord(request=request.request, began_at=began_at, prompt_tokens=len(request.prompt))
        if outer is not None:
            outer.engine.append(record)
        observer = _Observer(record, outer.began_at if outer is not None else began_at, self._metrics)
        async with self._client.stream(request) as events:
            try:
                yield self._told(events, observer)
            finally:
                if record.ended_at is None:
                    observer.aborted(self._now(), request.num_choices)

    async def _told(self, events: AsyncIterator[ClientEvent], observer: "_Observer") -> AsyncIterator[ClientEvent]:
        async for event in events:
            observer.saw(event, self._now())
            yield event


class _Observer:
    """Counts the events of one engine request; `arrived_at` is when its HTTP request came."""

    def __init__(self, record: EngineRecord, arrived_at: float, metrics: Metrics) -> None:
        self._record = record
        self._arrived_at = arrived_at
        self._metrics = metrics
        self._latest: dict[int, float] = {}

    def saw(self, event: ClientEvent, now: float) -> None:
        match event:
            case Delta():
                self._delta(event, now)
            case Completed():
                self._record.ended_at = now
                self._record.cached_tokens = event.cached_tokens
                self._record.timings = event.timings
                self._metrics.completed(now - self._arrived_at, event.timings)
            case Failed():
                self._record.ended_at = now
                self._record.code = event.error.code
                self._metrics.failed.add(1, event.error.code)

    def _delta(self, delta: Delta, now: float) -> None:
        metrics, record = self._metrics, self._record
        if record.first_at is None:
            record.first_at = now
            metrics.ttft.observe(now - self._arrived_at)
            metrics.prompt_tokens.add(record.prompt_tokens)
        count = len(delta.tokens)
        record.completion_tokens += count
        metrics.generation_tokens.add(count)
        latest = self._latest.get(delta.choice)
        if latest is not None:
            for _ in range(count):
                metrics.itl.observe((now - latest) / count)
        self._latest[delta.choice] = now
        if delta.finish is not None:
            record.finished[delta.choice] = delta.finish
            metrics.finished.add(1, delta.finish)

    def aborted(self, now: float, num_choices: int) -> None:
        """The stream was left before its terminal event."""
        self._record.ended_at = now
        self._metrics.aborted.add(1)
        for _ in range(num_choices - len(self._record.finished)):
            self._metrics.finished.add(1, ABORTED)
