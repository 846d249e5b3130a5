"""The routes that lend the tokenizer out."""

import httpx
import pytest

from runtime.tokens import Tokenizer
from tests.api.conftest import chat
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio


async def test_a_text_becomes_the_tokens_of_a_completions_prompt(
    http: httpx.AsyncClient, client: FakeClient, tokenizer: Tokenizer
) -> None:
    answer = (await http.post("/tokenize", json={"prompt": "Hello world"})).json()
    await http.post("/v1/completions", json={"prompt": "Hello world"})
    assert answer["tokens"] == list(client.requests[0].prompt)
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), 256)
    assert answer["token_strs"] is None
    plain = (await http.post("/tokenize", json={"prompt": "Hello world", "add_special_tokens": False})).json()
    assert plain["tokens"] == tokenizer.encode("Hello world")


async def test_messages_become_the_tokens_of_a_chats_prompt(http: httpx.AsyncClient, client: FakeClient) -> None:
    answer = (await http.post("/tokenize", json=chat())).json()
    await http.post("/v1/chat/completions", json=chat())
    assert answer["tokens"] == list(client.requests[0].prompt)
    refused = await http.post("/tokenize", json=chat(add_special_tokens=True))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "add_special_tokens")


async def test_tokens_come_as_the_vocabulary_spells_them_on_demand(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/tokenize", json={"prompt": "Hello world", "return_token_strs": True})).json()
    assert len(answer["token_strs"]) == answer["count"]
    assert "".join(answer["token_strs"]).replace("\u0120", " ").endswith("Hello world")


@pytest.mark.parametrize("text", ["Hello world", "\U0001f600 caf\u00e9\n\ttwo", ""])
async def test_detokenizing_gives_the_text_back(http: httpx.AsyncClient, text: str) -> None:
    body = {"prompt": text, "add_special_tokens": False}
    tokens = (await http.post("/tokenize", json=body)).json()["tokens"]
    assert (await http.post("/detokenize", json={"tokens": tokens})).json() == {"prompt": text}


async def test_special_tokens_survive(http: httpx.AsyncClient) -> None:
    info = (await http.get("/tokenizer_info")).json()
    eos = info["eos_token"]
    tokens = (await http.post("/tokenize", json={"prompt": eos, "add_special_tokens": False})).json()["tokens"]
    assert len(tokens) == 1
    assert (await http.post("/detokenize", json={"tokens": tokens})).json() == {"prompt": eos}


async def test_the_tokenizer_tells_what_a_client_without_one_needs(
    http: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    info = (await http.get("/tokenizer_info")).json()
    assert {"bos_token", "eos_token", "pad_token", "chat_template"} <= set(info)
    assert "messages" in info["chat_template"]
    assert info["max_model_len"] == 256


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "gpt-9"}, "model"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": 5}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [400]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**70]}, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "gpt-9"}, "model"),
    ],
)
async def test_bad_bodies_are_refused_by_the_field(
    http: httpx.AsyncClient, path: str, body: dict[str, object], param: str
) -> None:
    answer = await http.post(path, json=body)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/flush_cache"])
@pytest.mark.parametrize("data", [b"{", b"[1]", b"\xff", b"nul", b"[" * 100_000])
async def test_bodies_that_are_no_objects_are_refused(http: httpx.AsyncClient, path: str, data: bytes) -> None:
    answer = await http.post(path, content=data)
    assert answer.status_code == 400
