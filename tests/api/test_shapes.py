"""The checks that watch all other tests notice what is wrong."""

import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.api.conftest import chat
from tests.api.exchange import exchange
from tests.api.shapes import against_openai

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENVELOPE = {"id": "x", "created": 1, "model": "m"}
MESSAGE = {"role": "assistant", "content": "a", "refusal": None}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": None}
WHOLE = {**ENVELOPE, "object": "chat.completion", "choices": [CHOICE]}
CHUNK_CHOICE = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}
CHUNK = {**ENVELOPE, "object": "chat.completion.chunk", "choices": [CHUNK_CHOICE], "usage": None}
NO_LOGPROBS = {key: value for key, value in CHOICE.items() if key != "logprobs"}
TEXT_CHOICE = {"index": 0, "text": "a", "finish_reason": None, "logprobs": None}
TEXT = {**ENVELOPE, "object": "text_completion", "choices": [TEXT_CHOICE], "usage": None}
ERROR = {"error": {"message": "m", "type": "t", "param": None, "code": None}}


def found(path: str, *values: Any, status: int = 200, streamed: bool = False) -> list[str]:
    kind = b"text/event-stream; charset=utf-8" if streamed else b"application/json"
    if streamed:
        body = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values) + b"data: [DONE]\n\n"
    else:
        body = json.dumps(values[0]).encode()
    return list(against_openai({"path": path}, status, kind, True, body))


def test_what_is_right_passes() -> None:
    assert found(CHAT, WHOLE) == []
    assert found(CHAT, CHUNK, CHUNK, ERROR, streamed=True) == []
    assert found(COMPLETIONS, TEXT, streamed=True) == []
    assert found(CHAT, ERROR, status=400) == []
    assert found(CHAT, WHOLE | {"of_ours": 1}) == [], "further fields are allowed"


@pytest.mark.parametrize(
    ("path", "value", "streamed", "status", "word"),
    [
        (CHAT, WHOLE | {"object": "chat"}, False, 200, "object"),
        (CHAT, WHOLE | {"choices": [CHOICE | {"finish_reason": None}]}, False, 200, "finish_reason"),
        (CHAT, WHOLE | {"choices": [NO_LOGPROBS]}, False, 200, "logprobs"),
        (CHAT, CHUNK | {"choices": [CHUNK_CHOICE | {"delta": {"content": 5}}]}, True, 200, "content"),
        (CHAT, CHUNK | {"usage": {}}, True, 200, "usage"),
        (CHAT, {"error": {"message": "m", "type": "t", "param": None}}, True, 200, "code"),
        (CHAT, {"error": {"message": "m", "type": "t", "param": None}}, False, 400, "code"),
        (COMPLETIONS, TEXT | {"choices": [TEXT_CHOICE | {"text": None}]}, True, 200, "text"),
        ("/v1/models", {"object": "list", "data": [{"id": "x"}]}, False, 200, "object"),
        ("/v1/models/a/b", {"id": "x"}, False, 200, "created"),
        ("/v1/responses", {"type": "response.nonsense"}, True, 200, "ResponseStreamEvent"),
        ("/v1/responses/x", {"id": "x"}, False, 200, "output"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(path: str, value: Any, streamed: bool, status: int, word: str) -> None:
    assert word in str(found(path, value, status=status, streamed=streamed))


@pytest.mark.anyio
async def test_every_application_of_a_test_is_watched(shapes: list[str]) -> None:
    async def wrong(request: Request) -> Response:
        return Response(b'{"id": 5}', media_type="application/json")

    async with exchange(Starlette(routes=[Route(CHAT, wrong, methods=["POST"])]), CHAT, **chat()) as one:
        await one.wait()
    assert shapes
    shapes.clear()
