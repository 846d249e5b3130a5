"""`/v1/responses` on a served demo model: the same answers as chat's, with and without their client."""

import time
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.server import ServerProcess, server_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ASK = {"model": "runtime-demo", "input": "What is 37 + 58?", "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process("--max-running-requests", "4", "--topology", "prefill=1,decode=1") as process:
        process.wait_until_serving()
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_the_answer_is_chats(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": ASK["input"]}]
    chat = client.chat.completions.create(model="runtime-demo", messages=messages, temperature=0)
    answer = client.responses.create(**ASK)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text == chat.choices[0].message.reasoning_content
    assert answer.output_text == chat.choices[0].message.content
    assert "\\boxed{95}" in answer.output_text
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    details = chat.usage.completion_tokens_details
    assert answer.usage.output_tokens_details.reasoning_tokens == details.reasoning_tokens
    with client.responses.stream(**ASK) as stream:
        assert stream.get_final_response().output_text == answer.output_text


def test_a_conversation_renders_as_chats(client: openai.OpenAI) -> None:
    first = client.responses.create(**ASK)
    second = client.responses.create(**ASK | {"input": "5 + 6"}, previous_response_id=first.id)
    messages = [
        {"role": "user", "content": ASK["input"]},
        {
            "role": "assistant",
            "content": first.output_text,
            "reasoning_content": first.output[0].content[0].text,
        },
        {"role": "user", "content": "5 + 6"},
    ]
    chat = client.chat.completions.create(model="runtime-demo", messages=messages, temperature=0)
    assert second.usage.input_tokens == chat.usage.prompt_tokens > first.usage.input_tokens
    assert second.output_text == chat.choices[0].message.content


def test_in_the_background(client: openai.OpenAI) -> None:
    whole = client.responses.create(**ASK)
    begun = client.responses.create(**ASK, background=True)
    assert until_over(client, begun.id).output_text == whole.output_text
    with client.responses.create(**ASK, background=True, stream=True) as stream:
        left = next(iter(stream)).response
    assert until_over(client, left.id).output_text == whole.output_text, "it goes on when its client has left"


def test_a_background_response_is_cancelled(client: openai.OpenAI, server: ServerProcess) -> None:
    endless = ASK | {"extra_body": {"ignore_eos": True}}
    begun = client.responses.create(**endless, background=True)
    cancelled = client.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    assert client.responses.retrieve(begun.id).status == "cancelled"
    assert client.responses.create(**ASK).status == "completed"


def until_over(client: openai.OpenAI, response_id: str) -> openai.types.responses.Response:
    limit = time.monotonic() + 120
    while (found := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < limit
    return found
