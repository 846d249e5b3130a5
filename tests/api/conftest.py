from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

import httpx
import hypothesis
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from api.parsers.forms import TOOL_FORMS, OutputForms
from runtime.model_config import GenerationDefaults
from runtime.tokens import Tokenizer
from tests.api.document import against_document
from tests.api.fake_client import FakeClient
from tests.api.shapes import Watcher, against_openai
from tests.runtime.tiny_tokenizer import END, TURN_END, tiny_tokenizer

hypothesis.settings.register_profile("api", deadline=None)
hypothesis.settings.load_profile("api")

shared_tokenizer = cache(tiny_tokenizer)


@pytest.fixture(autouse=True)
def shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Everything that any application sends is checked; what is wrong fails the test at its end."""
    found: list[str] = []
    serve = Starlette.__call__

    async def watched(self: Starlette, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await serve(self, scope, receive, send)
            return
        watcher = Watcher(scope, send)
        try:
            await serve(self, scope, receive, watcher.send)
        finally:
            found.extend(watcher.problems(against_openai, against_document))

    monkeypatch.setattr(Starlette, "__call__", watched)
    yield found
    assert found == []


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def tokenizer() -> Tokenizer:
    return shared_tokenizer()


@pytest.fixture
def model(tokenizer: Tokenizer) -> ServedModel:
    eos = tuple(tokenizer.encode(text)[0] for text in (TURN_END, END))
    return ServedModel(
        names=("tiny", "org/tiny-alias"),
        tokenizer=tokenizer,
        max_context_tokens=256,
        max_request_tokens=1000,
        vocab_size=400,
        eos_token_ids=eos,
        created=1_700_000_000,
        defaults=GenerationDefaults(temperature=0.6, top_p=0.95),
        max_choices=8,
        max_answers=8,
        draw_seed=lambda: 12345,
        forms=OutputForms(tools=TOOL_FORMS["hermes"]),
    )


@pytest.fixture
def client(tokenizer: Tokenizer) -> FakeClient:
    return FakeClient(tokenizer, ("The answer is 95 \U0001f600.", "Hello world", "stop here, please"))


class Server:
    """What tests may change while the application runs."""

    def __init__(self) -> None:
        self.readiness = Readiness(state="ready")
        self.settings = ApiSettings(ping_interval_s=3600)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def app(model: ServedModel, client: FakeClient, server: Server) -> Starlette:
    return create_app(model, client, lambda: server.readiness, server.settings)


@pytest.fixture
async def http(app: Starlette, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as session:
        yield session


def chat(**fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"messages": [{"role": "user", "content": "What is 37 + 58?"}]} | fields
