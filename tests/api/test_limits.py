"""What is refused for its size or its slowness, before it costs anything; and what is only noted."""

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.types import Message, Receive

from actors.client import ClientEvent, GenerateRequest
from actors.messages import ErrorInfo, Failed
from api import schema, validate
from api.app import create_app
from api.bodies import read_body
from api.checks import check_token_ids
from api.model import ApiSettings, Readiness, ServedModel
from api.schema import ChatBody, CompletionBody, decode_body
from api.validate import encode_prompt
from runtime.errors import RequestError
from tests.api.conftest import chat
from tests.api.exchange import Exchange
from tests.api.fake_client import FakeClient

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def no_encoding(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> list[int]:
        raise AssertionError("nothing must be encoded")

    monkeypatch.setattr(model.tokenizer, "encode", refuse)


@pytest.mark.anyio
@pytest.mark.usefixtures("no_encoding")
@pytest.mark.parametrize(
    ("url", "body", "param"),
    [
        (COMPLETIONS, {"prompt": "x" * 5_000_000}, "prompt"),
        (COMPLETIONS, {"prompt": ["x" * 5_000_000]}, "prompt[0]"),
        (COMPLETIONS, {"prompt": "\U0001f600" * 1_000_000}, "prompt"),
        (CHAT, chat(messages=[{"role": "user", "content": "x" * 5_000_000}]), "messages"),
        (CHAT, chat(messages=[{"role": "user", "content": "x" * 20}] * 1000), "messages"),
    ],
    ids=["text", "list", "emoji", "message", "messages"],
)
async def test_a_huge_text_is_refused_without_encoding_it(
    http: httpx.AsyncClient, url: str, body: dict[str, Any], param: str
) -> None:
    response = await http.post(url, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "too long for the context of 256 tokens" in error["message"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 4, "prompt_logprobs": 2}, "prompt_logprobs"),
        ({"n": 4, "echo": True, "logprobs": 2}, "logprobs"),
        ({"n": 1, "prompt": [[70, 71, 72]] * 4, "prompt_logprobs": 2}, "prompt_logprobs"),
    ],
)
async def test_what_is_told_of_the_prompts_is_bounded(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], param: str
) -> None:
    """Each choice of a completion shows its prompt's logprobs: 3 tokens of 3 numbers, 4 times."""
    body = {"prompt": [70, 71, 72], "max_tokens": 50} | body
    for limit, status in ((35, 400), (36, 200)):
        monkeypatch.setattr(validate, "MAX_PROMPT_ENTRIES", limit)
        response = await http.post(COMPLETIONS, json=body)
        assert response.status_code == status
        if status == 400:
            assert response.json()["error"]["param"] == param
            assert "36 logprobs in one answer; allowed: 35" in response.json()["error"]["message"]
    monkeypatch.setattr(validate, "MAX_PROMPT_ENTRIES", 1)
    assert (await http.post(COMPLETIONS, json=body | {"prompt_logprobs": None, "echo": False})).status_code == 200


@pytest.mark.anyio
async def test_a_chat_tells_of_its_prompt_once_whatever_its_choices(
    http: httpx.AsyncClient, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await http.post(CHAT, json=chat())
    monkeypatch.setattr(validate, "MAX_PROMPT_ENTRIES", len(client.requests[0].prompt))
    assert (await http.post(CHAT, json=chat(n=4, prompt_logprobs=0))).status_code == 200
    assert (await http.post(CHAT, json=chat(prompt_logprobs=1))).status_code == 400


def test_the_longest_text_that_may_fit_is_encoded(model: ServedModel) -> None:
    longest = "<|endoftext|>"
    assert len(longest) == model.tokenizer.longest_token_bytes
    prompt = encode_prompt("prompt", longest * model.max_total_tokens, model)
    assert len(prompt.tokens) == model.max_total_tokens
    with pytest.raises(RequestError, match="too long for the context of 256"):
        encode_prompt("prompt", longest * model.max_total_tokens + "x", model)
    pool = msgspec.structs.replace(model, max_request_tokens=100)
    with pytest.raises(RequestError, match="too long for the KV pool of 100"):
        encode_prompt("prompt", longest * 101, pool)


@pytest.mark.anyio
async def test_the_length_of_a_prompt_of_ids_is_checked_before_its_ids(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "check_token_ids", None)
    error = (await http.post(COMPLETIONS, json={"prompt": [-1] * 1_000_000})).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("tokens", "named"),
    [([5, -1, 7], "-1"), ([5, 10, 3], "10"), ([-(10**40)], "a number beyond 64 bits"), ([10**40], "beyond 64 bits")],
)
def test_ids_outside_the_vocabulary_are_named(tokens: list[int], named: str) -> None:
    with pytest.raises(RequestError, match=f"field: token id .*{named} is not in the vocabulary of 10 tokens"):
        check_token_ids("field", tokens, 10)


