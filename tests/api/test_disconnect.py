"""A client that goes away aborts its request at once, wherever the request is."""

from collections.abc import AsyncIterator

import anyio
import pytest
from starlette.applications import Starlette

from actors.client import ClientEvent, GenerateRequest
from tests.api.conftest import chat
from tests.api.exchange import Exchange, exchange
from tests.api.fake_client import FakeClient, nothing

pytestmark = pytest.mark.anyio
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize("stream", [False, True])
async def test_while_queued(app: Starlette, client: FakeClient, stream: bool) -> None:
    client.script = nothing
    async with exchange(app, CHAT, **chat(stream=stream)) as one:
        await client.wait_until(lambda: bool(client.requests))
        one.disconnect()
        await one.wait()
        assert one.nothing_sent()
    assert list(client.ended.values()) == ["aborted"]


@pytest.mark.parametrize("stream", [False, True])
async def test_between_tokens(app: Starlette, client: FakeClient, stream: bool) -> None:
    begun = anyio.Event()

    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield client.deltas(request, 0)[0]
        begun.set()
        await anyio.sleep_forever()

    client.script = script
    async with exchange(app, CHAT, **chat(stream=stream)) as one:
        with anyio.fail_after(5):
            await begun.wait()
        one.disconnect()
        await one.wait()
    assert list(client.ended.values()) == ["aborted"]


async def test_every_prompt_of_the_request(app: Starlette, client: FakeClient) -> None:
    client.script = nothing
    async with exchange(app, COMPLETIONS, prompt=["a", "b", "c"]) as one:
        await client.wait_until(lambda: len(client.requests) == 3)
        one.disconnect()
        await one.wait()
    assert list(client.ended.values()) == ["aborted"] * 3


async def test_a_client_that_does_not_read_is_still_noticed(app: Starlette, client: FakeClient) -> None:
    """A write that waits for the socket does not hide the disconnect."""
    one = Exchange(CHAT, b'{"messages": [{"role": "user", "content": "a"}], "stream": true}')
    writing = anyio.Event()

    async def stuck_send(message: object) -> None:
        writing.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, one.scope, one._app_receives.receive, stuck_send)
        with anyio.fail_after(5):
            await writing.wait()
            one.disconnect()
            await client.wait_until(lambda: list(client.ended.values()) == ["aborted"])
    one.close()


async def test_before_the_body_is_complete(app: Starlette, client: FakeClient) -> None:
    one = Exchange(CHAT, b"{")
    parts = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, object]:
        return parts.pop(0)

    await app(one.scope, receive, one._app_sends.send)
    assert one.nothing_sent()
    assert client.requests == []
    one.close()


async def test_other_requests_go_on(app: Starlette, client: FakeClient) -> None:
    client.script = nothing
    async with exchange(app, CHAT, **chat()) as gone:
        await client.wait_until(lambda: bool(client.requests))
        client.script = client.answer
        gone.disconnect()
        async with exchange(app, CHAT, **chat(stream=True)) as other:
            await other.start()
            assert (await other.writes())[-1][-1] == "[DONE]"
        await gone.wait()
    assert sorted(client.ended.values()) == ["Completed", "aborted"]
