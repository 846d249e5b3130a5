"""Stage times: who gets them, where they stand, and that nobody else's answer changes."""

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.api.conftest import chat
from tests.api.exchange import exchange
from tests.api.fake_client import FakeClient, failed

pytestmark = pytest.mark.anyio
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES = {CHAT: chat(), COMPLETIONS: {"prompt": "a"}}
ASKED = {"x-runtime-timing": "1"}


async def collect(app: Starlette, path: str, **body: Any) -> list[Any]:
    """All events of a stream that asks for stage times."""
    async with exchange(app, path, headers=((b"x-runtime-timing", b"1"),), stream=True, **body) as one:
        assert (await one.start())["status"] == 200
        return [event for events in await one.writes() for event in events]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_body_tells_every_stage(http: httpx.AsyncClient, client: FakeClient, path: str) -> None:
    body = (await http.post(path, json=BODIES[path], headers=ASKED)).json()
    queue_s = float(len(client.requests[0].prompt))
    assert body["runtime_timing"] == {
        "choices": [
            {
                "index": 0,
                "attempts": 1,
                "prefill_worker": "prefill.0",
                "decode_worker": None,
                "queue_s": queue_s,
                "prefill_s": 0.0,
                "transfer_s": 0.125,
                "handoff_s": 0.25,
                "decode_s": 0.5,
                "total_s": queue_s + 0.875,
            }
        ]
    }


async def test_choices_of_several_prompts_are_numbered_as_in_the_answer(
    http: httpx.AsyncClient, client: FakeClient
) -> None:
    prompts = ["a", "Hello world", "b"]
    body = (await http.post(COMPLETIONS, json={"prompt": prompts, "n": 2}, headers=ASKED)).json()
    sizes = {len(request.prompt): request for request in client.requests}
    assert len(sizes) == 2, "a and b make prompts of one length"
    timings = body["runtime_timing"]["choices"]
    assert [times["index"] for times in timings] == [choice["index"] for choice in body["choices"]] == [*range(6)]
    lengths = [len(client.tokenizer.encode(prompt, add_special_tokens=True)) for prompt in prompts for _ in range(2)]
    assert [times["queue_s"] for times in timings] == lengths
    assert [times["prefill_s"] for times in timings] == [0.0, 1.0] * 3


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_ends_with_them(app: Starlette, path: str) -> None:
    *chunks, last, done = await collect(app, path, **BODIES[path])
    assert done == "[DONE]"
    assert last["choices"] == []
    assert "usage" not in last
    assert last["id"] == chunks[0]["id"]
    assert [times["total_s"] > 0 for times in last["runtime_timing"]["choices"]] == [True]
    assert all("runtime_timing" not in chunk and chunk["choices"] for chunk in chunks)


async def test_with_usage_they_share_its_chunk(app: Starlette) -> None:
    events = await collect(app, CHAT, **chat(n=2, stream_options={"include_usage": True}))
    *chunks, last, _ = events
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0
    assert [times["index"] for times in last["runtime_timing"]["choices"]] == [0, 1]
    assert all(chunk["choices"] for chunk in chunks)


async def test_a_list_of_prompts_streams_them_in_order(app: Starlette, client: FakeClient) -> None:
    *_, last, _ = await collect(app, COMPLETIONS, prompt=["Hello world, hello", "a"], n=2)
    lengths = [len(client.tokenizer.encode(text, add_special_tokens=True)) for text in ("Hello world, hello", "a")]
    told = [(times["index"], times["queue_s"]) for times in last["runtime_timing"]["choices"]]
    assert told == [(0, lengths[0]), (1, lengths[0]), (2, lengths[1]), (3, lengths[1])]


@pytest.mark.parametrize("headers", [{}, {"x-runtime-timing": "0"}])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_who_does_not_ask_gets_none(http: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    body = (await http.post(path, json=BODIES[path], headers=headers)).json()
    assert list(body) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    stream = await http.post(path, json=BODIES[path] | {"stream": True}, headers=headers)
    assert "runtime_timing" not in stream.text
    assert '"choices":[]' not in stream.text


@pytest.mark.parametrize("value", ["2", "yes", "", "true", "1,1", "x" * 500])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_another_value_is_refused_by_the_headers_name(
    http: httpx.AsyncClient, client: FakeClient, path: str, value: str
) -> None:
    answer = await http.post(path, json=BODIES[path], headers={"x-runtime-timing": value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "x-runtime-timing"
    assert error["message"] == f"x-runtime-timing: must be 0 or 1, got {value[:40]!r}"
    assert client.requests == []


async def test_contradicting_headers_are_refused(http: httpx.AsyncClient) -> None:
    headers = [("x-runtime-timing", "0"), ("x-runtime-timing", "1")]
    answer = await http.post(CHAT, json=BODIES[CHAT], headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-runtime-timing"


async def test_a_failure_carries_none(http: httpx.AsyncClient, client: FakeClient) -> None:
    async def refuse(request: Any) -> Any:
        yield failed(request)

    client.script = refuse
    answer = await http.post(CHAT, json=BODIES[CHAT], headers=ASKED)
    assert answer.status_code == 429
    assert list(answer.json()) == ["error"]
