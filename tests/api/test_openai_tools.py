"""The `openai` package's tool calls and reasoning against the application, in process."""

import json
from collections.abc import AsyncIterator

import httpx
import msgspec
import openai
import pydantic
import pytest
from starlette.applications import Starlette

from api.model import ServedModel
from api.parsers.forms import REASONING_FORMS, TOOL_FORMS, OutputForms
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio
MESSAGES = [{"role": "user", "content": "How warm is it in Paris?"}]
ARGS = '{"city": "Paris", "days": 2}'
CALL = f'<tool_call>\n{{"name": "Weather", "arguments": {ARGS}}}\n</tool_call>'


class Weather(pydantic.BaseModel):
    """Tells the weather."""

    city: str
    days: int


TOOL = openai.pydantic_function_tool(Weather)


@pytest.fixture
def model(model: ServedModel) -> ServedModel:
    forms = OutputForms(tools=TOOL_FORMS["hermes"], reasoning=REASONING_FORMS["think"])
    return msgspec.structs.replace(model, forms=forms, max_context_tokens=1000)


@pytest.fixture
async def sdk(app: Starlette, anyio_backend: str) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport) as http:
        yield openai.AsyncOpenAI(base_url="http://test/v1", api_key="any", max_retries=0, http_client=http)


async def test_a_round_trip(sdk: openai.AsyncOpenAI, client: FakeClient) -> None:
    client.texts = (f"<think>I look.</think>\n{CALL}",)
    first = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, tools=[TOOL])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.reasoning_content == "I look."
    assert first.usage.completion_tokens_details.reasoning_tokens > 0
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Paris", "days": 2}
    client.texts = ("It is 20.",)
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "20"}
    turns = [*MESSAGES, message.model_dump(exclude_none=True), result]
    second = await sdk.chat.completions.create(model="tiny", messages=turns, tools=[TOOL])
    assert second.choices[0].message.content == "It is 20."
    prompt = b"".join(map(client.tokenizer.piece, client.requests[-1].prompt)).decode()
    assert "(Weather " in prompt
    assert "tool\n20" in prompt


async def test_parsing_with_a_pydantic_tool(sdk: openai.AsyncOpenAI, client: FakeClient) -> None:
    client.texts = (CALL,)
    answer = await sdk.chat.completions.parse(model="tiny", messages=MESSAGES, tools=[TOOL])
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Paris", days=2)
    assert client.requests[0].params.constraint is not None, "the package makes its tools strict"


async def test_the_stream_helper(sdk: openai.AsyncOpenAI, client: FakeClient) -> None:
    client.texts = (f"I look.\n{CALL}\n{CALL}",)
    deltas, done = [], []
    async with sdk.chat.completions.stream(model="tiny", messages=MESSAGES, tools=[TOOL]) as stream:
        async for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                deltas.append((event.index, event.arguments_delta))
            elif event.type == "tool_calls.function.arguments.done":
                done.append((event.index, event.name, event.parsed_arguments))
        final = await stream.get_final_completion()
    assert done == [(index, "Weather", Weather(city="Paris", days=2)) for index in range(2)]
    assert "".join(text for index, text in deltas if index == 1) == ARGS
    message = final.choices[0].message
    assert message.content == "I look."
    assert [call.function.arguments for call in message.tool_calls] == [ARGS, ARGS]
    assert final.choices[0].finish_reason == "tool_calls"


async def test_a_stream_adds_up_to_the_whole_answer(sdk: openai.AsyncOpenAI, client: FakeClient) -> None:
    client.texts = (f"<think>Hm.</think>{CALL}", "<think>Hm.</think> 5", CALL)
    shape = {"model": "tiny", "messages": MESSAGES, "tools": [TOOL], "n": 3}
    whole = await sdk.chat.completions.create(**shape)
    async with sdk.chat.completions.stream(**shape) as stream:
        final = await stream.get_final_completion()
    for one, other in zip(whole.choices, final.choices, strict=True):
        assert (one.message.content or None, one.finish_reason) == (other.message.content, other.finish_reason)
        assert [call.function.arguments for call in one.message.tool_calls or []] == [
            call.function.arguments for call in other.message.tool_calls or []
        ]
    assert final.choices[0].message.reasoning_content == "Hm."
