"""The `openai` package tries again after the time that it is told, and parses what is structured."""

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette

from actors.client import ClientEvent, GenerateRequest
from actors.messages import ErrorInfo, Failed
from tests.api.fake_client import FakeClient, failed
from tests.api.served import served

MESSAGES = [{"role": "user", "content": "What is 37 + 58?"}]


@pytest.fixture
def url(app: Starlette) -> Iterator[str]:
    with served(app) as address:
        yield f"{address}/v1"


@pytest.fixture
def busy_once(client: FakeClient) -> FakeClient:
    """Refuses the first request and says when to come again."""

    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        if len(client.requests) == 1:
            yield failed(request, retry_after_s=7)
            return
        async for event in client.answer(request):
            yield event

    client.script = script
    return client


def test_a_retry_waits_as_long_as_it_is_told(url: str, busy_once: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits.append)
    with openai.OpenAI(base_url=url, api_key="any", max_retries=2, timeout=10) as session:
        answer = session.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == busy_once.texts[0]
    assert len(busy_once.requests) == 2
    assert waits == [7.0]


@pytest.mark.anyio
async def test_the_async_client_too(url: str, busy_once: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(delay_s: float) -> None:
        waits.append(delay_s)

    monkeypatch.setattr("openai._base_client.anyio.sleep", sleep)
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=2, timeout=10) as session:
        answer = await session.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == busy_once.texts[0]
    assert waits == [7.0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_time_is_over_is_not_tried_again(url: str, client: FakeClient, *, stream: bool) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        error = ErrorInfo(status=504, message="not complete within 1 s", code="deadline_exceeded")
        yield Failed(request=request.request, error=error)

    client.script = script
    with (
        openai.OpenAI(base_url=url, api_key="any", max_retries=2, timeout=10) as session,
        pytest.raises(openai.InternalServerError) as late,
    ):
        session.chat.completions.create(model="tiny", messages=MESSAGES, stream=stream)
    assert (late.value.status_code, late.value.response.headers["x-should-retry"]) == (504, "false")
    assert len(client.requests) == 1


class Sum(BaseModel):
    result: int


def test_parse(url: str, client: FakeClient) -> None:
    client.texts = ('{"result": 95}',)
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=10) as session:
        answer = session.chat.completions.parse(model="tiny", messages=MESSAGES, response_format=Sum)
        response = session.responses.parse(model="tiny", input="What is 37 + 58?", text_format=Sum)
    assert answer.choices[0].message.parsed == Sum(result=95)
    assert response.output_parsed == Sum(result=95)
    assert all(request.params.constraint is not None for request in client.requests), "the schema binds the answer"
