"""Conversations over several responses: what the model reads is what a chat of the same turns reads."""

from typing import Any

import httpx
import pytest

from tests.api.fake_client import FakeClient
from tests.api.test_responses import URL, ask, prompt_of
from tests.api.test_responses_stream import scripted

pytestmark = pytest.mark.anyio
__all__ = ["scripted"]

TOOL = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}
CHAT_TOOL = {"type": "function", "function": {key: value for key, value in TOOL.items() if key != "type"}}


async def chat_prompt(http: httpx.AsyncClient, client: FakeClient, *messages: dict[str, Any], **fields: Any) -> str:
    answer = await http.post("/v1/chat/completions", json={"messages": messages} | fields)
    assert answer.status_code == 200, answer.text
    return prompt_of(client)


async def respond(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await http.post(URL, json=fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_a_text_is_the_users_turn(http: httpx.AsyncClient, client: FakeClient) -> None:
    await respond(http, input="Hello", instructions="Be brief.")
    own = prompt_of(client)
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}
    assert own == await chat_prompt(http, client, system, user)


async def test_every_form_of_a_message(http: httpx.AsyncClient, client: FakeClient) -> None:
    await respond(
        http,
        input=[
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t} for t in ("a", "b")]},
            {"role": "assistant", "content": "c"},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
                {"type": "output_text", "text": "d", "annotations": []}, {"type": "refusal", "refusal": "e"}]},
            {"role": "user", "content": "f"},
        ],
    )  # fmt: skip
    own = prompt_of(client)
    turns = [("developer", "Be brief."), ("user", "ab"), ("assistant", "c"), ("assistant", "de"), ("user", "f")]
    assert own == await chat_prompt(http, client, *({"role": role, "content": text} for role, text in turns))


async def test_a_response_continues_another(http: httpx.AsyncClient, client: FakeClient) -> None:
    first = await respond(http, input="Hello", instructions="Be brief.")
    second = await respond(http, input="And now?", previous_response_id=first["id"])
    await respond(http, input=[{"role": "user", "content": "Go on."}], previous_response_id=second["id"],
                  instructions="Be loud.")  # fmt: skip
    own = prompt_of(client)
    said = {"role": "assistant", "content": client.texts[0]}
    assert own == await chat_prompt(
        http, client,
        {"role": "system", "content": "Be loud."},
        {"role": "user", "content": "Hello"}, said,
        {"role": "user", "content": "And now?"}, said,
        {"role": "user", "content": "Go on."},
    )  # fmt: skip


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("kept", [True, False])
async def test_calls_and_reasoning_go_back(http: httpx.AsyncClient, client: FakeClient, kept: bool) -> None:
    """By its id, or by its items: the prompt is the same."""
    client.texts = ('r:hm|c:I add.|b:add|a:{"a": 7}|b:add|a:{"a": 8}|',)
    first = await respond(http, input="Add.", tools=[TOOL], store=kept)
    calls = [item for item in first["output"] if item["type"] == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": call["call_id"], "output": str(number)}
        for number, call in enumerate(calls)
    ]
    if kept:
        await respond(http, input=results, previous_response_id=first["id"], tools=[TOOL])
    else:
        await respond(http, input=[{"role": "user", "content": "Add."}, *first["output"], *results], tools=[TOOL])
    own = prompt_of(client)
    assert "(add 7)(add 8)" in own
    assert own == await chat_prompt(
        http, client,
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "I add.", "reasoning_content": "hm", "tool_calls": [
            {"id": call["call_id"], "type": "function", "function": {"name": "add", "arguments": call["arguments"]}}
            for call in calls]},
        *({"role": "tool", "tool_call_id": result["call_id"], "content": result["output"]} for result in results),
        tools=[CHAT_TOOL],
    )  # fmt: skip


@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {}])
async def test_items_of_an_answer_by_reference(
    http: httpx.AsyncClient, client: FakeClient, kind: dict[str, str]
) -> None:
    first = await respond(http, input="Hello")
    user = {"role": "user", "content": "Hello"}
    await respond(http, input=[user, kind | {"id": first["output"][0]["id"]}, user])
    own = prompt_of(client)
    assert own == await chat_prompt(http, client, user, {"role": "assistant", "content": client.texts[0]}, user)


async def test_parts_of_a_calls_output(http: httpx.AsyncClient, client: FakeClient) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "add", "arguments": '{"a": 7}'}
    parts = [{"type": "input_text", "text": text} for text in ("9", "5")]
    output = {"type": "function_call_output", "call_id": "1", "output": parts}
    await respond(http, input=[{"role": "user", "content": "Add."}, call, output])
    assert "<|im_start|>tool\n95<|im_end|>" in prompt_of(client)


async def test_what_was_not_stored_cannot_be_continued(http: httpx.AsyncClient, client: FakeClient) -> None:
    first = await respond(http, input="Hello", store=False)
    assert first["store"] is False
    answer = await http.post(URL, json=ask(previous_response_id=first["id"]))
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("previous_response_id", "response_not_found")
    assert "dropped" in error["message"]
    assert len(client.requests) == 1


async def test_truncation_drops_the_oldest_turns(http: httpx.AsyncClient, client: FakeClient) -> None:
    turns = [{"role": "user", "content": f"{number}: {'hello ' * 8}"} for number in range(30)]
    body = {"input": turns, "instructions": "Be brief.", "max_output_tokens": 20}
    refused = await http.post(URL, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    await respond(http, truncation="auto", **body)
    own = prompt_of(client)
    kept = [number for number in range(30) if f"\n{number}: hello" in own]
    assert kept == list(range(kept[0], 30))
    one_more = await http.post(URL, json=body | {"input": turns[kept[0] - 1 :]})
    assert one_more.json()["error"]["code"] == "context_length_exceeded"
    system = {"role": "system", "content": "Be brief."}
    assert own == await chat_prompt(http, client, system, *turns[kept[0] :])


async def test_truncation_keeps_calls_with_their_outputs(http: httpx.AsyncClient, client: FakeClient) -> None:
    long = "hello " * 60
    items = [
        {"role": "user", "content": long},
        {"type": "function_call", "call_id": "1", "name": "add", "arguments": '{"a": 7}'},
        {"type": "function_call_output", "call_id": "1", "output": long},
        {"role": "user", "content": "So?"},
    ]
    await respond(http, truncation="auto", input=items, max_output_tokens=200)
    assert prompt_of(client) == "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
