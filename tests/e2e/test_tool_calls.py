"""Forced tool calls of the served demo model, which has never seen a tool: every call fits its schema.

A prompt that lists tools confuses it, so its thoughts are kept short.
"""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.e2e.server import server_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WORD = {"type": "string", "maxLength": 12}
NUMBER = {"type": "integer", "minimum": -999, "maximum": 999}
KIND = {"enum": ["low", "mid", "high"]}


def closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


SCHEMAS = [
    closed(),
    closed(a=NUMBER),
    closed(a=NUMBER, b=NUMBER),
    closed(word=WORD),
    closed(word=WORD, kind=KIND),
    closed(flag={"type": "boolean"}),
    closed(nothing={"type": "null"}),
    closed(maybe={"anyOf": [NUMBER, {"type": "null"}]}),
    closed(["a"], a=NUMBER, b=NUMBER),
    closed([], a=NUMBER, word=WORD),
    closed(list={"type": "array", "items": NUMBER, "minItems": 1, "maxItems": 3}),
    closed(list={"type": "array", "items": KIND, "maxItems": 2}),
    closed(pair={"type": "array", "prefixItems": [NUMBER, WORD], "items": False, "minItems": 2}),
    closed(inner=closed(a=NUMBER)),
    closed(inner=closed(deep=closed(kind=KIND))),
    closed(list={"type": "array", "items": closed(a=NUMBER), "minItems": 1, "maxItems": 2}),
    closed(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    closed(day={"type": "string", "format": "date"}),
    closed(fixed={"const": 'a "quoted" word'}),
    {"$defs": {"p": closed(x=NUMBER)}, **closed(p={"$ref": "#/$defs/p"})},
]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with server_process("--max-running-requests", "8", "--topology", "prefill=1,decode=1") as server:
        server.wait_until_serving()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
            yield made


def test_forced_calls_fit_their_schemas(client: openai.OpenAI) -> None:
    tools = [
        {"type": "function", "function": {"name": f"tool_{index}", "parameters": schema}}
        for index, schema in enumerate(SCHEMAS)
    ]
    for index, tool in enumerate(tools):
        answer = client.chat.completions.create(
            model="runtime-demo", messages=[{"role": "user", "content": "What is 37 + 58?"}], tools=[tool], seed=index,
            tool_choice={"type": "function", "function": {"name": f"tool_{index}"}}, temperature=0.8, max_tokens=300,
            extra_body={"thinking_token_budget": 24},
        )  # fmt: skip
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls", choice
        (call,) = choice.message.tool_calls
        assert (call.function.name, choice.message.content) == (f"tool_{index}", None)
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[index])


def test_a_streamed_answer_of_any_of_several_tools(client: openai.OpenAI) -> None:
    schemas = {"add": SCHEMAS[2], "say": SCHEMAS[3]}
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in schemas.items()]
    shape = {
        "model": "runtime-demo", "messages": [{"role": "user", "content": "Compute 12*7"}], "tools": tools, "seed": 5,
        "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 300,
        "extra_body": {"thinking_token_budget": 24},
    }  # fmt: skip
    with client.chat.completions.stream(**shape) as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = client.chat.completions.create(**shape).choices[0]
    for choice in (streamed, whole):
        (call,) = choice.message.tool_calls
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
        assert choice.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.arguments == whole.message.tool_calls[0].function.arguments
    assert streamed.message.reasoning_content == whole.message.reasoning_content
