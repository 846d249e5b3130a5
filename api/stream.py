"""Sends an answer, streamed as server-sent events or whole.

A stream's headers leave with its first event, so a request that is refused still gets its own status; after
one silent ping interval they leave with a comment, and a later failure becomes an event. Frames are `data:
{json}` and end in two line feeds. What belongs together, such as the role and the first token, is one write.
"""

from collections.abc import Iterable

import anyio
import orjson
from starlette.types import Send

from actors.client import EngineClient
from actors.messages import Delta, ErrorInfo
from api.answer import Answer
from api.errors import error_body, send_error, send_json
from api.run import run_job

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def frames(payloads: Iterable[object]) -> bytes:
    """One event per payload."""
    return b"".join(b"data: " + orjson.dumps(payload) + b"\n\n" for payload in payloads)


class EventWriter:
    """Writes the response of one stream; several tasks may write."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = anyio.Lock(fast_acquire=True)
        self._num_writes = 0
        self.started = False

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """Writes whole frames, after the headers if these are still due."""
        async with self._lock:
            if not self.started:
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                self.started = True
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})
            self._num_writes += 1

    async def keep_alive(self, interval_s: float) -> None:
        """Writes a comment whenever nothing was written for an interval. Runs until cancelled."""
        while True:
            seen = self._num_writes
            await anyio.sleep(interval_s)
            if self._num_writes == seen:
                await self.write(PING)


async def send_stream(send: Send, client: EngineClient, answer: Answer, ping_interval_s: float) -> None:
    """Runs the job and sends its deltas as they come."""
    writer = EventWriter(send)

    async def on_delta(prompt: int, delta: Delta) -> None:
        await writer.write(frames(answer.chunks(prompt, delta)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.keep_alive, ping_interval_s)
        end = await run_job(client, answer.job, on_delta)
        tasks.cancel_scope.cancel()
    if not isinstance(end, ErrorInfo):
        await writer.write(frames(answer.last_chunks(end)) + DONE, last=True)
    elif writer.started:
        await writer.write(frames([error_body(end)]) + DONE, last=True)
    else:
        await send_error(send, end)


async def send_whole(send: Send, client: EngineClient, answer: Answer) -> None:
    """Runs the job and sends the finished answer."""

    async def on_delta(prompt: int, delta: Delta) -> None:
        answer.add(prompt, delta)

    end = await run_job(client, answer.job, on_delta)
    if isinstance(end, ErrorInfo):
        await send_error(send, end)
    else:
        await send_json(send, answer.body(end))
