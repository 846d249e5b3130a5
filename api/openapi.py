"""`/openapi.json`: the HTTP surface as an OpenAPI 3.1 document, generated from the types that requests are decoded
into, from the limits that they are checked against, and from each route's `Operation`.

It lists the routes that the application has and no others.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from api.openapi_answers import ErrorBody
from api.openapi_fields import annotate
from api.openapi_routes import OPERATIONS
from api.operation import Operation, Parameter
from runtime import __version__

REFERENCE = "#/components/schemas/{name}"
_REQUEST_ID = Parameter(
    name="x-request-id",
    place="header",
    meaning="Comes back with the answer and stands in the server's log; without it, or with an odd one, one is made.",
)
_ID_HEADER = {"x-request-id": {"description": "The request's id.", "required": True, "schema": {"type": "string"}}}
_RETRY_HEADER = {
    "retry-after": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "string", "pattern": r"^\d+$"},
    }
}
_FINAL_HEADER = {
    "x-should-retry": {
        "description": "That trying again is of no use.",
        "schema": {"type": "string", "const": "false"},
    }
}
_CONVERTER = re.compile(r"{(\w+):\w+}")


def openapi_route(*, needs_key: bool) -> Route:
    """The route that shows the document of the application it is part of; made anew each time, in a thread."""

    def show(request: Request) -> Response:
        document = openapi_document(request.app.routes, needs_key=needs_key)
        return Response(orjson.dumps(document), media_type="application/json")

    return Route("/openapi.json", show)


def route_methods(routes: Iterable[BaseRoute], prefix: str = "") -> set[tuple[str, str]]:
    """All (path, method) of an application, as the document writes them."""
    found = set[tuple[str, str]]()
    for route in routes:
        if isinstance(route, Mount):
            found |= route_methods(route.routes, prefix + route.path)
        elif isinstance(route, Route):
            path = _CONVERTER.sub(r"{\1}", prefix + route.path)
            found |= {(path, method.lower()) for method in route.methods or () if method != "HEAD"}
    return found


def openapi_document(routes: Iterable[BaseRoute], *, needs_key: bool) -> dict[str, Any]:
    """The document of an application with these routes; `needs_key` says whether clients have to send one."""
    served = route_methods(routes)
    operations = [operation for operation in OPERATIONS if (operation.path, operation.method) in served]
    types = [
        ErrorBody,
        *(kind for one in operations for kind in (one.body, one.answer, one.events) if kind is not None),
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    of_type = dict(zip(map(_key, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _operation(operation, of_type, needs_key)
        paths.setdefault(operation.path, {})[operation.method] = described
    keys = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "runtime", "version": __version__, "description": "An LLM inference server."},
        "paths": paths,
        "components": {
            "schemas": annotate(components),
            "securitySchemes": {"key": keys, "adminKey": keys},
        },
    }


def _key(kind: Any) -> str:
    return repr(kind)


def _operation(operation: Operation, of_type: dict[str, Any], needs_key: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [_parameter(one) for one in (*operation.parameters, _REQUEST_ID)],
        "responses": _responses(operation, of_type, needs_key),
        "security": _security(operation, needs_key),
    }
    if operation.body is not None:
        schema = of_type[_key(operation.body)]
        content["requestBody"] = {
            "required": operation.body_required,
            "content": {"application/json": {"schema": schema}},
        }
    return content


def _security(operation: Operation, needs_key: bool) -> list[dict[str, Any]]:
    if operation.admin:
        return [{"adminKey": []}]
    return [{"key": []}] if needs_key and not operation.open else []


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.meaning,
        "required": parameter.required or parameter.place == "path",
        "schema": parameter.schema,
    }


def _responses(operation: Operation, of_type: dict[str, Any], needs_key: bool) -> dict[str, Any]:
    schema = {"type": "string"} if operation.answer is None else of_type[_key(operation.answer)]
    content: dict[str, Any] = {operation.media_type: {"schema": schema}}
    if operation.events is not None:
        payload = {"anyOf": [of_type[_key(operation.events)], of_type[_key(ErrorBody)]]}
        content["text/event-stream"] = {"schema": _event(payload)}
    found = {str(status): _response(status, content) for status in operation.statuses}
    failures = {*operation.errors, 500}
    if operation.admin:
        failures |= {401, 403}
    elif needs_key and not operation.open:
        failures.add(401)
    body = {"application/json": {"schema": of_type[_key(ErrorBody)]}}
    return found | {str(status): _response(status, body) for status in sorted(failures - {*operation.statuses})}


def _event(payload: dict[str, Any]) -> dict[str, Any]:
    """One server-sent event: its data is JSON, or the word that ends a stream."""
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": payload}
    return {
        "description": "Each event of the stream.",
        "type": "object",
        "properties": {"event": {"type": "string"}, "data": {"anyOf": [{"const": "[DONE]"}, text]}},
        "required": ["data"],
    }


def _response(status: int, content: dict[str, Any]) -> dict[str, Any]:
    more = {429: _RETRY_HEADER, 503: _RETRY_HEADER, 504: _FINAL_HEADER}
    headers = _ID_HEADER | more.get(status, {})
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": content}
