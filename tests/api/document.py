"""Checks responses against our own `/openapi.json`: status, content type, headers and body, which may have no key that
is not described."""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from api.openapi import openapi_document
from api.openapi_routes import OPERATIONS
from tests.api.shapes import data_of


def whole_document() -> dict[str, Any]:
    """With all routes that there can be, for clients that need a key."""
    routes = [Route(one.path, lambda request: Response(), methods=[one.method.upper()]) for one in OPERATIONS]
    return openapi_document(routes, needs_key=True)


@cache
def _document() -> dict[str, Any]:
    return whole_document()


@cache
def _patterns() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """Paths without parameters first, then the longer ones: they go before those that would match them as well."""
    paths = sorted(_document()["paths"].items(), key=lambda item: ("{" in item[0], -len(item[0])))
    return [(re.compile(re.sub(r"{\w+}", "(.+)", re.escape(path).replace(r"\{", "{").replace(r"\}", "}"))), item)
            for path, item in paths]  # fmt: skip


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator({**json.loads(schema), "components": _document()["components"]})


def _invalid(schema: dict[str, Any], value: Any) -> Iterator[str]:
    for error in _validator(json.dumps(schema)).iter_errors(value):
        yield f"{error.json_path}: {error.message[:300]}"


def _payload(event: dict[str, Any]) -> dict[str, Any]:
    """Of what an event's data is the JSON text."""
    found: dict[str, Any] = event["properties"]["data"]["anyOf"][1]["contentSchema"]
    return found


def operation_at(method: str, path: str) -> dict[str, Any] | None:
    """What the document says of a method of a path."""
    for pattern, item in _patterns():
        if pattern.fullmatch(path):
            found: dict[str, Any] | None = item.get(method.lower())
            return found
    return None


def against_document(scope: Scope, status: int, content_type: bytes, is_whole: bool, body: bytes) -> Iterator[str]:
    """A response of any route that the document knows, unless nothing was sent or the operator's routes are absent."""
    operation = operation_at(scope["method"], scope["path"])
    is_absent = status == 404 and scope["path"].startswith("/admin")
    if operation is None or status == 0 or is_absent:
        return
    response = operation["responses"].get(str(status))
    if response is None:
        yield f"status {status} is not described"
        return
    kind = content_type.decode().partition(";")[0]
    if kind not in response["content"]:
        yield f"content of type {kind!r} is not described for status {status}"
    elif kind == "text/event-stream":
        for value in data_of(body):
            yield from _invalid(_payload(response["content"][kind]["schema"]), value)
    elif kind == "application/json" and is_whole:
        yield from _invalid(response["content"][kind]["schema"], json.loads(body))
