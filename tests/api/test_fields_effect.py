"""Every field of every body has an effect or is refused by name."""

from importlib import import_module
from typing import Any

import httpx
import msgspec
import pytest
from tokenizers.processors import TemplateProcessing

from api.app import create_app
from api.model import Readiness, ServedModel
from api.schema import ChatBody, CompletionBody
from runtime.tokens import Tokenizer
from tests.api.conftest import chat
from tests.api.exchange import parse_events
from tests.api.fake_client import FakeClient
from tests.api.field_cases import CASES, CHAT, COMPLETIONS, Effect, Elsewhere, Refusal, Seen
from tests.runtime.tiny_tokenizer import END, TEMPLATE, tiny_tokenizer

pytestmark = pytest.mark.anyio
BODIES = {CHAT: ChatBody, COMPLETIONS: CompletionBody}
VARIABLES = "{% if reasoning_effort %}effort={{ reasoning_effort }}{% endif %}" + (
    "{% if enable_thinking is defined and not enable_thinking %}no thinking{% endif %}"
)


@pytest.fixture(scope="module")
def whole_tokenizer() -> Tokenizer:
    """It begins plain prompts with a token of its own, and its template reads variables."""
    tokenizer = tiny_tokenizer(template=VARIABLES + TEMPLATE)
    (begin,) = tokenizer.encode(END)
    tokenizer._backend.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, begin)])
    return tokenizer


async def seen(model: ServedModel, route: str, fields: dict[str, Any]) -> tuple[httpx.Response, Seen | None]:
    client = FakeClient(model.tokenizer)
    app = create_app(model, client, lambda: Readiness(state="ready"))
    body = chat(**fields) if route == CHAT else {"prompt": "Hello world"} | fields
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        response = await http.post(route, json=body)
    if response.status_code != 200:
        return response, None
    answer = parse_events(response.content) if fields.get("stream") else response.json()
    prompt = b"".join(map(model.tokenizer.piece, client.requests[-1].prompt)).decode()
    return response, Seen(client.requests, prompt, answer)


@pytest.mark.parametrize(("route", "name"), CASES, ids=lambda part: part.removeprefix("/v1/"))
async def test_the_field(model: ServedModel, whole_tokenizer: Tokenizer, route: str, name: str) -> None:
    model = msgspec.structs.replace(model, tokenizer=whole_tokenizer)
    match CASES[route, name]:
        case Effect() as case:
            response, shown = await seen(model, route, case.others | {name: case.value})
            assert shown is not None, response.text
            assert case.look(shown) == case.expected
            _, shown = await seen(model, route, case.others)
            assert shown is not None
            assert case.look(shown) != case.expected
        case Refusal() as case:
            response, _ = await seen(model, route, case.others | {name: case.value})
            assert response.status_code == 400
            error = response.json()["error"]
            assert error["param"].split(".")[0].split("[")[0] == name
            assert case.words in error["message"]
        case Elsewhere() as case:
            module, _, function = case.test.partition(":")
            assert function.startswith("test_")
            assert getattr(import_module(module), function).__module__ == module


@pytest.mark.parametrize("route", BODIES)
def test_no_field_is_left_out(route: str) -> None:
    assert {name for path, name in CASES if path == route} == set(BODIES[route].__struct_fields__)
