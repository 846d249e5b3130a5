"""The rules of a stream, one test each."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette

from actors.client import ClientEvent, GenerateRequest
from actors.messages import Delta
from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from api.stream import PING
from tests.api.conftest import chat
from tests.api.exchange import exchange
from tests.api.fake_client import FakeClient, completed, failed, nothing, record

pytestmark = pytest.mark.anyio
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


async def collect(app: Starlette, path: str, **body: Any) -> list[Any]:
    """All events of a stream."""
    async with exchange(app, path, stream=True, **body) as one:
        assert (await one.start())["status"] == 200
        return [event for events in await one.writes() for event in events]


def choices_of(events: list[Any]) -> list[dict[str, Any]]:
    return [choice for event in events if isinstance(event, dict) for choice in event.get("choices", [])]


async def test_headers(app: Starlette) -> None:
    async with exchange(app, CHAT, **chat(stream=True)) as one:
        headers = dict((await one.start())["headers"])
        await one.writes()
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache"
    assert b"x-request-id" in headers


async def test_the_role_leaves_in_the_same_write_as_the_first_token(app: Starlette) -> None:
    async with exchange(app, CHAT, **chat(stream=True)) as one:
        await one.start()
        role, first = await one.write()
        await one.writes()
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert role["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"content": "The"}


async def test_nothing_is_sent_before_the_first_token(app: Starlette, client: FakeClient) -> None:
    client.script = nothing
    async with exchange(app, CHAT, **chat(stream=True)) as one:
        await client.wait_until(lambda: bool(client.requests))
        await anyio.wait_all_tasks_blocked()
        assert one.nothing_sent()


async def test_one_token_per_chunk(app: Starlette, client: FakeClient) -> None:
    chunks = choices_of(await collect(app, COMPLETIONS, prompt="a", max_tokens=50))
    assert len(chunks) == len(client.tokenizer.encode(client.texts[0]))


async def test_the_last_token_carries_the_finish_reason_once_per_choice(app: Starlette) -> None:
    chunks = choices_of(await collect(app, CHAT, **chat(n=3)))
    for index in range(3):
        own = [chunk for chunk in chunks if chunk["index"] == index]
        assert [chunk["finish_reason"] for chunk in own] == [None] * (len(own) - 1) + ["stop"]
        assert own[-1]["delta"] != {}


async def test_each_choice_gets_its_role_first(app: Starlette) -> None:
    chunks = choices_of(await collect(app, CHAT, **chat(n=3)))
    for index in range(3):
        roles = ["role" in chunk["delta"] for chunk in chunks if chunk["index"] == index]
        assert roles == [True] + [False] * (len(roles) - 1)


async def test_no_usage_unless_asked_for(app: Starlette) -> None:
    events = await collect(app, CHAT, **chat())
    assert all("usage" not in event for event in events[:-1])
    assert all(event["choices"] for event in events[:-1])


async def test_usage_comes_alone_in_the_last_chunk(app: Starlette, client: FakeClient) -> None:
    events = await collect(app, CHAT, **chat(stream_options={"include_usage": True}))
    *chunks, usage, done = events
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(client.tokenizer.encode(client.texts[0]))
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    assert done == "[DONE]"


async def test_continuous_usage_counts_tokens(app: Starlette) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await collect(app, COMPLETIONS, prompt=["a", "b"], stream_options=options, max_tokens=3)
    assert [event["usage"]["completion_tokens"] for event in events[:-2]] == [1, 2, 3, 4, 5, 6]
    assert {event["usage"]["prompt_tokens"] for event in events[:-1]} == {2}


async def test_the_stream_ends_with_done(app: Starlette) -> None:
    for path, body in ((CHAT, chat()), (COMPLETIONS, {"prompt": "a"})):
        assert (await collect(app, path, **body))[-1] == "[DONE]"


async def test_all_chunks_share_id_and_model(app: Starlette) -> None:
    events = (await collect(app, CHAT, **chat(model="org/tiny-alias")))[:-1]
    assert len({(event["id"], event["created"], event["model"]) for event in events}) == 1
    assert events[0]["model"] == "org/tiny-alias"


async def test_the_stream_equals_the_whole_answer(app: Starlette, http: Any) -> None:
    body = {"prompt": ["a", "b"], "n": 3, "logprobs": 2, "max_tokens": 50, "stop": [" please"]}
    whole = (await http.post(COMPLETIONS, json=body)).json()["choices"]
    chunks = choices_of(await collect(app, COMPLETIONS, **body))
    for choice in whole:
        own = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(chunk["text"] for chunk in own) == choice["text"]
        assert (own[-1]["finish_reason"], own[-1]["stop_reason"]) == (
            choice["finish_reason"],
            choice["stop_reason"],
        )
        for key, values in choice["logprobs"].items():
            assert [value for chunk in own for value in chunk["logprobs"][key]] == values


async def test_chat_stream_equals_the_whole_answer(app: Starlette, http: Any) -> None:
    body = chat(n=2, logprobs=True, top_logprobs=1)
    whole = (await http.post(CHAT, json=body)).json()["choices"]
    chunks = choices_of(await collect(app, CHAT, **body))
    for choice in whole:
        own = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(chunk["delta"]["content"] for chunk in own) == choice["message"]["content"]
        content = [entry for chunk in own if chunk["logprobs"] for entry in chunk["logprobs"]["content"]]
        assert content == choice["logprobs"]["content"]


async def test_partial_characters_are_held_back(app: Starlette) -> None:
    chunks = choices_of(await collect(app, CHAT, **chat()))
    texts = [chunk["delta"]["content"] for chunk in chunks]
    assert not any("\ufffd" in text for text in texts)
    assert "\U0001f600" in texts


async def test_a_refusal_before_the_first_token_has_its_own_status(app: Starlette, client: FakeClient) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield failed(request)

    client.script = script
    async with exchange(app, CHAT, **chat(stream=True)) as one:
        start = await one.start()
        await one.wait()
    assert start["status"] == 429
    assert dict(start["headers"])[b"retry-after"] == b"7"


async def test_a_late_error_is_an_event_and_then_done(app: Starlette, client: FakeClient) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield client.deltas(request, 0)[0]
        yield failed(request, status=503)

    client.script = script
    *_, error, done = await collect(app, CHAT, **chat())
    assert error["error"] == {
        "message": "the queue is full", "type": "service_unavailable_error", "param": None, "code": "queue_full",
    }  # fmt: skip
    assert done == "[DONE]"


@pytest.mark.parametrize("missing", ["crash", "silence"])
async def test_a_fault_of_the_server_ends_the_stream_with_an_error(
    app: Starlette, client: FakeClient, missing: str
) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield client.deltas(request, 0)[0]
        if missing == "crash":
            raise ZeroDivisionError("secret detail")

    client.script = script
    *_, error, done = await collect(app, CHAT, **chat())
    assert error["error"]["code"] == "internal_error"
    assert "secret" not in str(error)
    assert done == "[DONE]"


async def test_a_failing_prompt_ends_the_others(app: Starlette, client: FakeClient) -> None:
    begun = anyio.Event()

    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        if request.request.endswith("-0"):
            yield client.deltas(request, 0)[0]
            begun.set()
            await anyio.sleep_forever()
        await begun.wait()
        yield failed(request)

    client.script = script
    *_, error, done = await collect(app, COMPLETIONS, prompt=["a", "b"])
    assert (error["error"]["code"], done) == ("queue_full", "[DONE]")
    assert sorted(client.ended.values()) == ["Failed", "aborted"]


async def test_pings_are_comments_while_nothing_else_comes(model: ServedModel, client: FakeClient) -> None:
    release = anyio.Event()

    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield client.deltas(request, 0)[0]
        await release.wait()
        yield Delta(request=request.request, choice=0, text="!", tokens=(record(5, None),), finish="stop")
        yield completed(request, 2)

    client.script = script
    app = create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(ping_interval_s=0.01))
    async with exchange(app, CHAT, **chat(stream=True)) as one:
        await one.start()
        await one.write()
        assert await one.write() == [PING.decode().strip()]
        release.set()
        events = [event for events in await one.writes() for event in events]
    assert [event["choices"][0]["finish_reason"] for event in events if isinstance(event, dict)] == ["stop"]


async def test_a_first_ping_commits_the_stream_and_failures_become_events(
    model: ServedModel, client: FakeClient
) -> None:
    release = anyio.Event()

    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        await release.wait()
        yield failed(request)

    client.script = script
    app = create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(ping_interval_s=0.01))
    async with exchange(app, CHAT, **chat(stream=True)) as one:
        assert (await one.start())["status"] == 200
        assert await one.write() == [": ping"]
        release.set()
        events = [event for events in await one.writes() for event in events if event != ": ping"]
    assert events[0]["error"]["code"] == "queue_full"
    assert events[1] == "[DONE]"
