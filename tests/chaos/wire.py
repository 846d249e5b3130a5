"""One streamed completion over a connection of its own: what came back, and when since it was sent."""

import asyncio
import json
import time
from typing import Any

import h11
import msgspec

_READ_BYTES = 1 << 16


class Reply(msgspec.Struct, kw_only=True):
    """What a client saw. `code` is that of an error, also one inside a stream; `lost` is why the answer broke off."""

    sent_at: float
    status: int = 0
    retry_after: str | None = None
    code: str | None = None
    lost: str | None = None
    text: str = ""
    tokens: int = 0
    head_s: float = 0.0
    first_s: float = 0.0
    gap_s: float = 0.0
    end_s: float = 0.0
    done: bool = False

    @property
    def refused(self) -> bool:
        """Whether the server would not take it."""
        return self.status == 429

    @property
    def completed(self) -> bool:
        """Whether it got an answer to its end."""
        return self.status == 200 and self.done and self.code is None and self.lost is None


def completion(model: str, prompt: str, max_tokens: int, seed: int, **more: Any) -> bytes:
    """The body of a streamed completion of exactly `max_tokens` tokens."""
    fields = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "seed": seed, "ignore_eos": True}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(fields | streamed | more).encode()


def head(body: bytes) -> bytes:
    """The request's first bytes, for a connection that carries only this one."""
    lines = ("POST /v1/completions HTTP/1.1", "host: test", "content-type: application/json", "connection: close")
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode()


async def ask(port: int, body: bytes, leave_after_s: float | None = None) -> Reply:
    """Sends it and reads to the end, or leaves in the middle; `lost` is then "left"."""
    reply = Reply(sent_at=time.monotonic())
    try:
        async with asyncio.timeout(leave_after_s):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head(body) + body)
                await _read(reader, reply)
            finally:
                writer.transport.abort()
    except TimeoutError:
        reply.lost = "left"
    except (OSError, h11.RemoteProtocolError) as error:
        reply.lost = f"{type(error).__name__}: {error}"
    reply.end_s = time.monotonic() - reply.sent_at
    return reply


async def _read(reader: asyncio.StreamReader, reply: Reply) -> None:
    http, data, last_s = h11.Connection(h11.CLIENT), b"", 0.0
    http.send(h11.Request(method="POST", target="/", headers=[("host", "test"), ("content-length", "0")]))
    http.send(h11.EndOfMessage())
    while True:
        event = http.next_event()
        now_s = time.monotonic() - reply.sent_at
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Response):
            reply.status, reply.head_s = event.status_code, now_s
            reply.retry_after = dict(event.headers).get(b"retry-after", b"").decode() or None
        elif isinstance(event, h11.Data):
            *events, data = (data + event.data).split(b"\n\n")
            if events and not reply.first_s:
                reply.first_s = now_s
            elif events:
                reply.gap_s = max(reply.gap_s, now_s - last_s)
            last_s = now_s if events else last_s
            for one in events:
                _take(one, reply)
        elif isinstance(event, h11.EndOfMessage):
            if data:
                _take_document(json.loads(data), reply)
            return
        else:
            raise h11.RemoteProtocolError(f"{event} before the end")


def _take(event: bytes, reply: Reply) -> None:
    if event.startswith(b":"):
        return
    payload = event.removeprefix(b"data: ")
    if payload == b"[DONE]":
        reply.done = True
    else:
        _take_document(json.loads(payload), reply)


def _take_document(document: dict[str, Any], reply: Reply) -> None:
    if "error" in document:
        reply.code = document["error"]["code"]
        return
    reply.text += "".join(choice["text"] for choice in document["choices"])
    if document.get("usage") is not None:
        reply.tokens = document["usage"]["completion_tokens"]
