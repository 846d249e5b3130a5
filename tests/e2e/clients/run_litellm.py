"""litellm: a tool-calling round trip, whole, streamed and async. Needs litellm."""

import argparse
import asyncio
import json
import os
import sys
from importlib.metadata import version
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import litellm

SMALL = {"type": "integer", "minimum": 0, "maximum": 999}
"""The demo model cannot call functions: what neither its grammar nor a penalty bounds would not end."""
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two whole numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": SMALL, "b": SMALL},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}
QUESTION = [{"role": "user", "content": "What is 37 + 58?"}]


def round_trip(common: dict[str, Any]) -> None:
    """The forced call is valid and its result goes back into the conversation."""
    answer = litellm.completion(messages=QUESTION, tools=[TOOL], tool_choice="required", **common)
    message = answer.choices[0].message
    (call,) = message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "add", call
    assert answer.choices[0].finish_reason == "tool_calls", answer
    result = {"role": "tool", "tool_call_id": call.id, "content": str(arguments["a"] + arguments["b"])}
    messages = [*QUESTION, message.model_dump(exclude_none=True), result]
    last = litellm.completion(messages=messages, tools=[TOOL], tool_choice="none", **common)
    assert last.choices[0].message.content, last
    assert last.usage.completion_tokens > 0


def streamed(common: dict[str, Any]) -> None:
    """A call in pieces is a whole call; a text in pieces is the whole text."""
    chunks = list(litellm.completion(messages=QUESTION, tools=[TOOL], tool_choice="required", stream=True, **common))
    built = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    (call,) = built.choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"a", "b"}
    whole = litellm.completion(messages=QUESTION, **common).choices[0].message.content
    pieces = litellm.completion(messages=QUESTION, stream=True, **common)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole


def asynchronous(common: dict[str, Any]) -> None:
    """The async client gets the same answer."""
    whole = litellm.completion(messages=QUESTION, **common).choices[0].message.content
    answer = asyncio.run(litellm.acompletion(messages=QUESTION, **common))
    assert answer.choices[0].message.content == whole


def main() -> int:
    """Runs all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    url = parser.parse_args().url
    sys.stdout.write(f"litellm {version('litellm')}\n")
    common = {
        "model": "openai/runtime-demo", "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "num_retries": 0,
        "max_tokens": 400, "frequency_penalty": 2, "extra_body": {"thinking_token_budget": 40},
    }  # fmt: skip
    for step in (round_trip, streamed, asynchronous):
        step(common)
        sys.stdout.write(f"{step.__name__}: right\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
