"""Drives an ASGI application message by message, as a server does, so that tests see single writes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.types import ASGIApp, Message


class Exchange:
    """One request: what the application sends, and a client that may go away."""

    def __init__(self, path: str, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"content-type", b"application/json"), *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self.done = anyio.Event()
        self._to_app, self._app_receives = anyio.create_memory_object_stream[Message](10)
        self._app_sends, self._from_app = anyio.create_memory_object_stream[Message](1000)
        self._to_app.send_nowait({"type": "http.request", "body": body, "more_body": False})

    async def run(self, app: ASGIApp) -> None:
        await app(self.scope, self._app_receives.receive, self._app_sends.send)
        self.done.set()

    def disconnect(self) -> None:
        self._to_app.send_nowait({"type": "http.disconnect"})

    async def wait(self) -> None:
        """Waits until the application has returned."""
        with anyio.fail_after(5):
            await self.done.wait()

    async def start(self) -> Message:
        """The response's start."""
        message = await self._next()
        assert message["type"] == "http.response.start", message
        return message

    async def write(self) -> list[Any]:
        """The events of the next single write; comments as they are."""
        message = await self._next()
        assert message["type"] == "http.response.body", message
        return parse_events(message["body"])

    async def writes(self) -> list[list[Any]]:
        """All writes up to the end of the response."""
        found = []
        while True:
            message = await self._next()
            found.append(parse_events(message["body"]))
            if not message["more_body"]:
                return found

    def nothing_sent(self) -> bool:
        return self._from_app.statistics().current_buffer_used == 0

    async def _next(self) -> Message:
        with anyio.fail_after(5):
            return await self._from_app.receive()

    def close(self) -> None:
        for stream in (self._to_app, self._app_receives, self._app_sends, self._from_app):
            stream.close()


@asynccontextmanager
async def exchange(
    app: ASGIApp, path: str, headers: tuple[tuple[bytes, bytes], ...] = (), **body: Any
) -> AsyncIterator[Exchange]:
    """Sends a request and leaves the rest to the test."""
    one = Exchange(path, json.dumps(body).encode(), headers)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.run, app)
        yield one
        tasks.cancel_scope.cancel()
    one.close()


def parse_events(data: bytes) -> list[Any]:
    """Server-sent events by the strict reading: `data: ` and two line feeds."""
    assert b"\r" not in data
    assert data.endswith(b"\n\n")
    events: list[Any] = []
    for frame in data[:-2].decode().split("\n\n"):
        if frame.startswith(":"):
            events.append(frame)
            continue
        assert frame.startswith("data: ")
        payload = frame.removeprefix("data: ")
        events.append(payload if payload == "[DONE]" else json.loads(payload))
    return events
