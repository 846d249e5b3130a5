"""What the chat fields tell the model's template."""

from typing import Any

import httpx
import pytest

from runtime.tokens import Tokenizer
from tests.api.fake_client import FakeClient
from tests.runtime.tiny_tokenizer import TEMPLATE

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"
USER = {"role": "user", "content": "What is 37 + 58?"}
BEGUN = {"role": "assistant", "content": "The answer is"}
TURNS = "<|im_start|>user\nWhat is 37 + 58?<|im_end|>\n<|im_start|>assistant\nThe answer is"


def prompt_of(client: FakeClient) -> str:
    return b"".join(map(client.tokenizer.piece, client.requests[-1].prompt)).decode()


async def refusal(http: httpx.AsyncClient, **fields: Any) -> tuple[str, str]:
    response = await http.post(URL, json=fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize("field", [None, False])
async def test_the_final_message_is_continued(http: httpx.AsyncClient, client: FakeClient, field: bool | None) -> None:
    body = {"messages": [USER, BEGUN], "continue_final_message": True, "add_generation_prompt": field}
    assert (await http.post(URL, json=body)).status_code == 200
    assert prompt_of(client) == TURNS


async def test_content_parts_are_continued(http: httpx.AsyncClient, client: FakeClient) -> None:
    parts = [{"type": "text", "text": "The answer"}, {"type": "text", "text": " is"}]
    body = {"messages": [USER, BEGUN | {"content": parts}], "continue_final_message": True}
    assert (await http.post(URL, json=body)).status_code == 200
    assert prompt_of(client) == TURNS


async def test_without_it_another_turn_begins(http: httpx.AsyncClient, client: FakeClient) -> None:
    assert (await http.post(URL, json={"messages": [USER, BEGUN]})).status_code == 200
    assert prompt_of(client) == f"{TURNS}<|im_end|>\n<|im_start|>assistant\n"
    await http.post(URL, json={"messages": [USER, BEGUN], "add_generation_prompt": False})
    assert prompt_of(client) == f"{TURNS}<|im_end|>\n"


@pytest.mark.parametrize("final", [USER, {"role": "assistant", "content": ""}])
async def test_what_cannot_be_continued(http: httpx.AsyncClient, final: dict[str, Any]) -> None:
    param, message = await refusal(http, messages=[BEGUN, final], continue_final_message=True)
    assert param == "continue_final_message"
    assert "the last message must be one of the assistant's" in message


async def test_calls_cannot_be_continued(http: httpx.AsyncClient) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    param, _ = await refusal(http, messages=[USER, BEGUN | {"tool_calls": [call]}], continue_final_message=True)
    assert param == "continue_final_message"


async def test_a_turn_cannot_be_begun_and_continued(http: httpx.AsyncClient) -> None:
    param, message = await refusal(
        http, messages=[USER, BEGUN], continue_final_message=True, add_generation_prompt=True
    )
    assert (param, message) == (
        "add_generation_prompt",
        "add_generation_prompt: must not be true together with continue_final_message",
    )


async def test_a_template_that_drops_the_final_message(
    http: httpx.AsyncClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer._wrapped, "chat_template", "{{ messages[0].content }}")
    param, message = await refusal(http, messages=[USER, BEGUN], continue_final_message=True)
    assert param == "messages"
    assert "template refuses" in message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "-/-/"),
        ({"reasoning_effort": "high"}, "high/-/"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "-/False/"),
        ({"chat_template_kwargs": {"reasoning_effort": 3}, "reasoning_effort": "low"}, "3/-/"),
        ({"chat_template_kwargs": {}, "reasoning_effort": None}, "-/-/"),
    ],
)
async def test_variables_of_the_template(
    http: httpx.AsyncClient,
    client: FakeClient,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    expected: str,
) -> None:
    template = "{{ reasoning_effort | default('-') }}/{{ enable_thinking | default('-') }}/" + TEMPLATE
    monkeypatch.setattr(tokenizer._wrapped, "chat_template", template)
    assert (await http.post(URL, json={"messages": [USER]} | fields)).status_code == 200
    assert prompt_of(client).startswith(f"{expected}<|im_start|>")


@pytest.mark.parametrize(
    "name",
    [
        "messages", "conversation", "conversations", "tools", "documents", "chat_template", "add_generation_prompt",
        "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens", "self", "kwargs",
    ],
)  # fmt: skip
async def test_variables_that_are_not_the_templates(http: httpx.AsyncClient, name: str) -> None:
    param, message = await refusal(http, messages=[USER], chat_template_kwargs={name: True})
    assert param == "chat_template_kwargs"
    assert f"{name!r} is not the template's own" in message


async def test_an_unknown_effort(http: httpx.AsyncClient) -> None:
    param, message = await refusal(http, messages=[USER], reasoning_effort="extreme")
    assert param == "reasoning_effort"
    assert "one of none, minimal, low" in message
    assert "'extreme'" in message
