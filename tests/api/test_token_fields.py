"""Tokens in answers: ids, prompt logprobs, how tokens are named, what has stopped a choice; and prompts cut short."""

from typing import Any

import httpx
import msgspec
import pytest
from tokenizers.processors import TemplateProcessing

from api.model import ServedModel
from api.truncation import cut_tokens, resolve_cut
from api.validate import encode_prompt
from runtime.errors import RequestError
from runtime.tokens import Tokenizer
from tests.api.conftest import chat
from tests.api.exchange import parse_events
from tests.api.fake_client import FakeClient
from tests.runtime.tiny_tokenizer import END, TURN_END, tiny_tokenizer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES = {CHAT: chat(max_tokens=50), COMPLETIONS: {"prompt": [70, 71, 72], "max_tokens": 50}}
on_both = pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
served = pytest.mark.anyio


async def answer(http: httpx.AsyncClient, url: str, **fields: Any) -> Any:
    response = await http.post(url, json=BODIES[url] | fields)
    assert response.status_code == 200, response.text
    return parse_events(response.content) if fields.get("stream") else response.json()


def text_of(choice: dict[str, Any]) -> str:
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@served
async def test_prompt_logprobs_in_a_completion(http: httpx.AsyncClient, client: FakeClient) -> None:
    (choice,) = (await answer(http, COMPLETIONS, prompt_logprobs=2))["choices"]
    name = {token: client.tokenizer.piece(token).decode() for token in (70, 71, 72, 73)}
    assert choice["prompt_logprobs"] == [
        None,
        {
            "71": {"logprob": -1.0, "rank": 2, "decoded_token": name[71]},
            "72": {"logprob": 0.0, "rank": 1, "decoded_token": name[72]},
        },
        {
            "72": {"logprob": -1.0, "rank": 2, "decoded_token": name[72]},
            "73": {"logprob": 0.0, "rank": 1, "decoded_token": name[73]},
        },
    ]


@served
async def test_prompt_logprobs_of_the_prompts_own_tokens_alone(http: httpx.AsyncClient, client: FakeClient) -> None:
    (choice,) = (await answer(http, COMPLETIONS, prompt_logprobs=0))["choices"]
    name = {token: client.tokenizer.piece(token).decode() for token in (71, 72)}
    assert choice["prompt_logprobs"] == [
        None,
        {"71": {"logprob": -0.5, "rank": None, "decoded_token": name[71]}},
        {"72": {"logprob": -1.5, "rank": None, "decoded_token": name[72]}},
    ]
    assert choice["logprobs"] is None


@served
@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_tells_of_its_prompt_once(http: httpx.AsyncClient, client: FakeClient, stream: bool) -> None:
    found = await answer(http, CHAT, n=2, prompt_logprobs=1, return_token_ids=True, stream=stream)
    bodies = [event for event in found if isinstance(event, dict)] if stream else [found]
    prompt = list(client.requests[-1].prompt)
    assert [body["prompt_token_ids"] for body in bodies if "prompt_token_ids" in body] == [prompt]
    assert "prompt_token_ids" in bodies[0]
    (logprobs,) = [body["prompt_logprobs"] for body in bodies if "prompt_logprobs" in body]
    assert [next(iter(entry)) for entry in logprobs[1:]] == [str(token) for token in prompt[1:]]


@served
@pytest.mark.parametrize("value", [-1, 21])
@on_both
async def test_too_many_prompt_logprobs(http: httpx.AsyncClient, url: str, value: int) -> None:
    response = await http.post(url, json=BODIES[url] | {"prompt_logprobs": value})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"prompt_logprobs: must be between 0 and 20, got {value}"


@served
@on_both
async def test_token_ids(http: httpx.AsyncClient, client: FakeClient, url: str) -> None:
    found = (await answer(http, url, n=2, return_token_ids=True))["choices"]
    assert [choice["token_ids"] for choice in found] == [client.tokenizer.encode(text) for text in client.texts[:2]]
    if url == COMPLETIONS:
        assert [choice["prompt_token_ids"] for choice in found] == [[70, 71, 72]] * 2


