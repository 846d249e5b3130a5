"""The prompt in a completion's answer: its text, its tokens' logprobs, and the answer of no tokens."""

from typing import Any

import httpx
import pytest
from tokenizers.processors import TemplateProcessing

from runtime.tokens import Tokenizer
from tests.api.exchange import parse_events
from tests.api.fake_client import FakeClient
from tests.runtime.tiny_tokenizer import END, TURN_END, tiny_tokenizer

pytestmark = pytest.mark.anyio
URL = "/v1/completions"


async def choices(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await http.post(URL, json=body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices"]
    return found


async def test_every_choice_begins_with_its_prompt(http: httpx.AsyncClient, client: FakeClient) -> None:
    found = await choices(http, prompt=["Hello ", "What is "], n=2, echo=True, max_tokens=50)
    assert [choice["text"] for choice in found] == [
        prompt + text for prompt in ("Hello ", "What is ") for text in client.texts[:2]
    ]


async def test_prompts_of_ids_are_shown_as_text(http: httpx.AsyncClient, client: FakeClient) -> None:
    ids = client.tokenizer.encode(f"Hello{TURN_END} ")
    for prompt in (ids, [ids]):
        (choice,) = await choices(http, prompt=prompt, echo=True, max_tokens=50)
        assert choice["text"] == "Hello " + client.texts[0]
    (choice,) = await choices(http, prompt=ids, echo=True, skip_special_tokens=False, max_tokens=50)
    assert choice["text"] == f"Hello{TURN_END} " + client.texts[0]


async def test_a_text_is_shown_as_it_came(http: httpx.AsyncClient, client: FakeClient) -> None:
    (choice,) = await choices(http, prompt=f"Hello{TURN_END} ", echo=True, max_tokens=50)
    assert choice["text"] == f"Hello{TURN_END} " + client.texts[0]


async def test_stop_strings_are_not_looked_for_in_the_prompt(http: httpx.AsyncClient) -> None:
    (choice,) = await choices(http, prompt="What is ", echo=True, stop=[" is"])
    assert (choice["text"], choice["stop_reason"]) == ("What is The answer", " is")


async def test_without_logprobs_the_prompt_is_not_scored(http: httpx.AsyncClient, client: FakeClient) -> None:
    await choices(http, prompt="Hello", echo=True)
    await choices(http, prompt="Hello", logprobs=1)
    assert [request.params.prompt_logprobs for request in client.requests] == [None, None]


async def test_logprobs_begin_with_the_prompts(http: httpx.AsyncClient, client: FakeClient) -> None:
    """The request of evaluation tools: they read the prompt's numbers and leave the last token out."""
    prompt = client.tokenizer.encode("Hello there")
    (choice,) = await choices(http, prompt=[prompt], echo=True, logprobs=1, max_tokens=1)
    logprobs = choice["logprobs"]
    assert client.requests[-1].params.prompt_logprobs == 1
    assert "".join(logprobs["tokens"]) == choice["text"] == "Hello thereThe"
    assert len(logprobs["tokens"]) == len(prompt) + 1
    assert logprobs["token_logprobs"] == [None, *(-0.5 - position for position in range(len(prompt) - 1)), -0.25]
    assert logprobs["top_logprobs"][0] is None
    for token, logprob, top in list(
        zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == logprob
    ends = [len("".join(logprobs["tokens"][:count])) for count in range(len(logprobs["tokens"]))]
    assert logprobs["text_offset"] == ends


async def test_a_prompt_of_one_token(http: httpx.AsyncClient) -> None:
    (choice,) = await choices(http, prompt=[70], echo=True, logprobs=0, max_tokens=1)
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25]
    assert choice["logprobs"]["top_logprobs"] == [None, {"The": -0.25}]


@pytest.mark.parametrize("stream", [False, True])
async def test_no_tokens_at_all(http: httpx.AsyncClient, client: FakeClient, stream: bool) -> None:
    body = {"prompt": ["Hello", "a"], "echo": True, "logprobs": 1, "max_tokens": 0, "n": 2, "return_token_ids": True}
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = await http.post(URL, json=body | {"stream": stream} | options)
    assert response.status_code == 200, response.text
    assert {request.params.max_tokens for request in client.requests} == {1}
    num_prompt = sum(len(request.prompt) for request in client.requests)
    if stream:
        *events, last, done = parse_events(response.content)
        assert done == "[DONE]"
        usage, parts = last["usage"], [event["choices"][0] for event in events]
    else:
        usage, parts = response.json()["usage"], response.json()["choices"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (num_prompt, 0)
    assert usage["total_tokens"] == num_prompt
    for index, text in enumerate(["Hello", "Hello", "a", "a"]):
        own = [part for part in parts if part["index"] == index]
        assert "".join(part["text"] for part in own) == text
        assert [token for part in own for token in part["logprobs"]["tokens"]] == [
            client.tokenizer.piece(token).decode() for token in client.tokenizer.encode(text)
        ]
        assert [token for part in own for token in part.get("token_ids", [])] == []
        assert (own[-1]["finish_reason"], own[-1]["stop_reason"], own[-1]["matched_stop"]) == ("length", None, None)


async def test_no_tokens_without_the_prompt_are_refused(http: httpx.AsyncClient) -> None:
    response = await http.post(URL, json={"prompt": "a", "max_tokens": 0})
    assert response.status_code == 400
    assert "at least 1" in response.json()["error"]["message"]


async def test_what_the_tokenizer_adds_has_no_text(
    http: httpx.AsyncClient, client: FakeClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding = tiny_tokenizer()
    (begin,) = adding.encode(END)
    adding._backend.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, begin)])
    monkeypatch.setattr(tokenizer, "encode", adding.encode)
    (choice,) = await choices(http, prompt=f"a{TURN_END}b", echo=True, logprobs=0, max_tokens=1)
    assert choice["text"] == f"a{TURN_END}bThe"
    assert choice["logprobs"]["tokens"] == [END, "a", TURN_END, "b", "The"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1 + len(TURN_END), 2 + len(TURN_END)]


async def test_hidden_tokens_of_a_prompt_of_ids_have_no_width(http: httpx.AsyncClient, client: FakeClient) -> None:
    ids = client.tokenizer.encode(f"a{TURN_END}b")
    (choice,) = await choices(http, prompt=ids, echo=True, logprobs=0, max_tokens=1)
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("abThe", [0, 1, 1, 2])


async def test_more_alternatives_for_one_than_for_the_other(http: httpx.AsyncClient, client: FakeClient) -> None:
    (choice,) = await choices(http, prompt=[70, 71, 72], echo=True, logprobs=1, prompt_logprobs=3, max_tokens=1)
    assert client.requests[-1].params.prompt_logprobs == 3
    assert client.requests[-1].params.logprobs == 1
    assert [len(top or {}) for top in choice["logprobs"]["top_logprobs"]] == [0, 2, 2, 1]
    assert [len(entry or {}) for entry in choice["prompt_logprobs"]] == [0, 3, 3]
