"""The events of `/v1/responses`: their order, their types, and that they tell what the whole answer tells."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from actors.client import ClientEvent, GenerateRequest
from actors.messages import ErrorInfo, Failed
from api.parsers.parts import CallArguments, CallBegan, Content, OutputParser, Part, Reasoning
from api.responses import service
from tests.api.exchange import exchange
from tests.api.fake_client import FakeClient, failed
from tests.api.response_events import check_events, check_response, parse_stream
from tests.api.test_responses import URL, ask

pytestmark = pytest.mark.anyio


class Scripted:
    """A parser whose parts are written in the text: `r:` `c:` `b:` (a call begins) `a:`, each up to a bar."""

    def __init__(self) -> None:
        self._held = ""
        self._num_calls = 0

    @property
    def is_reasoning(self) -> bool | None:
        return self._held[:1] == "r"

    def push(self, text: str) -> list[Part]:
        *whole, self._held = (self._held + text).split("|")
        return [self._part(entry) for entry in whole]

    def finish(self) -> list[Part]:
        return [self._part(self._held)] if self._held else []

    def _part(self, entry: str) -> Part:
        kind, text = entry[0], entry[2:]
        if kind == "b":
            self._num_calls += 1
            return CallBegan(self._num_calls - 1, f"call_{self._num_calls}", text)
        if kind == "a":
            return CallArguments(self._num_calls - 1, text)
        return Reasoning(text) if kind == "r" else Content(text)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is read by the scripted parser."""
    prepare = service.Progress

    def progress(response: Any, parser: OutputParser, logprobs: Any) -> Any:
        return prepare(response, Scripted(), logprobs)

    monkeypatch.setattr(service, "Progress", progress)


async def stream(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    answer = await http.post(URL, json=ask(stream=True, **fields))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parse_stream(answer.content)


def without_ids(value: Any) -> Any:
    """Ids and times left out, so that two answers compare."""
    if isinstance(value, dict):
        fresh = ("id", "created_at", "completed_at")
        return {key: without_ids(entry) for key, entry in value.items() if key not in fresh}
    return [without_ids(entry) for entry in value] if isinstance(value, list) else value


async def test_a_text(http: httpx.AsyncClient, client: FakeClient) -> None:
    events = await stream(http)
    last = check_events(events)
    assert last["output"][0]["content"][0]["text"] == client.texts[0]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert len(deltas) > 3


TEXTS = [
    "c:",
    "c:Hello| there",
    "r:hm|r:m|c:Hello|c: you",
    "b:add|a:{\"a\":|a: 1}",
    "r:which|c:I add.|b:add|a:{}|b:add|a:{\"a\": 2}",
    "c:one|b:add|a:{}|c:two",
    "r:only thought",
]  # fmt: skip


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("max_output_tokens", [None, 1, 3, 6])
@pytest.mark.parametrize("text", TEXTS)
async def test_every_part_streamed_and_whole(
    http: httpx.AsyncClient, client: FakeClient, text: str, max_output_tokens: int | None, logprobs: bool
) -> None:
    client.texts = (text,)
    fields: dict[str, Any] = {"max_output_tokens": max_output_tokens}
    if logprobs:
        fields |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    last = check_events(await stream(http, **fields))
    whole = (await http.post(URL, json=ask(**fields))).json()
    check_response(whole)
    assert without_ids(whole) == without_ids(last)


@pytest.mark.usefixtures("scripted")
async def test_what_a_length_cuts_is_incomplete(http: httpx.AsyncClient, client: FakeClient) -> None:
    client.texts = ("r:hm|b:add|a:{}|",)
    num_tokens = len(client.tokenizer.encode("r:hm|b:add|a:{}|"))
    last = check_events(await stream(http, max_output_tokens=num_tokens - 1))
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in last["output"]] == ["completed", "incomplete"]
    assert last["completed_at"] is None
    assert last["usage"]["output_tokens"] == num_tokens - 1


@pytest.mark.usefixtures("scripted")
async def test_reasoning_is_counted(http: httpx.AsyncClient, client: FakeClient) -> None:
    text = "r:What is 37|c:The answer"
    client.texts = (text,)
    last = check_events(await stream(http))
    thought = len(client.tokenizer.encode("r:What is 37|"))
    assert last["usage"]["output_tokens_details"] == {"reasoning_tokens": thought}
    assert [item["type"] for item in last["output"]] == ["reasoning", "message"]


async def test_logprobs(http: httpx.AsyncClient, client: FakeClient) -> None:
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    last = check_events(await stream(http, **fields))
    chat = await http.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2},
    )
    assert last["output"][0]["content"][0]["logprobs"] == chat.json()["choices"][0]["logprobs"]["content"]
    assert client.requests[0].params.logprobs == 2


async def test_no_done_line(http: httpx.AsyncClient) -> None:
    assert b"[DONE]" not in (await http.post(URL, json=ask(stream=True))).content


async def test_a_refusal_before_the_first_token_has_its_own_status(http: httpx.AsyncClient, client: FakeClient) -> None:
    async def refuse(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield failed(request)

    client.script = refuse
    answer = await http.post(URL, json=ask(stream=True))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["code"] == "queue_full"


async def test_a_failure_after_it_is_the_last_event(http: httpx.AsyncClient, client: FakeClient) -> None:
    async def break_off(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        for delta in client.deltas(request, 0)[:3]:
            yield delta
        yield Failed(request=request.request, error=ErrorInfo(status=500, message="gone", code="worker_lost"))

    client.script = break_off
    events = await stream(http)
    last = check_events(events)
    assert (last["status"], last["error"]) == ("failed", {"code": "server_error", "message": "gone"})
    assert [item["status"] for item in last["output"]] == ["incomplete"]
    assert (await http.get(f"{URL}/{last['id']}")).json() == last


async def test_what_belongs_together_is_one_write(app: Starlette, client: FakeClient) -> None:
    """The first token leaves with all that announces it, the last one before what ends the response."""
    async with exchange(app, URL, **ask(stream=True)) as one:
        await one.start()
        first = parse_stream((await one._next())["body"])
    assert [event["type"].removeprefix("response.") for event in first] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_goes_away_aborts(app: Starlette, client: FakeClient, streamed: bool) -> None:
    begun = anyio.Event()

    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield client.deltas(request, 0)[0]
        begun.set()
        await anyio.sleep_forever()

    client.script = script
    async with exchange(app, URL, **ask(stream=streamed)) as one:
        with anyio.fail_after(5):
            await begun.wait()
        one.disconnect()
        await one.wait()
    assert list(client.ended.values()) == ["aborted"]


async def test_stage_times_on_request(http: httpx.AsyncClient) -> None:
    answer = await http.post(URL, json=ask(stream=True), headers={"x-runtime-timing": "1"})
    last = check_events(parse_stream(answer.content))
    assert last["runtime_timing"]["choices"][0]["prefill_worker"] == "prefill.0"
    assert "runtime_timing" not in (await http.post(URL, json=ask())).json()
