import threading

import httpx
import pytest

from runtime.tokens import Tokenizer
from tests.api.fake_client import FakeClient, failed
from tests.runtime.tiny_tokenizer import metaspace_tokenizer

pytestmark = pytest.mark.anyio
URL = "/v1/completions"


async def test_the_whole_answer(http: httpx.AsyncClient, client: FakeClient, tokenizer: Tokenizer) -> None:
    answer = (await http.post(URL, json={"model": "tiny", "prompt": "Hello there", "max_tokens": 50})).json()
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": client.texts[0],
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "matched_stop": None,
        }
    ]
    assert list(client.requests[0].prompt) == tokenizer.encode("Hello there")
    assert answer["usage"]["prompt_tokens"] == len(client.requests[0].prompt)


@pytest.mark.parametrize("tokenizer", [metaspace_tokenizer()])
async def test_a_sentencepiece_answer_keeps_the_space_before_its_first_word(
    http: httpx.AsyncClient, client: FakeClient
) -> None:
    """These decoders strip the space of a first token: an answer is none, it goes on behind its prompt."""
    client.texts = ("a c",)
    body = {"prompt": ["b", "\u00e9 a"], "max_tokens": 50, "echo": True, "logprobs": 0, "ignore_eos": True}
    first, second = (await http.post(URL, json=body)).json()["choices"]
    assert (first["text"], second["text"]) == ("b a c", "\u00e9 a a c")
    assert first["logprobs"]["text_offset"][-4:] == [1, 2, 3, 4]


async def test_sixteen_tokens_unless_told(http: httpx.AsyncClient, client: FakeClient) -> None:
    await http.post(URL, json={"prompt": "Hello"})
    assert client.requests[0].params.max_tokens == 16
    await http.post(URL, json={"prompt": [1] * 250})
    assert client.requests[1].params.max_tokens == 6


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([5, 6, 7], [(5, 6, 7)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
        (["a", "b"], [(64 + 1,), (64 + 2,)]),
    ],
)
async def test_prompt_forms(
    http: httpx.AsyncClient, client: FakeClient, prompt: list[object], expected: list[tuple[int, ...]]
) -> None:
    await http.post(URL, json={"prompt": prompt})
    if isinstance(prompt[0], str):
        expected = [tuple(client.tokenizer.encode(str(text))) for text in prompt]
    assert [request.prompt for request in client.requests] == expected
    assert len({request.request for request in client.requests}) == len(expected)


async def test_choices_are_numbered_prompt_by_prompt(http: httpx.AsyncClient, client: FakeClient) -> None:
    answer = (await http.post(URL, json={"prompt": ["a", "b"], "n": 3, "max_tokens": 50})).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]
    assert [choice["text"] for choice in answer["choices"]] == [*client.texts, *client.texts]
    assert answer["usage"]["prompt_tokens"] == 2


async def test_one_failing_prompt_fails_the_request(http: httpx.AsyncClient, client: FakeClient) -> None:
    async def script(request):  # type: ignore[no-untyped-def]
        if request.request.endswith("-1"):
            yield failed(request)
        async for event in client.answer(request):
            yield event

    client.script = script
    response = await http.post(URL, json={"prompt": ["a", "b", "c"]})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert len(client.ended) == 3


async def test_legacy_logprobs(http: httpx.AsyncClient, client: FakeClient) -> None:
    choice = (await http.post(URL, json={"prompt": "a", "logprobs": 2, "max_tokens": 50})).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len({len(values) for values in logprobs.values()}) == 1
    assert logprobs["text_offset"][0] == 0
    for token, offset, logprob, top in zip(
        logprobs["tokens"], logprobs["text_offset"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert token.startswith("bytes:") or choice["text"][offset:].startswith(token)
        assert top[token] == logprob


async def test_logprobs_zero_gives_the_chosen_token(http: httpx.AsyncClient) -> None:
    choice = (await http.post(URL, json={"prompt": "a", "logprobs": 0})).json()["choices"][0]
    assert all(len(top) == 1 for top in choice["logprobs"]["top_logprobs"])


async def test_best_of_equal_to_n_is_accepted(http: httpx.AsyncClient) -> None:
    assert (await http.post(URL, json={"prompt": "a", "best_of": 1})).status_code == 200


async def test_tokenizing_does_not_hold_up_the_event_loop(
    http: httpx.AsyncClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    encode = tokenizer.encode

    def watched(text: str, *, add_special_tokens: bool = False) -> list[int]:
        threads.append(threading.current_thread())
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(tokenizer, "encode", watched)
    assert (await http.post(URL, json={"prompt": "Hello"})).status_code == 200
    assert threads
    assert threads[0] is not threading.current_thread()
