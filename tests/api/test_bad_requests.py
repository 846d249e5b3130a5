"""Every bad request gets a 400 that names the field, and the server goes on."""

import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from tests.api.conftest import chat
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def assert_refused(response: httpx.Response, param: str | None, *words: str, status: int = 400) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b'{"a": NaN}', b"[]", b'"text"', b"3", b'{"model": "\xff"}', b'{"zzz": "\xff"}',
        b'{"model": "\\ud800"}', b'{"zzz":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"[" * 100_000,
    ],
)  # fmt: skip
async def test_bodies_that_are_no_json_object(http: httpx.AsyncClient, url: str, body: bytes) -> None:
    assert_refused(await http.post(url, content=body), None, "body")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": "hot"}, "temperature", ["number", "string"]),
        ({"temperature": True}, "temperature", ["number", "boolean"]),
        ({"temperature": -0.1}, "temperature", ["-0.1", "0", "2"]),
        ({"temperature": 2.1}, "temperature", ["2.1"]),
        ({"top_p": 0}, "top_p", ["above 0"]),
        ({"top_p": 1.5}, "top_p", ["1.5"]),
        ({"top_k": -2}, "top_k", ["-2"]),
        ({"top_k": 1.5}, "top_k", ["integer"]),
        ({"min_p": 2}, "min_p", ["2"]),
        ({"presence_penalty": 3}, "presence_penalty", ["3"]),
        ({"frequency_penalty": -3}, "frequency_penalty", ["-3"]),
        ({"repetition_penalty": 0}, "repetition_penalty", ["0.01"]),
        ({"n": 0}, "n", ["0"]),
        ({"n": 9}, "n", ["8"]),
        ({"n": 10**400}, "n", ["beyond 64 bits"]),
        ({"seed": 2**63}, "seed", []),
        ({"seed": "x"}, "seed", ["integer"]),
        ({"max_tokens": 0}, "max_tokens", ["at least 1"]),
        ({"max_tokens": -5}, "max_tokens", ["-5"]),
        ({"max_tokens": 10_000}, "max_tokens", ["10000", "256"]),
        ({"max_tokens": 10**30}, "max_tokens", ["256"]),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", ["4"]),
        ({"min_tokens": -1}, "min_tokens", ["-1"]),
        ({"stop": 5}, "stop", []),
        ({"stop": ""}, "stop", ["1 to"]),
        ({"stop": ["a"] * 17}, "stop", ["16"]),
        ({"stop": ["a", 5]}, "stop[1]", ["string"]),
        ({"stop": ["x" * 1000]}, "stop", ["1000"]),
        ({"stop_token_ids": [400]}, "stop_token_ids", ["400"]),
        ({"cache_salt": ""}, "cache_salt", ["1 to 512"]),
        ({"cache_salt": 5}, "cache_salt", ["string"]),
        ({"stop_token_ids": list(range(32))}, "stop_token_ids", ["32"]),
        ({"logit_bias": {"x": 1}}, "logit_bias", ["'x'"]),
        ({"logit_bias": {"-1": 1}}, "logit_bias", ["'-1'"]),
        ({"logit_bias": {"400": 1}}, "logit_bias", ["400"]),
        ({"logit_bias": {"5": 101}}, "logit_bias", ["101"]),
        ({"logit_bias": {"5": "a"}}, "logit_bias", ["number"]),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", ["301"]),
        ({"stream_options": {"include_usage": True}}, "stream_options", ["stream"]),
        ({"stream": "yes"}, "stream", ["boolean"]),
        ({"bad_words": [" "]}, "bad_words", ["white space"]),
        ({"structured_outputs": {"regex": "a("}}, "structured_outputs.regex", ["unclosed group"]),
    ],
)
@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_values_that_both_endpoints_refuse(
    http: httpx.AsyncClient, url: str, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    body = chat(**fields) if url == CHAT else {"prompt": "hi"} | fields
    assert_refused(await http.post(url, json=body), param, *words)


@pytest.mark.parametrize("name", ["temperature", "top_p", "presence_penalty"])
async def test_numbers_beyond_float(http: httpx.AsyncClient, name: str) -> None:
    body = json.dumps(chat())[:-1] + f', "{name}": 1e400}}'
    assert_refused(await http.post(CHAT, content=body), name, "out of range")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": None}, "messages", []),
        ({"messages": []}, "messages", []),
        ({"messages": "hi"}, "messages", ["array", "string"]),
        ({"messages": [5]}, "messages[0]", ["object"]),
        ({"messages": [{"content": "x"}]}, "messages[0]", ["role"]),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", ["king", "assistant"]),
        ({"messages": [{"role": "user"}]}, "messages[0].content", []),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", []),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            ["image_url"],
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", []),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
            "messages",
            ["system must come first"],
        ),
        ({"messages": [{"role": "user", "content": "x " * 500}]}, "messages", ["256"]),
        ({"logprobs": 5}, "logprobs", ["boolean"]),
        ({"top_logprobs": 3}, "top_logprobs", ["logprobs"]),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", ["20"]),
        ({"tool_choice": "required"}, "tool_choice", ["tools"]),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", []),
        ({"tools": [{"type": "web"}]}, "tools[0].type", ["function", "web"]),
        ({"response_format": {"type": "yaml"}}, "response_format.type", ["json_object", "yaml"]),
        ({"max_completion_tokens": 0, "max_tokens": 5}, "max_completion_tokens", []),
    ],
)
async def test_values_that_chat_refuses(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    assert_refused(await http.post(CHAT, json=chat(**fields)), param, *words)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": None}, "prompt", []),
        ({"prompt": ""}, "prompt", []),
        ({"prompt": []}, "prompt", []),
        ({"prompt": [[]]}, "prompt[0]", ["empty"]),
        ({"prompt": ["a", 5]}, "prompt", ["mixed"]),
        ({"prompt": [[5], "a"]}, "prompt", ["mixed"]),
        ({"prompt": [1.5]}, "prompt[0]", []),
        ({"prompt": [[1, "a"]]}, "prompt[0][1]", ["integer"]),
        ({"prompt": {"a": 1}}, "prompt", []),
        ({"prompt": [400]}, "prompt", ["400"]),
        ({"prompt": [-1]}, "prompt", ["-1"]),
        ({"prompt": [10**40]}, "prompt", ["64 bits"]),
        ({"prompt": [[1], [400]]}, "prompt[1]", ["400"]),
        ({"prompt": [1] * 256}, "prompt", ["256 tokens", "context of 256"]),
        ({"prompt": ["a"] * 9}, "prompt", ["8"]),
        ({"prompt": ["a"] * 3, "n": 3}, "n", ["8"]),
        ({"logprobs": 21}, "logprobs", ["20"]),
        ({"logprobs": True}, "logprobs", ["integer"]),
        ({"best_of": 2}, "best_of", ["n (1)"]),
        ({"echo": True, "max_tokens": -1}, "max_tokens", ["at least 0"]),
        ({"suffix": "x"}, "suffix", ["not supported"]),
    ],
)
async def test_values_that_completions_refuse(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    assert_refused(await http.post(COMPLETIONS, json={"prompt": "hi"} | fields), param, *words)


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
async def test_an_unknown_model(http: httpx.AsyncClient, url: str) -> None:
    response = await http.post(url, json=chat(prompt="a", model="gpt-9"))
    assert_refused(response, "model", "gpt-9", "tiny", status=404)
    assert response.json()["error"]["code"] == "model_not_found"


async def test_a_prompt_larger_than_the_pool(model: ServedModel, client: FakeClient) -> None:
    import msgspec

    small = msgspec.structs.replace(model, max_request_tokens=100)
    app = create_app(small, client, lambda: Readiness(state="ready"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        assert_refused(await http.post(COMPLETIONS, json={"prompt": [1] * 100}), "prompt", "KV pool of 100")
        fields = {"prompt": [1] * 90, "max_tokens": 11}
        assert_refused(await http.post(COMPLETIONS, json=fields), "max_tokens", "11", "90", "100")
        assert (await http.post(COMPLETIONS, json=fields | {"max_tokens": 10})).status_code == 200


async def test_a_body_that_is_too_large(model: ServedModel, client: FakeClient) -> None:
    app = create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(max_body_bytes=1000))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        response = await http.post(COMPLETIONS, json={"prompt": "x" * 1000})
        assert_refused(response, None, "1000 bytes", status=413)


async def test_nothing_bad_reaches_the_engine_and_the_next_request_is_served(
    http: httpx.AsyncClient, client: FakeClient, app: Starlette
) -> None:
    await http.post(CHAT, content=b"{")
    await http.post(CHAT, json=chat(temperature=-1))
    assert client.requests == []
    assert (await http.post(CHAT, json=chat())).status_code == 200
