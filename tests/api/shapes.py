"""Checks everything that an application sends against OpenAI's published schema, whichever test made it send.

`Watcher` stands between an application and its server. What it finds wrong is collected, not raised: the application
under test may run in another thread. Fields that we send beyond the schema are allowed there: it closes no object.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from starlette.types import Message, Scope, Send

SCHEMA = json.loads(Path(__file__).with_name("openai_schema.json").read_text(encoding="utf-8"))
ERROR = "ErrorResponse"
WHOLE = {
    "/v1/chat/completions": "CreateChatCompletionResponse",
    "/v1/completions": "CreateCompletionResponse",
    "/v1/models": "ListModelsResponse",
    "/v1/models/": "Model",
    "/v1/responses": "Response",
    "/v1/responses/": "Response",
}
EVENTS = {
    "/v1/chat/completions": "CreateChatCompletionStreamResponse",
    "/v1/completions": "CreateCompletionResponse",
    "/v1/responses": "ResponseStreamEvent",
    "/v1/responses/": "ResponseStreamEvent",
}
"""Names of OpenAI's schemas by path; those that end in a slash stand for all paths below."""

Check = Callable[[Scope, int, bytes, bool, bytes], Iterator[str]]


@cache
def validator(name: str) -> Draft202012Validator:
    """For one of OpenAI's schemas."""
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": SCHEMA["components"]})


@cache
def _event_names() -> dict[str, str]:
    """The schema of a response's event by its type, so that what is wrong with it has a name."""
    schemas = SCHEMA["components"]["schemas"]
    names = [one["$ref"].rpartition("/")[2] for one in schemas["ResponseStreamEvent"]["anyOf"]]
    return {schemas[name]["properties"]["type"]["enum"][0]: name for name in names}


def problems(name: str, value: Any) -> Iterator[str]:
    """What keeps a value from being of OpenAI's schema."""
    if name == "ResponseStreamEvent":
        name = _event_names().get(value.get("type"), name)
    for error in validator(name).iter_errors(value):
        yield f"{name}{error.json_path[1:]}: {error.message}"


def data_of(stream: bytes) -> Iterator[Any]:
    """The JSON of all whole events of a stream."""
    for frame in stream.split(b"\n\n")[:-1]:
        for line in frame.split(b"\n"):
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                yield json.loads(line.removeprefix(b"data: "))


def schema_of(names: dict[str, str], path: str) -> str | None:
    """The name that holds for a path."""
    return names.get(path) or next(
        (name for key, name in names.items() if key[-1] == "/" and path.startswith(key)), None
    )


def against_openai(scope: Scope, status: int, content_type: bytes, is_whole: bool, body: bytes) -> Iterator[str]:
    """A response of one of OpenAI's routes, or any failure."""
    path = scope["path"]
    if content_type.startswith(b"text/event-stream"):
        name = schema_of(EVENTS, path)
        for value in data_of(body) if name else ():
            assert name is not None
            yield from problems(ERROR if "error" in value and "type" not in value else name, value)
    elif content_type == b"application/json" and is_whole and not _is_of_ours(scope):
        name = ERROR if status >= 400 and path not in ("/health", "/ready") else schema_of(WHOLE, path)
        if name == "Response" and (path.endswith("/input_items") or scope.get("method") == "DELETE"):
            name = None  # a list of items, and the news of a deletion
        yield from problems(name, json.loads(body)) if name else ()


def _is_of_ours(scope: Scope) -> bool:
    """Answers that are no response object, below the path of one."""
    return bool(scope.get("method") == "DELETE" or scope["path"].endswith("/input_items"))


class Watcher:
    """One response on its way out."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._status, self._content_type, self._is_whole = 0, b"", False
        self._parts: list[bytes] = []

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._content_type = dict(message["headers"]).get(b"content-type", b"")
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
        await self._send(message)

    def problems(self, *checks: Check) -> list[str]:
        """What is wrong with what was sent, by these checks."""
        body = b"".join(self._parts)
        return [
            f"{self._scope['method']} {self._scope['path']} {self._status}: {problem}"
            for check in checks
            for problem in check(self._scope, self._status, self._content_type, self._is_whole, body)
        ]
