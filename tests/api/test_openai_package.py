"""The `openai` package against the application on a real socket."""

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import openai
import pytest
from starlette.applications import Starlette

from actors.client import ClientEvent, GenerateRequest
from tests.api.fake_client import FakeClient, failed, nothing
from tests.api.served import served

MESSAGES = [{"role": "user", "content": "What is 37 + 58?"}]


@pytest.fixture
def url(app: Starlette) -> Iterator[str]:
    with served(app) as address:
        yield f"{address}/v1"


@pytest.fixture
def sync_client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=10) as session:
        yield session


@pytest.fixture
async def async_client(url: str, anyio_backend: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0, timeout=10) as session:
        yield session


def test_chat(sync_client: openai.OpenAI, client: FakeClient) -> None:
    answer = sync_client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=2, logprobs=True, top_logprobs=2, seed=1
    )
    assert [choice.message.content for choice in answer.choices] == list(client.texts[:2])
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    assert answer.usage.prompt_tokens == len(client.requests[0].prompt)
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer._request_id


def test_chat_stream(sync_client: openai.OpenAI, client: FakeClient) -> None:
    stream = sync_client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    chunks = list(stream)
    for index in range(2):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content for choice in own) == client.texts[index]
        assert own[-1].finish_reason == "stop"
        assert own[-1].logprobs.content
    num_tokens = sum(len(client.tokenizer.encode(text)) for text in client.texts[:2])
    assert chunks[-1].usage.completion_tokens == num_tokens


def test_the_packages_own_stream_helper(sync_client: openai.OpenAI, client: FakeClient) -> None:
    with sync_client.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == client.texts[0]


def test_completions(sync_client: openai.OpenAI, client: FakeClient) -> None:
    answer = sync_client.completions.create(
        model="tiny", prompt=["a", "b"], n=2, logprobs=2, max_tokens=50, extra_body={"ignore_eos": True, "top_k": 5}
    )
    assert [choice.text for choice in answer.choices] == [*client.texts[:2], *client.texts[:2]]
    assert len(answer.choices[0].logprobs.top_logprobs[0]) == 2
    assert answer.usage.prompt_tokens == 2
    assert client.requests[0].params.top_k == 5


def test_completions_stream(sync_client: openai.OpenAI, client: FakeClient) -> None:
    stream = sync_client.completions.create(model="tiny", prompt=[1, 2, 3], max_tokens=50, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == client.texts[0]


def test_models(sync_client: openai.OpenAI) -> None:
    assert [entry.id for entry in sync_client.models.list()] == ["tiny", "org/tiny-alias"]
    assert sync_client.models.retrieve("tiny").created == 1_700_000_000


def test_errors_become_the_packages_exceptions(sync_client: openai.OpenAI, client: FakeClient) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        sync_client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as refused:
        sync_client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=3)
    assert refused.value.param == "temperature"

    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        yield client.deltas(request, 0)[0]
        yield failed(request)

    client.script = script
    with pytest.raises(openai.APIError, match="the queue is full"):
        list(sync_client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    with pytest.raises(openai.RateLimitError) as busy:
        sync_client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert busy.value.response.headers["retry-after"] == "7"


@pytest.mark.anyio
async def test_async_chat(async_client: openai.AsyncOpenAI, client: FakeClient) -> None:
    answer = await async_client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == client.texts[0]
    stream = await async_client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    assert "".join([chunk.choices[0].delta.content async for chunk in stream]) == client.texts[0]


@pytest.mark.anyio
async def test_async_completions(async_client: openai.AsyncOpenAI, client: FakeClient) -> None:
    answer = await async_client.completions.create(model="tiny", prompt="a", max_tokens=50)
    assert answer.choices[0].text == client.texts[0]
    stream = await async_client.completions.create(model="tiny", prompt="a", max_tokens=50, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == client.texts[0]


@pytest.mark.parametrize("stream", [b"false", b"true"])
def test_a_closed_connection_aborts_a_queued_request(url: str, client: FakeClient, stream: bytes) -> None:
    client.script = nothing
    begun, ended = threading.Event(), threading.Event()
    client.on_begin, client.on_end = begun.set, ended.set
    body = b'{"prompt": "a", "stream": ' + stream + b"}"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head + body)
        assert begun.wait(timeout=5)
        assert not client.ended
    assert ended.wait(timeout=5)
    assert list(client.ended.values()) == ["aborted"]
