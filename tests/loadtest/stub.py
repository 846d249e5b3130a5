"""A server that answers by a script: what it sends, after which delays, and how it breaks."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MAX_ANSWER_S = 60.0
MODEL = "stub"


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Raw:
    """Bytes as they are, outside of any framing."""

    data: bytes


@dataclass(frozen=True)
class Cut:
    """The connection, at once."""


Step = Wait | Raw | Cut
Body = dict[str, Any]
Script = Callable[[int, Body], Sequence[Step]]


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def head(status: int = 200, kind: str = "text/event-stream") -> Raw:
    return Raw(f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())


def event(data: bytes | Body) -> Raw:
    payload = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Raw(_framed(b"data: " + payload + b"\n\n"))


END = Raw(b"0\r\n\r\n")
DONE = event(b"[DONE]")


def text_chunk(text: str = " a", finish: str | None = None, usage: Body | None = None) -> Raw:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return event({"object": "text_completion", "choices": [choice], "usage": usage})


def delta_chunk(delta: Body, finish: str | None = None) -> Raw:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def usage_chunk(body: Body, tokens: int, **details: Any) -> Raw:
    prompt = len(body["prompt"]) if "prompt" in body else 7
    usage = {"prompt_tokens": prompt, "completion_tokens": tokens} | details
    return event({"object": "text_completion", "choices": [], "usage": usage})


def answer(body: Body, first_s: float, gaps_s: Sequence[float], tokens: int | None = None) -> list[Step]:
    """A complete stream: the first chunk after `first_s`, then one after each gap, then the usage."""
    steps: list[Step] = [Wait(first_s), head(), text_chunk()]
    for index, gap_s in enumerate(gaps_s):
        steps += [Wait(gap_s), text_chunk(finish="length" if index + 1 == len(gaps_s) else None)]
    return [*steps, usage_chunk(body, tokens or len(gaps_s) + 1), DONE, END]


def plain(status: int, content: object, kind: str = "application/json") -> list[Step]:
    """An answer that is no stream."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return [head(status, kind), Raw(_framed(data)), END]


@dataclass
class Stub:
    """Counts requests, keeps their bodies, and answers each by `script(number, body)`."""

    script: Script
    engine: str | None = None
    bodies: list[Body] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    num_connections: int = 0
    num_left: int = 0
    connected: set[asyncio.Transport] = field(default_factory=set)

    def __call__(self) -> asyncio.Protocol:
        self.num_connections += 1
        return _Protocol(self)

    def steps(self, head: str, content: bytes) -> Sequence[Step]:
        path = head.split(" ", 2)[1]
        if path == "/v1/models":
            return plain(200, {"data": [{"id": MODEL}]})
        if path == "/version":
            return plain(200, {"version": "1.2.3"} | ({"engine": self.engine} if self.engine is not None else {}))
        if path == "/health":
            return plain(200, {"status": "ready"})
        if not content:
            return plain(404, {"error": {"message": f"no {path} here"}})
        self.heads.append(head)
        self.bodies.append(json.loads(content))
        return self.script(len(self.bodies) - 1, self.bodies[-1])


class _Protocol(asyncio.Protocol):
    def __init__(self, stub: Stub) -> None:
        self._stub, self._buffer = stub, b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._stub.connected.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stub.connected.discard(self._transport)
        if self._task is not None and not self._task.done():
            self._stub.num_left += 1
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        top, blank, content = self._buffer.partition(b"\r\n\r\n")
        lengths = [line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        if blank and len(content) >= length:
            self._buffer = content[length:]
            steps = self._stub.steps(top.decode(), content[:length])
            self._task = asyncio.get_running_loop().create_task(self._answer(steps))

    async def _answer(self, steps: Sequence[Step]) -> None:
        loop = asyncio.get_running_loop()
        due_at = loop.time()  # waits add up from here, so that late wake-ups do not
        async with asyncio.timeout(MAX_ANSWER_S):
            for step in steps:
                match step:
                    case Wait(seconds):
                        due_at += seconds
                        await asyncio.sleep(max(0.0, due_at - loop.time()))
                    case Raw(data):
                        self._transport.write(data)
                    case Cut():
                        self._transport.close()


@contextmanager
def serving(script: Script, engine: str | None = None) -> Iterator[tuple[str, Stub]]:
    """A stub on a port of this machine, on a thread and loop of its own."""
    stub, loop = Stub(script, engine), asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(stub, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", stub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.run_until_complete(_close(server, stub))
        loop.close()


async def _close(server: asyncio.Server, stub: Stub) -> None:
    server.close()
    for transport in stub.connected:
        transport.abort()
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
