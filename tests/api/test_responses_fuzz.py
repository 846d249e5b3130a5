"""Whatever a body holds, the answer is a refusal that names a field, or it is valid."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

import httpx
import pytest

from tests.api.fake_client import FakeClient
from tests.api.response_events import check_response
from tests.api.test_responses import URL
from tests.api.test_responses_conversation import TOOL

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {
    "model": "tiny",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}], "content": None},
        {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "add", "arguments": '{"a": 7}'},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "9"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": "b"},
    ],
    "instructions": "Be brief.",
    "tools": [TOOL],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
    "stop": ["x"],
    "max_output_tokens": 10,
    "top_logprobs": 2,
    "truncation": "auto",
}
STRANGE: list[Any] = [
    None, True, False, 0, -1, 2**70, 1e300, "", "x", "\u0000", "\ud800", "\U0001f600" * 50, [], {}, [[]], [None],
    {"type": "text"}, {"type": "function"}, [{"type": "x"}], {"a": {"b": 2**80}},
]  # fmt: skip


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a body with each of its keys."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield value, key
        yield from places(entry)


NUM_PLACES = len(list(places(BODY)))


@pytest.mark.parametrize("place", range(NUM_PLACES))
async def test_one_strange_value(http: httpx.AsyncClient, place: int) -> None:
    for strange in Random(place).sample([*STRANGE, deep(100), deep(300), deep(900)], 8):
        body = copy.deepcopy(BODY)
        container, key = list(places(body))[place]
        container[key] = strange
        await check(http, body)


@pytest.mark.parametrize("seed", range(10))
async def test_several_strange_values(http: httpx.AsyncClient, seed: int) -> None:
    random = Random(seed)
    for _ in range(20):
        body = copy.deepcopy(BODY)
        for _ in range(random.randrange(1, 4)):
            container, key = random.choice(list(places(body)))
            container[key] = copy.deepcopy(random.choice(STRANGE))
        await check(http, body)


async def check(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await http.post(URL, content=json.dumps(body))
    if answer.status_code == 200:
        check_response(answer.json())
        return
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert error["param"] is None or error["param"] in error["message"]


async def test_the_body_is_fine_as_it_is(http: httpx.AsyncClient, client: FakeClient) -> None:
    answer = await http.post(URL, json=BODY)
    assert answer.status_code == 200, answer.text