@served
async def test_tokens_named_by_id(http: httpx.AsyncClient, client: FakeClient) -> None:
    fields = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    (choice,) = (await answer(http, COMPLETIONS, logprobs=2, echo=True, **fields))["choices"]
    names = [f"token_id:{token}" for token in (70, 71, 72, *choice["token_ids"])]
    assert choice["logprobs"]["tokens"] == names
    assert [name in top for name, top in zip(names, choice["logprobs"]["top_logprobs"], strict=True) if top] == [
        True
    ] * (len(names) - 1)
    (choice,) = (await answer(http, CHAT, logprobs=True, top_logprobs=1, **fields))["choices"]
    for token, entry in zip(choice["token_ids"], choice["logprobs"]["content"], strict=True):
        assert entry["token"] == entry["top_logprobs"][0]["token"] == f"token_id:{token}"
        assert bytes(entry["bytes"]) == client.tokenizer.piece(token)


@served
@on_both
async def test_what_has_stopped_a_choice(http: httpx.AsyncClient, client: FakeClient, url: str) -> None:
    (answer_token,) = client.tokenizer.encode(" answer")
    (choice,) = (await answer(http, url, stop_token_ids=[answer_token]))["choices"]
    assert (choice["finish_reason"], choice["stop_reason"], choice["matched_stop"]) == (
        "stop", answer_token, answer_token,
    )  # fmt: skip
    assert text_of(choice) == "The"
    (choice,) = (await answer(http, url, stop_token_ids=[answer_token], include_stop_str_in_output=True))["choices"]
    assert (text_of(choice), choice["stop_reason"]) == ("The answer", answer_token)


@served
@on_both
async def test_the_models_own_end(http: httpx.AsyncClient, client: FakeClient, url: str) -> None:
    client.texts = (f"Hello{TURN_END}",)
    (end,) = client.tokenizer.encode(TURN_END)
    (choice,) = (await answer(http, url))["choices"]
    assert (choice["finish_reason"], choice["stop_reason"], choice["matched_stop"]) == ("stop", None, end)
    shown = {"include_stop_str_in_output": True, "skip_special_tokens": False}
    (choice,) = (await answer(http, url, **shown))["choices"]
    assert text_of(choice) == f"Hello{TURN_END}"
    for fields in ({"skip_special_tokens": False}, {"include_stop_str_in_output": True}):
        (choice,) = (await answer(http, url, **fields))["choices"]
        assert text_of(choice) == "Hello"


@served
@on_both
async def test_special_tokens_that_end_nothing(http: httpx.AsyncClient, client: FakeClient, url: str) -> None:
    client.texts = (f"a{TURN_END}b",)
    (choice,) = (await answer(http, url, ignore_eos=True))["choices"]
    assert text_of(choice) == "ab"
    (choice,) = (await answer(http, url, ignore_eos=True, skip_special_tokens=False))["choices"]
    assert text_of(choice) == f"a{TURN_END}b"
    (choice,) = (
        await answer(http, url, ignore_eos=True, skip_special_tokens=False, spaces_between_special_tokens=False)
    )["choices"]
    assert text_of(choice) == f"a{TURN_END}b"


@served
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"allowed_token_ids": []}, "the list is empty"),
        ({"allowed_token_ids": [400]}, "token id 400 is not in the vocabulary of 400"),
        ({"allowed_token_ids": [-1]}, "token id -1"),
        ({"allowed_token_ids": [70], "stop_token_ids": [70], "min_tokens": 1}, "min_tokens excludes all of them"),
        ({"priority": 2**31}, "priority: must be between"),
        ({"priority": 1.5}, "priority: expected integer"),
        ({"timeout_s": 0}, "timeout_s: must be above 0"),
        ({"timeout_s": -1}, "timeout_s: must be above 0"),
        ({"timeout_s": 1e9}, "at most 86400"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: must be -1 or between 1 and 256, got 0"),
        ({"truncate_prompt_tokens": -2}, "got -2"),
        ({"truncate_prompt_tokens": 257}, "got 257"),
        ({"include_stop_str_in_output": "yes"}, "include_stop_str_in_output: expected boolean"),
        ({"return_token_ids": 1}, "return_token_ids: expected boolean"),
    ],
)
@on_both
async def test_refusals(http: httpx.AsyncClient, url: str, fields: dict[str, Any], words: str) -> None:
    response = await http.post(url, json=BODIES[url] | fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(fields))
    assert words in response.json()["error"]["message"]


