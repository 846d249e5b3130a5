"""A client that does not read, over a real socket: it loses its own stream, and nobody else notices."""

import asyncio
import socket
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from actors import system
from actors.wiring import CLIENT_CAPACITY
from tests.chaos.overload import step_table
from tests.chaos.wire import Reply, ask, completion, head
from tests.e2e.live import Live, emulated, live_server

pytestmark = pytest.mark.anyio
ROOM = 64
"""Deltas that may lie unread; fewer than the 4096 of a server, so that short answers fill it."""

NUM_OTHERS = 8
ANSWER_TOKENS = 40
LONG_TOKENS = 700
LIMIT_S = 120.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setattr(system, "CLIENT_CAPACITY", {**CLIENT_CAPACITY, "token": ROOM})
    table = emulated(tmp_path, step_table(0.0005, 16))
    return table, "--topology=prefill=1,decode=1", "--max-running-requests=16"


async def others(live: Live) -> list[Reply]:
    bodies = [completion(live.name, f"{n} + 5 = ", ANSWER_TOKENS, n) for n in range(NUM_OTHERS)]
    return list(await asyncio.gather(*(ask(live.port, body) for body in bodies)))


def ask_and_do_not_read(live: Live, seed: int) -> socket.socket:
    """The buffers between here and the server hold a part of the answer only."""
    body = completion(live.name, "What is 37 + 58?", LONG_TOKENS, seed, n=2, logprobs=5)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", live.port))
    connection.sendall(head(body) + body)
    return connection


async def read_to_the_end(connection: socket.socket) -> bytes:
    connection.setblocking(False)
    data = b""
    while part := await asyncio.get_running_loop().sock_recv(connection, 1 << 16):
        data += part
    return data


async def test_only_the_client_that_does_not_read_loses_its_stream(flags: tuple[str, ...]) -> None:
    async with live_server(*flags, send_buffer_bytes=4096) as live:
        undisturbed = await others(live)
        assert {(reply.completed, reply.tokens) for reply in undisturbed} == {(True, ANSWER_TOKENS)}
        stuck = [ask_and_do_not_read(live, seed) for seed in range(3)]
        for _ in range(2):
            replies = await others(live)
            assert [reply.text for reply in replies] == [reply.text for reply in undisturbed]
            assert {(reply.completed, reply.tokens) for reply in replies} == {(True, ANSWER_TOKENS)}
        with anyio.fail_after(LIMIT_S):
            while live.gateway.ledger.requests:
                await checkpoint()
        unread = [
            len(inbox.mailbox) for name, inbox in live.system.carrier.inboxes.items() if name.startswith("client/")
        ]
        assert len(unread) == len(stuck), "their connections are open, and their streams are not"
        assert max(unread) <= ROOM
        with anyio.fail_after(LIMIT_S):
            told = await read_to_the_end(stuck[0])
        assert b"data: [DONE]" in told.partition(b'"code":"slow_client"')[2], "the last that it hears"
        for connection in stuck:
            connection.close()
        await live.until_rest()
        assert [reply.text for reply in await others(live)] == [reply.text for reply in undisturbed]
