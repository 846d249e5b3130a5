"""What `/v1/responses` refuses: a 4xx that names the field, as this endpoint spells it."""

import json
from typing import Any

import httpx
import pytest

from tests.api.fake_client import FakeClient
from tests.api.test_responses import URL, ask

pytestmark = pytest.mark.anyio

CALL = {"type": "function_call", "call_id": "1", "name": "add", "arguments": "{}"}
USER = {"role": "user", "content": "a"}
TOOL = {"type": "function", "name": "add", "parameters": {}}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": ["a"]}, "input[0]"),
    ({"input": [{"content": "a"}]}, "input[0].role"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
    ({"input": [{"role": ["user"], "content": "a"}]}, "input[0].role"),
    ({"input": [USER, {"role": "user"}]}, "input[1].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"role": "user", "content": [{"text": "a"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": ["a"]}]}, "input[0].content[0]"),
    ({"input": [USER, {"type": "web_search_call", "id": "1"}]}, "input[1].type"),
    ({"input": [{"type": "item_reference"}]}, "input[0].id"),
    ({"input": [{"type": 7}]}, "input[0].type"),
    ({"input": [{key: value for key, value in CALL.items() if key != "name"}]}, "input[0].name"),
    ({"input": [CALL | {"arguments": {}}]}, "input[0].arguments"),
    ({"input": [CALL, {"type": "function_call_output", "call_id": "2", "output": "x"}]}, "input[1].call_id"),
    ({"input": [CALL, {"type": "function_call_output", "call_id": "1"}]}, "input[1].output"),
    ({"input": [{"type": "reasoning", "id": "1", "summary": [], "encrypted_content": "x"}]},
     "input[0].encrypted_content"),
    ({"input": [{"type": "reasoning", "id": "1", "content": [{"type": "x", "text": "a"}]}]},
     "input[0].content[0].type"),
    ({"input": [USER, {"role": "system", "content": "late"}]}, "input"),
    ({"input": [USER | {"id": 7}]}, "input[0].id"),
    ({"previous_response_id": 7}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"background_options": {"completion_window": "2h"}}, "background_options"),
    ({"messages": [USER]}, "messages"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"prompt_logprobs": 0}, "prompt_logprobs"),
    ({"return_token_ids": True}, "return_token_ids"),
    ({"logprobs": True}, "logprobs"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"functions": [TOOL]}, "functions"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"add_generation_prompt": True}, "add_generation_prompt"),
    ({"echo": True}, "echo"),
    ({"n": 2}, "n"),
    ({"n": 0}, "n"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 100_000}, "max_output_tokens"),
    ({"max_output_tokens": 2**70}, "max_output_tokens"),
    ({"max_output_tokens": "many"}, "max_output_tokens"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"include": ["file_search_call.results"]}, "include"),
    ({"include": "message.output_text.logprobs"}, "include"),
    ({"truncation": "middle"}, "truncation"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: ""}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata"),
    ({"user": "u" * 513}, "user"),
    ({"background": True, "store": False}, "background"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
    ({"reasoning": "high"}, "reasoning"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, "text.format"),
    ({"text": {"format": {}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "a", "schema": True}}}, "text.format.schema"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [TOOL, {"type": "mcp", "server_label": "a"}]}, "tools[1].type"),
    ({"tools": [{"type": "function", "parameters": {}}]}, "tools[0]"),
    ({"tools": [{"type": "function", "name": ["add"]}]}, "tools[0]"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function",
      "name": "other"}]}}, "tool_choice.tools[0]"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": [TOOL]}}, "tool_choice.mode"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: json.dumps(value)[:60])
async def test_refused_by_name(http: httpx.AsyncClient, client: FakeClient, fields: dict[str, Any], param: str) -> None:
    answer = await http.post(URL, json=ask() | fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    named = error["param"]
    assert named == param or named.startswith((f"{param}.", f"{param}["))
    assert named in error["message"]
    assert client.requests == []


async def test_an_unknown_model(http: httpx.AsyncClient) -> None:
    answer = await http.post(URL, json=ask(model="other"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {}])
async def test_a_reference_to_nothing(http: httpx.AsyncClient, kind: dict[str, str]) -> None:
    answer = await http.post(URL, json={"input": [kind | {"id": "msg_1"}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "input[0].id")


async def test_a_long_instruction_is_called_input(http: httpx.AsyncClient) -> None:
    answer = await http.post(URL, json=ask(instructions="hello " * 300))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert answer.json()["error"]["param"] == "input"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("stream=maybe", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&starting_after=x", "starting_after"),
        ("stream=true&include_obfuscation=true", "include_obfuscation"),
        ("include[]=message.output_text.logprobs", "include"),
        ("stream=true", "stream"),
    ],
)
async def test_retrieving(http: httpx.AsyncClient, query: str, param: str) -> None:
    done = (await http.post(URL, json=ask())).json()
    answer = await http.get(f"{URL}/{done['id']}?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("include=x", "include"),
    ],
)
async def test_listing(http: httpx.AsyncClient, query: str, param: str) -> None:
    done = (await http.post(URL, json=ask())).json()
    answer = await http.get(f"{URL}/{done['id']}/input_items?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", ["", "/cancel", "/input_items", "?stream=true"])
async def test_unknown_ids(http: httpx.AsyncClient, path: str) -> None:
    method = "POST" if path == "/cancel" else "GET"
    answer = await http.request(method, f"{URL}/resp_none{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
