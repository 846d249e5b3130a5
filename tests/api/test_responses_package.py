"""The `openai` package's own ways through `/v1/responses`, sync and async, on a real socket."""

import anyio
import openai
import pydantic
import pytest
from openai.types.responses import ResponseFunctionToolCall

from tests.api.fake_client import FakeClient, nothing
from tests.api.response_events import check_fields
from tests.api.test_openai_package import async_client, sync_client, url
from tests.api.test_responses_stream import scripted

__all__ = ["async_client", "scripted", "sync_client", "url"]

ASK = "What is 37 + 58?"
TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}


class Sum(pydantic.BaseModel):
    value: int


def test_create(sync_client: openai.OpenAI, client: FakeClient) -> None:
    answer = sync_client.responses.create(
        model="tiny", input=ASK, instructions="Be brief.", temperature=0, top_logprobs=2,
        include=["message.output_text.logprobs"], extra_body={"seed": 5, "top_k": 3, "stop": ["95"], "min_p": 0.1},
    )  # fmt: skip
    check_fields(answer)
    assert client.texts[0].startswith(answer.output_text)
    assert "95" not in answer.output_text
    assert answer.output[0].content[0].logprobs[0].top_logprobs
    request = client.requests[0]
    assert (request.params.seed, request.params.top_k, request.params.min_p) == (5, 3, 0.1)
    assert request.text.stop == ("95",)
    assert answer._request_id


def test_the_stream_helper(sync_client: openai.OpenAI, client: FakeClient) -> None:
    with sync_client.responses.stream(model="tiny", input=ASK) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == client.texts[0]
    assert final.output_text == client.texts[0]
    assert final.usage.total_tokens > 0


def test_raw_events(sync_client: openai.OpenAI) -> None:
    events = list(sync_client.responses.create(model="tiny", input=ASK, stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    for event in events:
        check_fields(event)


@pytest.mark.usefixtures("scripted")
def test_a_tool_call_round_trip(sync_client: openai.OpenAI, client: FakeClient) -> None:
    client.texts = ('r:hm|b:add|a:{"a": 37}|',)
    with sync_client.responses.stream(model="tiny", input=ASK, tools=[TOOL]) as stream:
        first = stream.get_final_response()
    call = first.output[1]
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, call.arguments) == ("add", '{"a": 37}')
    client.texts = ("c:The answer is 95.|",)
    items = [
        {"role": "user", "content": ASK},
        *(item.model_dump(exclude={"parsed_arguments"}) for item in first.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "95"},
    ]
    second = sync_client.responses.create(model="tiny", input=items, tools=[TOOL])
    assert second.output_text == "The answer is 95."


@pytest.mark.usefixtures("scripted")
def test_parsed_tool_arguments(sync_client: openai.OpenAI, client: FakeClient) -> None:
    client.texts = ('b:Sum|a:{"value": 95}|',)
    answer = sync_client.responses.parse(model="tiny", input=ASK, tools=[openai.pydantic_function_tool(Sum)])
    assert answer.output[0].parsed_arguments == Sum(value=95)


def test_a_parsed_text(sync_client: openai.OpenAI, client: FakeClient) -> None:
    client.texts = ('{"value": 95}',)
    answer = sync_client.responses.parse(model="tiny", input=ASK, text_format=Sum)
    assert answer.output_parsed == Sum(value=95)
    constraint = client.requests[0].params.constraint
    assert constraint is not None
    assert constraint.grammar is not None
    with sync_client.responses.stream(model="tiny", input=ASK, text_format=Sum) as stream:
        assert stream.get_final_response().output_parsed == Sum(value=95)


def test_retrieve_list_and_delete(sync_client: openai.OpenAI) -> None:
    done = sync_client.responses.create(model="tiny", input=ASK)
    again = sync_client.responses.retrieve(done.id)
    assert again.to_dict() == done.to_dict()
    items = sync_client.responses.input_items.list(done.id)
    assert [item.content[0].text for item in items] == [ASK]
    for item in items:
        check_fields(item)
    sync_client.responses.delete(done.id)
    with pytest.raises(openai.NotFoundError, match="no response"):
        sync_client.responses.retrieve(done.id)


def test_all_pages_of_items(sync_client: openai.OpenAI) -> None:
    many = [{"role": "user", "content": str(number)} for number in range(7)]
    done = sync_client.responses.create(model="tiny", input=many)
    items = sync_client.responses.input_items.list(done.id, limit=3, order="asc")
    assert [item.content[0].text for item in items] == [str(number) for number in range(7)]


def test_a_conversation(sync_client: openai.OpenAI, client: FakeClient) -> None:
    first = sync_client.responses.create(model="tiny", input="Hello")
    second = sync_client.responses.create(model="tiny", input="More", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert len(client.requests[1].prompt) > len(client.requests[0].prompt)


def test_background(sync_client: openai.OpenAI, client: FakeClient) -> None:
    client.script = nothing
    begun = sync_client.responses.create(model="tiny", input=ASK, background=True)
    assert begun.status in ("queued", "in_progress")
    assert sync_client.responses.cancel(begun.id).status == "cancelled"
    assert sync_client.responses.retrieve(begun.id).status == "cancelled"


def test_a_background_stream_is_taken_up_again(sync_client: openai.OpenAI, client: FakeClient) -> None:
    with sync_client.responses.create(model="tiny", input=ASK, background=True, stream=True) as stream:
        events = list(stream)
    done = events[-1].response
    tail = list(sync_client.responses.retrieve(done.id, stream=True, starting_after=events[4].sequence_number))
    assert [event.to_dict() for event in tail] == [event.to_dict() for event in events[5:]]
    with sync_client.responses.stream(response_id=done.id) as stream:
        assert stream.get_final_response().output_text == client.texts[0]


def test_errors_have_their_types(sync_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sync_client.responses.create(model="tiny", input=ASK, tools=[{"type": "web_search"}])
    assert refused.value.param == "tools[0].type"


@pytest.mark.anyio
async def test_async(async_client: openai.AsyncOpenAI, client: FakeClient) -> None:
    answer = await async_client.responses.create(model="tiny", input=ASK)
    assert answer.output_text == client.texts[0]
    async with async_client.responses.stream(model="tiny", input=ASK) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds[-1] == "response.completed"
    assert final.output_text == client.texts[0]
    assert (await async_client.responses.retrieve(final.id)).output_text == client.texts[0]


@pytest.mark.anyio
async def test_async_background(async_client: openai.AsyncOpenAI, client: FakeClient) -> None:
    begun = await async_client.responses.create(model="tiny", input=ASK, background=True)
    with anyio.fail_after(5):
        while (found := await async_client.responses.retrieve(begun.id)).status != "completed":
            pass
    assert found.output_text == client.texts[0]
    assert (await async_client.responses.cancel(begun.id)).status == "completed"