@served
@on_both
async def test_what_may_end_the_text_may_be_all_that_is_allowed(http: httpx.AsyncClient, url: str) -> None:
    await answer(http, url, allowed_token_ids=[70], stop_token_ids=[70])
    await answer(http, url, allowed_token_ids=[70, 71], stop_token_ids=[70], min_tokens=1)


@served
async def test_prompts_are_cut_from_the_left(http: httpx.AsyncClient, client: FakeClient) -> None:
    await answer(http, COMPLETIONS, prompt=[[1, 2, 3, 4], [5]], truncate_prompt_tokens=2)
    assert sorted(request.prompt for request in client.requests) == [(3, 4), (5,)]
    whole = client.tokenizer.encode("What is 37 + 58?")
    (choice,) = (
        await answer(http, COMPLETIONS, prompt="What is 37 + 58?", truncate_prompt_tokens=3, echo=True, max_tokens=1)
    )["choices"]
    assert client.requests[-1].prompt == tuple(whole[-3:])
    assert choice["text"] == client.tokenizer.decode(whole[-3:]) + "The"
    await answer(http, CHAT)
    await answer(http, CHAT, truncate_prompt_tokens=5)
    assert client.requests[-1].prompt == client.requests[-2].prompt[-5:]


@served
async def test_a_cut_to_the_context_leaves_room_for_the_answer(http: httpx.AsyncClient, client: FakeClient) -> None:
    ids = [70 + number % 200 for number in range(300)]
    for max_tokens, kept in ((None, 255), (1, 255), (56, 200), (1000, 1)):
        fields = {"prompt": ids, "truncate_prompt_tokens": -1, "max_tokens": max_tokens}
        response = await http.post(COMPLETIONS, json=fields)
        if max_tokens == 1000:
            assert response.json()["error"]["param"] == "max_tokens"
        else:
            assert client.requests[-1].prompt == tuple(ids[-kept:])
    await answer(http, CHAT, messages=[{"role": "user", "content": "x" * 100_000}], truncate_prompt_tokens=-1)
    assert len(client.requests[-1].prompt) == 256 - 50


def test_a_huge_text_is_cut_before_it_is_encoded(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = Tokenizer.encode

    def watched(self: Tokenizer, text: str, **kwargs: bool) -> list[int]:
        sizes.append(len(text))
        return encode(self, text, **kwargs)

    monkeypatch.setattr(Tokenizer, "encode", watched)
    prompt = encode_prompt("prompt", "a" * 1_000_000 + "b" * 10, model, cut=10)
    assert list(prompt.tokens) == encode(model.tokenizer, "b" * 10)
    assert prompt.text is None
    assert sizes == [256 * model.tokenizer.longest_token_bytes]


def test_what_the_tokenizer_adds_is_kept(model: ServedModel) -> None:
    tokenizer = tiny_tokenizer()
    (begin,) = tokenizer.encode(END)
    tokenizer._backend.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, begin)])
    adding = msgspec.structs.replace(model, tokenizer=tokenizer)
    prompt = encode_prompt("prompt", "abc", adding, add_special_tokens=True, cut=2)
    assert list(prompt.tokens) == [begin, *tokenizer.encode("c")]
    assert list(encode_prompt("prompt", "abc", adding, add_special_tokens=True, cut=1).tokens) == tokenizer.encode("c")
    assert encode_prompt("prompt", "abc", adding, add_special_tokens=True, cut=4).text == "abc"


@pytest.mark.parametrize(
    ("cut", "num_fixed", "expected"),
    [(None, 0, [1, 2, 3]), (3, 1, [1, 2, 3]), (2, 0, [2, 3]), (2, 1, [1, 3]), (1, 1, [3]), (2, 2, [2, 3])],
)
def test_cuts(cut: int | None, num_fixed: int, expected: list[int]) -> None:
    assert list(cut_tokens([1, 2, 3], cut, num_fixed)) == expected


def test_a_cut_beyond_the_pool_is_refused(model: ServedModel) -> None:
    assert resolve_cut(None, 5, model) is None
    assert resolve_cut(-1, 10**9, model) == 1
    with pytest.raises(RequestError, match="between 1 and 256"):
        resolve_cut(10**30, None, model)
