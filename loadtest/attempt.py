"""One request on its way: what its connection tells becomes times, token counts and, at the end, a record.

Every attempt ends, and with a reason: a timer watches its whole time, the silence between two reads, and the moment at
which the plan cancels it.
"""

import asyncio

import h11
import msgspec

from loadtest.connection import Connection
from loadtest.record import CountedBy, Outcome, Record, spread_tokens
from loadtest.request import Request
from loadtest.sse import DONE, EventBuffer, StreamChunk, Usage, decode_chunk, error_message, read_timing, short_text
from loadtest.timing import Timing

MAX_ERROR_BYTES = 4096


class Prepared(msgspec.Struct, frozen=True):
    """A request as it goes over the wire, made before the clock starts."""

    request: Request
    head: h11.Request
    body: bytes
    is_exact: bool


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from sending to giving up, and between two reads."""

    total_s: float = 600.0
    stall_s: float = 60.0


class Attempt:
    """Listens to one exchange at a time; `over` is done when it ended, or when a used connection turned out dead."""

    def __init__(self, loop: asyncio.AbstractEventLoop, prepared: Prepared, limits: Limits, cancel_s: float | None):
        self._loop, self._prepared, self._limits = loop, prepared, limits
        self.over: asyncio.Future[None] = loop.create_future()
        self.sent_at = self._heard_at = loop.time()
        self._cancel_at = None if cancel_s is None else self.sent_at + cancel_s
        self._outcome: Outcome | None = None
        self._ended_at, self._error = 0.0, ""
        self._connected_at: float | None = None
        self._first_byte_at: float | None = None
        self._status: int | None = None
        self._error_body, self._events = b"", EventBuffer()
        self._times, self._counts = list[float](), list[int]()
        self._counted = 0
        self._usage: Usage | None = None
        self._timing: Timing | None = None
        self._finish_reason: str | None = None
        self._finished_at = 0.0
        self._is_done = self._is_spare = self.is_stale = False
        self._timer = loop.call_at(self._next_check(), self._check)

    @property
    def is_over(self) -> bool:
        """Whether it has an outcome."""
        return self._outcome is not None

    @property
    def num_chunks(self) -> int:
        """Chunks with tokens so far."""
        return len(self._times)

    def start(self, connection: Connection, is_new: bool) -> None:
        """Writes the request."""
        self._is_spare = not is_new
        if is_new:
            self._connected_at = self._loop.time()
        connection.send(self._prepared.head, self._prepared.body, self)

    def revive(self) -> None:
        """Makes ready for another connection, after a stale one."""
        self.is_stale, self.over = False, self._loop.create_future()

    def end(self, outcome: Outcome, error: str = "", at_s: float | None = None) -> None:
        """Settles the outcome; the first one counts."""
        if self._outcome is None:
            self._outcome, self._error = outcome, error
            self._ended_at = self._loop.time() if at_s is None else at_s
            self._timer.cancel()
            if not self.over.done():
                self.over.set_result(None)

    def on_response(self, status: int, content_type: str, at_s: float) -> None:
        """Listener's."""
        self._status, self._first_byte_at, self._heard_at = status, at_s, at_s
        if status == 200 and not content_type.lower().startswith("text/event-stream"):
            self.end("failed", f"the answer is no stream but {content_type!r}")

    def on_body(self, data: bytes, at_s: float) -> None:
        """Listener's."""
        self._heard_at = at_s
        if self._status != 200:
            self._error_body = (self._error_body + data)[:MAX_ERROR_BYTES]
            return
        try:
            payloads = self._events.feed(data)
        except ValueError as error:
            return self.end("failed", f"malformed stream: {error}")
        for payload in payloads:
            if self._outcome is not None:
                return None
            if payload == DONE:
                self._is_done = True
            else:
                self._take(payload, at_s)
        return None

    def on_end(self, at_s: float) -> None:
        """Listener's."""
        if self._status != 200:
            self.end("failed", f"HTTP {self._status}: {error_message(self._error_body)}", at_s)
        elif not self._is_done and self._finish_reason is None:
            self.end("failed", "the stream ended without a finish reason or [DONE]", at_s)
        elif not self._times and not self._has_late_token():
            self.end("failed", "the stream ended without a token", at_s)
        else:
            self.end("ok", at_s=at_s)

    def on_lost(self, reason: str, is_unanswered: bool) -> None:
        """Listener's. A server may close an idle connection just when it is used again: that is nobody's failure."""
        if self._is_done:
            self.on_end(self._loop.time())
        elif self._is_spare and is_unanswered:
            self.is_stale = True
            self.over.set_result(None)
        else:
            self.end("failed", f"{reason} {'before the answer' if is_unanswered else 'in mid-stream'}")

    def _take(self, payload: bytes, at_s: float) -> None:
        try:
            chunk = decode_chunk(payload)
        except msgspec.DecodeError:
            return self.end("failed", f"malformed chunk: {short_text(payload, 80)}", at_s)
        if chunk.error is not None:
            return self.end("failed", f"error in the stream: {error_message(payload)}", at_s)
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.runtime_timing is not None:
            try:
                self._timing = read_timing(chunk.runtime_timing)
            except ValueError as error:
                return self.end("failed", f"malformed runtime_timing: {error}", at_s)
        if chunk.finish_reason is not None:
            self._finish_reason, self._finished_at = chunk.finish_reason, at_s
        self._count(chunk, at_s)
        return None

    def _count(self, chunk: StreamChunk, at_s: float) -> None:
        told = chunk.usage.completion_tokens - self._counted if chunk.usage and chunk.choices else 0
        if told > 0 or chunk.has_token():
            self._times.append(at_s)
            if chunk.usage is not None:
                self._counts.append(told)
                self._counted = chunk.usage.completion_tokens

    def _has_late_token(self) -> bool:
        """Whether the chunk that ends the answer stands for its last token: an end token has no text."""
        if self._usage is None or not self._finished_at:
            return False
        is_later = not self._times or self._times[-1] < self._finished_at
        return is_later and not self._counts and self._usage.completion_tokens == len(self._times) + 1

    def _tokens(self) -> tuple[tuple[int, ...], CountedBy]:
        total = self._usage.completion_tokens if self._usage is not None else None
        if self._counts and len(self._counts) == len(self._times) and sum(self._counts) == total:
            return tuple(self._counts), "each"
        if total is None or total == len(self._times):
            return (1,) * len(self._times), "chunks"
        return spread_tokens(total, len(self._times)) if self._times else (), "spread"

    def _next_check(self) -> float:
        due = min(self.sent_at + self._limits.total_s, self._heard_at + self._limits.stall_s)
        return due if self._cancel_at is None else min(due, self._cancel_at)

    def _check(self) -> None:
        now, limits = self._loop.time(), self._limits
        if self._next_check() > now:
            self._timer = self._loop.call_at(self._next_check(), self._check)
        elif self._cancel_at is not None and now >= self._cancel_at:
            self.end("cancelled")
        elif self._is_done:
            self.on_end(now)
        elif now >= self.sent_at + limits.total_s:
            self.end("failed", f"not complete {limits.total_s:g} s after it was sent")
        else:
            after = "after it was sent" if self._first_byte_at is None else "in mid-stream"
            self.end("failed", f"stalled: nothing came for {limits.stall_s:g} s {after}")

    def record(self, index: int, due_at: float | None, origin: float) -> Record:
        """The record, with times counted from `origin`. Without a due time it was due when it was sent."""
        assert self._outcome is not None
        if self._has_late_token():
            self._times.append(self._finished_at)
        tokens, counted_by = self._tokens()
        request, usage = self._prepared.request, self._usage

        def since(at: float | None) -> float | None:
            return None if at is None else round(at - origin, 7)

        details = usage.prompt_tokens_details if usage is not None else None
        return Record(
            index=index,
            scheduled_s=round((self.sent_at if due_at is None else due_at) - origin, 7),
            sent_s=round(self.sent_at - origin, 7),
            ended_s=round(self._ended_at - origin, 7),
            outcome=self._outcome,
            connected_s=since(self._connected_at),
            first_byte_s=since(self._first_byte_at),
            chunk_times_s=tuple(round(at - origin, 7) for at in self._times),
            chunk_tokens=tokens,
            counted_by=counted_by,
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
            cached_tokens=details.cached_tokens if details is not None else None,
            usage_tokens=usage.completion_tokens if usage is not None else None,
            wanted_prompt_tokens=request.prompt_tokens,
            wanted_output_tokens=request.max_tokens if self._prepared.is_exact else None,
            status=self._status,
            finish_reason=self._finish_reason,
            error=self._error or None,
            timing=self._timing,
        )
