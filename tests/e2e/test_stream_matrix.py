"""Streams of a served demo model, put together, are its whole answers; and its prompt logprobs are the model's own."""

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.exchange import parse_events
from tests.api.merged import comparable, merged
from tests.e2e.server import ServerProcess, server_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEXT = "What is 37 + 58?"
IDS = [40, 41, 42, 43, 44, 45]
SALTS = itertools.count()
CASES: list[dict[str, Any]] = [
    {"prompt": TEXT, "echo": True, "logprobs": 1, "max_tokens": 1},
    {"prompt": [TEXT, "12*7="], "echo": True, "logprobs": 3, "n": 2, "stop": "="},
    {"prompt": [IDS, IDS[:1]], "echo": True, "logprobs": 0, "n": 2, "return_token_ids": True},
    {"prompt": [IDS, IDS[:3]], "echo": True, "logprobs": 2, "max_tokens": 0},
    {"prompt": IDS, "prompt_logprobs": 2, "logprobs": 2, "stop": ["1", " "], "include_stop_str_in_output": True},
    {"prompt": [TEXT] * 3, "logprobs": 20, "skip_special_tokens": False, "ignore_eos": True},
    {"prompt": TEXT, "n": 3, "return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": 1},
    {"prompt": TEXT * 20, "truncate_prompt_tokens": 9, "echo": True, "logprobs": 1, "prompt_logprobs": 0},
]
CHATS: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1, "return_token_ids": True, "n": 2},
    {"stop": ["think", "9"], "include_stop_str_in_output": True},
]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process("--max-running-requests", "8", "--topology", "prefill=1,decode=1") as process:
        process.wait_until_serving()
        yield process


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as made:
        yield made


def post(http: httpx.Client, url: str, body: dict[str, Any]) -> httpx.Response:
    """Asks as somebody who shares no cached prefix with anybody."""
    response = http.post(url, json=body | {"cache_salt": f"salt {next(SALTS)}"})
    assert response.status_code == 200, response.text
    return response


def check(http: httpx.Client, url: str, body: dict[str, Any]) -> Any:
    body = {"max_tokens": 12, "seed": 5, "temperature": 1.0} | body
    whole = comparable(post(http, url, body).json())
    events = post(http, url, body | {"stream": True, "stream_options": {"include_usage": True}})
    assert comparable(merged(parse_events(events.content))) == rounded(whole)
    return whole


def rounded(part: Any) -> Any:
    """Numbers up to rounding: what runs beside a request may change the shapes in which it is computed."""
    if isinstance(part, dict):
        return {name: rounded(value) for name, value in part.items()}
    if isinstance(part, list):
        return [rounded(value) for value in part]
    return pytest.approx(part, abs=1e-4) if isinstance(part, float) else part


@pytest.mark.parametrize("body", CASES, ids=range(len(CASES)))
def test_completions(http: httpx.Client, body: dict[str, Any]) -> None:
    check(http, "/v1/completions", body)


@pytest.mark.parametrize("body", CHATS, ids=range(len(CHATS)))
def test_chats(http: httpx.Client, body: dict[str, Any]) -> None:
    check(http, "/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}]} | body)


def test_a_prompt_is_scored_as_its_tokens_were_sampled(http: httpx.Client) -> None:
    """What was answered, sent back as a prompt, has the logprobs under which it was sampled."""
    body = {"prompt": IDS, "max_tokens": 16, "logprobs": 2, "temperature": 0, "return_token_ids": True}
    body["return_tokens_as_token_ids"] = True
    first = post(http, "/v1/completions", body).json()["choices"][0]
    again = body | {"prompt": IDS + first["token_ids"], "echo": True, "max_tokens": 0}
    second = post(http, "/v1/completions", again).json()["choices"][0]
    assert second["logprobs"]["tokens"][len(IDS) :] == first["logprobs"]["tokens"]
    for name in ("token_logprobs", "top_logprobs"):
        assert second["logprobs"][name][len(IDS) :] == rounded(first["logprobs"][name])
