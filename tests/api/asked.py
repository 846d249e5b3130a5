"""One request to an application with every route, and what became of it."""

from functools import cache
from typing import Any

import httpx
import msgspec
from tokenizers.processors import TemplateProcessing

from api.admin import Admin
from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from api.parsers.forms import REASONING_FORMS, TOOL_FORMS, OutputForms
from runtime.chaos.campaign import Chaos
from runtime.tokens import Tokenizer
from tests.api.exchange import parse_events
from tests.api.fake_client import FakeClient
from tests.api.field_cases import Seen
from tests.api.response_events import parse_stream
from tests.api.whole_app import ADMIN_KEY, TOPOLOGY, Workers, tiny_model
from tests.runtime.tiny_tokenizer import END, tiny_tokenizer

TEMPLATE = (
    "{{ {'messages': messages, 'tools': tools, 'effort': reasoning_effort | default(none),"
    " 'thinking': enable_thinking | default(none)} | tojson }}"
)


@cache
def telling_tokenizer() -> Tokenizer:
    """Its prompts are all that the template is told, as JSON; plain ones may begin with a token of its own."""
    tokenizer = tiny_tokenizer(template=TEMPLATE)
    (begin,) = tokenizer.encode(END)
    tokenizer._backend.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, begin)])
    return tokenizer


@cache
def telling_model() -> ServedModel:
    """A model that can call tools and think, with room for long prompts."""
    forms = OutputForms(tools=TOOL_FORMS["hermes"], reasoning=REASONING_FORMS["think"])
    return msgspec.structs.replace(tiny_model(telling_tokenizer()), forms=forms, max_context_tokens=1000)


async def asked(path: str, body: dict[str, Any]) -> tuple[httpx.Response, Seen]:
    """Posts the body, with the operator's key."""
    model, workers = telling_model(), Workers()
    client = FakeClient(model.tokenizer)
    admin = Admin(key=ADMIN_KEY, client=workers, workers=workers.statuses, chaos=Chaos(TOPOLOGY, seed=1))
    app = create_app(model, client, lambda: Readiness(state="ready"), ApiSettings(ping_interval_s=3600), admin)
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        response = await http.post(path, json=body)
    is_stream = response.headers["content-type"].startswith("text/event-stream")
    read = parse_stream if path == "/v1/responses" else parse_events
    answer = read(response.content) if is_stream else response.json()
    tokens = client.requests[-1].prompt if client.requests else ()
    return response, Seen(client.requests, b"".join(map(model.tokenizer.piece, tokens)).decode(), answer)
