from typing import Any

import httpx
import pytest

from api.model import ServedModel
from runtime.tokens import Tokenizer
from tests.api.conftest import chat
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"


def prompt_of(client: FakeClient) -> str:
    """The prompt text as the engine got it, special tokens included."""
    return b"".join(map(client.tokenizer.piece, client.requests[-1].prompt)).decode()


async def test_the_whole_answer(http: httpx.AsyncClient, client: FakeClient) -> None:
    answer = (await http.post(URL, json=chat(model="tiny"))).json()
    num_prompt, num_tokens = len(client.requests[0].prompt), len(client.tokenizer.encode(client.texts[0]))
    assert answer["id"].startswith("chatcmpl-")
    assert isinstance(answer["created"], int)
    assert answer["system_fingerprint"]
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The answer is 95 \U0001f600.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "matched_stop": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt + num_tokens,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


async def test_the_template_makes_the_prompt(http: httpx.AsyncClient, client: FakeClient) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 7}'}}]},
        {"role": "tool", "content": "95", "tool_call_id": "1"},
    ]  # fmt: skip
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    assert (await http.post(URL, json={"messages": messages, "tools": [tool]})).status_code == 200
    assert prompt_of(client) == (
        "[add]<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
        "<|im_start|>assistant\n(add 7)<|im_end|>\n<|im_start|>tool\n95<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_tools_are_hidden_with_tool_choice_none(http: httpx.AsyncClient, client: FakeClient) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    await http.post(URL, json=chat(tools=[tool], tool_choice="none"))
    assert "[add]" not in prompt_of(client)
    await http.post(URL, json=chat(tools=[tool], tool_choice="auto"))
    assert "[add]" in prompt_of(client)


async def test_templates_that_want_arguments_as_text(
    http: httpx.AsyncClient, client: FakeClient, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages if m.tool_calls %}{{ 'x' + m.tool_calls[0].function.arguments }}{% endfor %}"
    monkeypatch.setattr(tokenizer._wrapped, "chat_template", template)
    call = {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    await http.post(URL, json={"messages": [{"role": "assistant", "tool_calls": [call]}]})
    assert prompt_of(client) == 'x{"a": 1}'


async def test_n_choices_are_one_engine_request(http: httpx.AsyncClient, client: FakeClient) -> None:
    answer = (await http.post(URL, json=chat(n=3))).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == list(client.texts)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [request.num_choices for request in client.requests] == [3]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ({"max_completion_tokens": None, "max_tokens": 8}, 8),
    ],
)
async def test_the_length_limit(
    http: httpx.AsyncClient, client: FakeClient, fields: dict[str, Any], expected: int
) -> None:
    await http.post(URL, json=chat(**fields))
    assert client.requests[0].params.max_tokens == expected


async def test_without_limit_the_rest_of_the_context_is_used(
    http: httpx.AsyncClient, client: FakeClient, model: ServedModel
) -> None:
    await http.post(URL, json=chat())
    request = client.requests[0]
    assert request.params.max_tokens == model.max_context_tokens - len(request.prompt)


async def test_finish_reason_length(http: httpx.AsyncClient) -> None:
    choice = (await http.post(URL, json=chat(max_tokens=3))).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "The answer is")


async def test_a_stop_string_ends_the_text_before_it(http: httpx.AsyncClient, client: FakeClient) -> None:
    choice = (await http.post(URL, json=chat(stop=["nope", " is"]))).json()["choices"][0]
    assert choice["message"]["content"] == "The answer"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", " is")
    assert client.requests[0].text.stop == ("nope", " is")


async def test_logprobs(http: httpx.AsyncClient, tokenizer: Tokenizer, client: FakeClient) -> None:
    body = chat(logprobs=True, top_logprobs=2)
    choice = (await http.post(URL, json=body)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["refusal"] is None
    content = logprobs["content"]
    tokens = tokenizer.encode(client.texts[0])
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == choice["message"]["content"]
    assert [bytes(entry["bytes"]) for entry in content] == [tokenizer.piece(token) for token in tokens]
    first = content[0]
    assert set(first) == {"token", "logprob", "bytes", "top_logprobs"}
    assert [entry["logprob"] for entry in first["top_logprobs"]] == [-0.25, -0.5]
    assert first["top_logprobs"][0] == {key: first[key] for key in ("token", "logprob", "bytes")}


async def test_tokens_that_are_part_of_a_character_show_their_bytes(http: httpx.AsyncClient) -> None:
    content = (await http.post(URL, json=chat(logprobs=True))).json()["choices"][0]["logprobs"]["content"]
    shown = [entry["token"] for entry in content if entry["token"].startswith("bytes:")]
    assert "bytes:\\xf0" in shown
    assert all(entry["top_logprobs"] == [] for entry in content)


async def test_harmless_extras_are_ignored(http: httpx.AsyncClient) -> None:
    extras = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s",
        "prompt_cache_key": "k", "verbosity": "low", "parallel_tool_calls": True, "never_heard_of": [1],
        "response_format": {"type": "text"}, "reasoning_effort": "low",
    }  # fmt: skip
    assert (await http.post(URL, json=chat(**extras))).status_code == 200


async def test_null_means_absent(http: httpx.AsyncClient) -> None:
    names = ["temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream", "tools", "logprobs", "model"]
    assert (await http.post(URL, json=chat(**dict.fromkeys(names)))).status_code == 200


async def test_arguments_may_hold_numbers_of_any_size(http: httpx.AsyncClient) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 10**30}}}
    body = {"messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "go on"}]}
    assert (await http.post(URL, json=body)).status_code == 200