@pytest.mark.parametrize("tokens", [[], [0], [9], (0, 9, 5), range(10)])
def test_ids_of_the_vocabulary_pass(tokens: Any) -> None:
    check_token_ids("field", tokens, 10)


def stalling(*messages: Message) -> Receive:
    """A client that sends these and then neither more nor a disconnect."""
    rest = list(messages)

    async def receive() -> Message:
        if not rest:
            await anyio.sleep_forever()
        return rest.pop(0)

    return receive


PART = {"type": "http.request", "body": b"{", "more_body": True}


@pytest.mark.anyio
@pytest.mark.parametrize("messages", [[], [PART], [PART, PART]])
async def test_a_body_that_never_ends(messages: list[Message]) -> None:
    with anyio.fail_after(5), pytest.raises(RequestError, match=r"did not arrive within 0\.001 seconds") as caught:
        await read_body(stalling(*messages), 1000, 0.001)
    assert (caught.value.status, caught.value.code) == (408, "request_timeout")


@pytest.mark.anyio
async def test_a_body_that_arrives_in_time() -> None:
    last = {"type": "http.request", "body": b"}", "more_body": False}
    assert await read_body(stalling(PART, last), 1000, 60) == b"{}"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "body"), [(CHAT, chat()), (COMPLETIONS, {"prompt": "a"}), ("/v1/responses", {"input": "a"})]
)
async def test_a_request_that_is_not_complete_in_its_time(
    http: httpx.AsyncClient, client: FakeClient, url: str, body: dict[str, Any]
) -> None:
    async def too_late(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield Failed(request=request.request, error=ErrorInfo(status=504, message="too late", code="deadline_exceeded"))

    client.script = too_late
    answer = await http.post(url, json=body | {"timeout_s": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.anyio
@pytest.mark.parametrize("url", [CHAT, COMPLETIONS, "/v1/responses", "/tokenize"])
async def test_a_stalled_client_is_told_and_let_go(model: ServedModel, client: FakeClient, url: str) -> None:
    app: Starlette = create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(body_timeout_s=0.001))
    one, sent = Exchange(url, b""), []

    async def send(message: Message) -> None:
        sent.append(message)

    with anyio.fail_after(5):
        await app(one.scope, stalling(PART), send)
    one.close()
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert msgspec.json.decode(sent[1]["body"])["error"] == {
        "message": "the body did not arrive within 0.001 seconds",
        "type": "invalid_request_error",
        "param": None,
        "code": "request_timeout",
    }
    assert client.requests == []


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(schema, "_logged", set())
    with caplog.at_level(logging.INFO, logger="api.schema"):
        yield caplog


def test_unknown_fields_are_logged_once_each(log: pytest.LogCaptureFixture) -> None:
    decode_body(b'{"prompt": "a", "zig": 1, "extra": {"zag": 2}, "user": "me"}', CompletionBody)
    decode_body(b'{"messages": [], "zig": 3, "best_of": 1}', ChatBody)
    assert [(record.levelname, record.getMessage()) for record in log.records] == [
        ("INFO", f"ignoring the unknown request field '{name}'") for name in ("zig", "extra", "best_of")
    ]


def test_unknown_fields_fill_neither_log_nor_memory(log: pytest.LogCaptureFixture) -> None:
    many = {"x" * 1000: 0} | {f"field {number}": 0 for number in range(2000)}
    decode_body(msgspec.json.encode(many), CompletionBody)
    assert len(log.records) == len(schema._logged) == 1000
    assert max(map(len, schema._logged)) == 100


def test_unknown_fields_are_not_looked_for_unless_they_are_logged(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.set_level(logging.WARNING, logger="api.schema")
    monkeypatch.setattr(schema, "_log_unknown", None)
    decode_body(b'{"zig": 1}', CompletionBody)
