"""`/v1/responses`, answered whole: the object, its fields, and what they do to the request that runs."""

from typing import Any

import httpx
import pytest

from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio
URL = "/v1/responses"


def ask(**fields: Any) -> dict[str, Any]:
    return {"input": "What is 37 + 58?"} | fields


def prompt_of(client: FakeClient) -> str:
    return b"".join(map(client.tokenizer.piece, client.requests[-1].prompt)).decode()


async def test_the_whole_answer(http: httpx.AsyncClient, client: FakeClient) -> None:
    answer = (await http.post(URL, json=ask(model="tiny", metadata={"a": "b"}, user="me"))).json()
    num_prompt, num_tokens = len(client.requests[0].prompt), len(client.tokenizer.encode(client.texts[0]))
    assert answer.pop("id") == client.requests[0].request
    assert isinstance(answer.pop("created_at"), int)
    assert isinstance(answer.pop("completed_at"), int)
    (item,) = answer.pop("output")
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": client.texts[0], "annotations": [], "logprobs": []}],
    }
    assert answer == {
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "model": "tiny",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 0.6,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 0.95,
        "truncation": "disabled",
        "usage": {
            "input_tokens": num_prompt,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": num_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_prompt + num_tokens,
        },
        "user": "me",
    }
