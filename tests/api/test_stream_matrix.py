"""A streamed answer, put together, is the whole answer byte for byte, whatever was asked for at once."""

import json
from functools import cache
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from api.app import create_app
from api.model import Readiness, ServedModel
from api.parsers.forms import REASONING_FORMS, TOOL_FORMS, OutputForms
from tests.api.conftest import chat, shared_tokenizer
from tests.api.exchange import parse_events
from tests.api.fake_client import FakeClient
from tests.api.merged import comparable, merged
from tests.runtime.tiny_tokenizer import TURN_END

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPTS = ("Hello there", f"What is 37 + 58?{TURN_END}", "\U0001f600", "a")
TEXTS = (f"The answer is 95 \U0001f600.{TURN_END}", "Hello world", "stop here, please\U0001f600")


CALL = '<tool_call>{"name": "add", "arguments": {"a": [1, "😀"]}}</tool_call>'
PARTS = (f"<think>Hm 😀</think>Well. {CALL}{CALL}", f"Hello {CALL}", "<think>cut off")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

PHASES = (Phase.explicit, Phase.generate)
"""A failing case is read as it is: to look for a smaller one takes minutes."""

PLAIN = OutputForms()
FORMS = OutputForms(tools=TOOL_FORMS["hermes"], reasoning=REASONING_FORMS["think"])


@pytest.fixture(autouse=True)
def shapes() -> None:
    """No check of every chunk's shape, which would take most of the time: other tests have each field's chunks."""


@cache
def app(texts: tuple[str, ...], forms: OutputForms = PLAIN) -> Starlette:
    tokenizer = shared_tokenizer()
    model = ServedModel(
        names=("tiny",),
        tokenizer=tokenizer,
        max_context_tokens=512,
        max_request_tokens=512,
        vocab_size=400,
        eos_token_ids=tuple(tokenizer.encode(TURN_END)),
        created=1,
        max_choices=4,
        max_answers=16,
        draw_seed=lambda: 1,
        forms=forms,
    )
    return create_app(model, FakeClient(tokenizer, texts), lambda: Readiness(state="ready"))


async def post(app: Starlette, url: str, body: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        response = await http.post(url, json=body)
    assert response.status_code == 200, response.text
    return response


async def check(app: Starlette, url: str, body: dict[str, Any], usage: dict[str, bool] | None) -> dict[str, Any]:
    """Asks for the answer both ways and compares them; returns it."""
    whole = comparable((await post(app, url, body)).json())
    options = {"stream_options": usage} if usage is not None else {}
    events = parse_events((await post(app, url, body | {"stream": True} | options)).content)
    streamed = comparable(merged(events))
    for answer in (whole, streamed):
        _forget_drawn_ids(answer)
    if usage is None:
        assert "usage" not in streamed
        streamed["usage"] = whole["usage"]
    assert json.dumps(streamed, sort_keys=True) == json.dumps(whole, sort_keys=True)
    return whole


def _forget_drawn_ids(answer: dict[str, Any]) -> None:
    """Calls have another id each time; and a message without text says so in two ways where calls were possible."""
    for choice in answer["choices"]:
        calls = choice.get("message", {}).get("tool_calls", [])
        assert len({call.pop("id") for call in calls}) == len(calls)
        if "message" in choice:
            choice["message"]["content"] = choice["message"]["content"] or None


def absent_or(values: Any) -> Any:
    return st.none() | st.sampled_from(values)


def ids(text: str) -> list[int]:
    return shared_tokenizer().encode(text)


USAGE = absent_or([{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}])
LOGPROBS = absent_or([0, 1, 3])
SHARED = {
    "n": absent_or([1, 2, 3]),
    "max_tokens": st.sampled_from([1, 3, 50]),
    "stop": absent_or([" is", [" is 9", "here,"], ["\U0001f600"], "."]),
    "stop_token_ids": absent_or([[], ids(" answer") + ids(" world")]),
    "include_stop_str_in_output": absent_or([True, False]),
    "skip_special_tokens": absent_or([True, False]),
    "ignore_eos": absent_or([True]),
    "prompt_logprobs": LOGPROBS,
    "return_token_ids": absent_or([True, False]),
    "return_tokens_as_token_ids": absent_or([True]),
    "truncate_prompt_tokens": absent_or([-1, 2]),
}
TEXT_PROMPTS = st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3)
ALL_PROMPTS = st.one_of(
    st.sampled_from(PROMPTS),
    TEXT_PROMPTS,
    st.sampled_from(PROMPTS).map(ids),
    TEXT_PROMPTS.map(lambda texts: [ids(text) for text in texts]),
)
COMPLETION = SHARED | {"prompt": ALL_PROMPTS, "echo": st.booleans(), "logprobs": LOGPROBS}


@settings(max_examples=120, deadline=None, phases=PHASES)
@given(body=st.fixed_dictionaries(COMPLETION), usage=USAGE, nothing=st.booleans())
def test_completions(body: dict[str, Any], usage: dict[str, bool] | None, nothing: bool) -> None:
    if body["echo"] and nothing:
        body["max_tokens"] = 0
    answer = anyio.run(check, app(TEXTS), COMPLETIONS, body, usage)
    prompts = body["prompt"] if isinstance(body["prompt"], list) and not isinstance(body["prompt"][0], int) else [0]
    assert len(answer["choices"]) == len(prompts) * (body["n"] or 1)
    for choice in answer["choices"]:
        assert (choice["logprobs"] is not None) == (body["logprobs"] is not None)
        assert ("token_ids" in choice) == bool(body["return_token_ids"])
        assert ("prompt_logprobs" in choice) == (body["prompt_logprobs"] is not None)


CHATS = SHARED | {"logprobs": st.none() | st.booleans()}


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(body=st.fixed_dictionaries(CHATS), top=LOGPROBS, usage=USAGE)
def test_chats(body: dict[str, Any], top: int | None, usage: dict[str, bool] | None) -> None:
    if body["logprobs"]:
        body["top_logprobs"] = top
    answer = anyio.run(check, app(TEXTS), CHAT, chat(**body), usage)
    assert len(answer["choices"]) == (body["n"] or 1)
    assert ("prompt_token_ids" in answer) == bool(body["return_token_ids"])


@settings(max_examples=60, deadline=None, phases=PHASES)
@given(
    body=st.fixed_dictionaries(CHATS | {"max_tokens": absent_or([20, 60])}),
    fields=st.fixed_dictionaries({"include_reasoning": st.booleans(), "tools": absent_or([[TOOL]])}),
    usage=USAGE,
)
def test_chats_with_reasoning_and_calls(
    body: dict[str, Any], fields: dict[str, Any], usage: dict[str, bool] | None
) -> None:
    anyio.run(check, app(PARTS, FORMS), CHAT, chat(**body, **fields), usage)
