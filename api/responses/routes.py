"""The routes of `/v1/responses`: what comes in is read and checked here, what goes out is made by the service."""

from typing import Any, TypeVar

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from actors.client import EngineClient
from api.admission import Admission
from api.model import ApiSettings, ServedModel
from api.responses.items import Item
from api.responses.prepare import Prepared, prepare
from api.responses.schema import ResponsesBody
from api.responses.service import ResponseService
from api.responses.store import Kept
from api.schema import decode_body
from api.timing import wants_timing
from runtime.errors import RequestError

T = TypeVar("T")

MAX_PAGE = 100
DEFAULT_PAGE = 20


def response_routes(
    model: ServedModel,
    client: EngineClient,
    settings: ApiSettings,
    admission: Admission,
) -> list[Route]:
    """Everything below `/v1/responses`."""
    service = ResponseService(model, client, settings)
    one = OneResponse(service)
    create = CreateEndpoint(service, model, settings, admission)
    return [
        Route("/v1/responses", create, methods=["POST"], name="responses"),
        Route("/v1/responses/{id}", Retrieve(service), methods=["GET"]),
        Route("/v1/responses/{id}", one.delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", one.cancel, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", one.input_items, methods=["GET"]),
    ]


class CreateEndpoint:
    """`POST /v1/responses`, an ASGI application."""

    def __init__(
        self,
        service: ResponseService,
        model: ServedModel,
        settings: ApiSettings,
        admission: Admission,
    ) -> None:
        self._service = service
        self._model = model
        self._settings = settings
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def prepare(data: bytes) -> Prepared:
            timed = wants_timing(scope["headers"])
            prepared = await self._prepare(data)
            job = msgspec.structs.replace(prepared.job, include_timing=timed)
            return msgspec.structs.replace(prepared, job=job)

        prepared = await self._admission.admit(receive, send, prepare)
        if prepared is not None:
            await self._service.answer(prepared, receive, send)

    async def _prepare(self, data: bytes) -> Prepared:
        in_thread = self._admission.in_thread
        body = await in_thread(decode_body, data, ResponsesBody)
        previous = None
        if body.previous_response_id is not None:
            previous = _previous(self._service, body.previous_response_id)
        return await in_thread(prepare, body, previous, self._service.store.find_item, self._model, self._settings)


def _previous(service: ResponseService, response_id: str) -> Kept:
    """The response to continue; one that is still running, or that failed, has no conversation to continue."""
    name = "previous_response_id"
    if service.background.get(response_id) is not None:
        raise RequestError(f"{name}: {response_id!r} is still in progress", param=name)
    found = service.store.get(name, response_id)
    if found.status == "failed":
        raise RequestError(f"{name}: {response_id!r} has failed", param=name)
    return found


class Retrieve:
    """`GET /v1/responses/{id}`, an ASGI application: whole, or its events from a number on."""

    def __init__(self, service: ResponseService) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request. Raises RequestError."""
        request = Request(scope)
        stream, seen = _stream_query(request)
        response_id = request.path_params["id"]
        run = self._service.background.get(response_id)
        if run is None:
            kept = self._service.store.get("id", response_id)
            events: tuple[bytes, ...] | list[bytes] = kept.events
            body = kept.body
        else:
            events, body = run.events, msgspec.json.encode(run.response)
        if not stream:
            await _json(body)(scope, receive, send)
            return
        if not events:
            raise RequestError("stream: only a background response that was created with it has events", param="stream")
        if run is not None:
            await self._service.follow(run, seen, receive, send)
        else:
            await Response(b"".join(events[seen:]), media_type="text/event-stream")(scope, receive, send)


def _stream_query(request: Request) -> tuple[bool, int]:
    """Whether events are wanted, and the number of the first."""
    query = request.query_params
    for name in ("include", "include[]"):
        if name in query:
            raise RequestError("include: only an option of the request that creates a response", param="include")
    for name in ("stream", "include_obfuscation"):
        if query.get(name, "false") not in ("true", "false"):
            raise RequestError(f"{name}: must be true or false, got {query[name][:40]!r}", param=name)
    if query.get("include_obfuscation") == "true":
        raise RequestError("include_obfuscation: not an option of this endpoint", param="include_obfuscation")
    stream = query.get("stream") == "true"
    if "starting_after" in query and not stream:
        raise RequestError("starting_after: only allowed when stream is true", param="starting_after")
    return stream, _number(request, "starting_after", 0, 2**31 - 1, -1) + 1


def _number(request: Request, name: str, low: int, high: int, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise RequestError(f"{name}: must be a whole number between {low} and {high}, got {text[:40]!r}", param=name)
    return int(text)


class OneResponse:
    """The routes of a single response that answer whole. All raise RequestError for an unknown id."""

    def __init__(self, service: ResponseService) -> None:
        self._service = service

    async def delete(self, request: Request) -> Response:
        """Drops it; one that is running is cancelled."""
        response_id = request.path_params["id"]
        run = self._service.background.get(response_id)
        if run is not None:
            await run.cancel()
        kept = self._service.store.get("id", response_id)
        self._service.store.delete(kept.id)
        return _json(orjson.dumps({"id": response_id, "object": "response", "deleted": True}))

    async def cancel(self, request: Request) -> Response:
        """Stops a background response and shows what there is of it; one that is over stays as it is."""
        response_id = request.path_params["id"]
        run = self._service.background.get(response_id)
        if run is not None:
            await run.cancel()
            return _json(msgspec.json.encode(run.response))
        kept = self._service.store.get("id", response_id)
        if not kept.background:
            raise RequestError(
                "id: only a background response can be cancelled; allowed: closing the connection", param="id"
            )
        return _json(kept.body)

    async def input_items(self, request: Request) -> Response:
        """A page of the items that it was made from, those of the responses before it included."""
        response_id = request.path_params["id"]
        run = self._service.background.get(response_id)
        blocks = run.prepared.input if run is not None else self._service.store.get("id", response_id).input
        items = [item for block in blocks for item in block.items()]
        return _json(msgspec.json.encode(_page(request, items)))


def _page(request: Request, items: list[Item]) -> dict[str, Any]:
    if "include" in request.query_params or "include[]" in request.query_params:
        raise RequestError("include: not an option of this endpoint", param="include")
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order: must be asc or desc, got {order[:40]!r}", param="order")
    limit = _number(request, "limit", 1, MAX_PAGE, DEFAULT_PAGE)
    items = items if order == "asc" else items[::-1]
    after = request.query_params.get("after")
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise RequestError(f"after: no item has the id {after[:80]!r}", param="after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(items) > limit,
    }


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
