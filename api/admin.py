"""The operator's routes under `/admin`: workers are drained and taken back, and failures ordered for game days.

There are none without an admin key. With one, they are served to clients on this machine that send it; the key of other
clients (`--api-key`) neither helps nor is needed.
"""

import hmac
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any

import msgspec
import orjson
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from actors.client import WorkerClient
from actors.messages import Address, DrainAnswer, ErrorInfo, WorkerStatus
from api.bodies import decode_small, read_body
from api.errors import error_body, send_error
from api.health import worker_body
from runtime.chaos.campaign import Campaign, Chaos
from runtime.chaos.spec import SpecError
from runtime.errors import RequestError

PREFIX = "/admin"
DEFAULT_DRAIN_S = 30.0
_MAX_BODY_BYTES = 1 << 16
_BODY_TIMEOUT_S = 10.0

_FORBIDDEN = ErrorInfo(status=403, message="/admin is for clients on the server's machine", code="not_local")
_UNAUTHORIZED = ErrorInfo(
    status=401, message="the admin key is needed: Authorization: Bearer KEY", code="invalid_admin_key"
)


class Admin(msgspec.Struct, frozen=True, kw_only=True):
    """What the routes need; `workers` tells the states as they are now, `chaos` is there if there may be any."""

    key: str
    client: WorkerClient
    workers: Callable[[], tuple[WorkerStatus, ...]]
    chaos: Chaos | None = None


class DrainBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a drain; what still runs after `timeout_s` is moved."""

    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=86400)] = DEFAULT_DRAIN_S


class ChaosBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of an order of failures."""

    spec: str


def admin_routes(admin: Admin) -> list[BaseRoute]:
    """Everything under `/admin`."""

    async def workers(request: Request) -> Response:
        content = {status.name: _full_body(status) for status in admin.workers()}
        return _json({"workers": content})

    async def drain(request: Request) -> Response:
        body = await _body(request, DrainBody, DrainBody())
        return _answer(await admin.client.drain_worker(_name(request), body.timeout_s))

    async def resume(request: Request) -> Response:
        return _answer(await admin.client.resume_worker(_name(request)))

    async def chaos(request: Request) -> Response:
        source = admin.chaos
        if source is None:
            raise RequestError("there is nothing here to strike", status=404, code="no_chaos")
        if request.method == "POST":
            body = await _body(request, ChaosBody, None)
            try:
                source.begin(body.spec)
            except SpecError as error:
                raise RequestError(f"spec {error}", param="spec") from error
        ended = source.campaign
        if request.method == "DELETE":
            source.end()
        return _json(_campaign_body(ended, is_on=source.campaign is not None))

    routes = [
        Route("/workers", workers),
        Route("/workers/{name}/drain", drain, methods=["POST"]),
        Route("/workers/{name}/resume", resume, methods=["POST"]),
        Route("/chaos", chaos, methods=["GET", "POST", "DELETE"]),
    ]
    return [Mount(PREFIX, routes=routes, middleware=[Middleware(_Gate, key=admin.key)])]


class _Gate:
    """Lets in who is on this machine and has the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or says why not."""
        if not _is_local(scope.get("client")):
            await send_error(send, _FORBIDDEN)
        elif not self._knows_key(dict(scope["headers"]).get(b"authorization", b"")):
            await send_error(send, _UNAUTHORIZED)
        else:
            await self._app(scope, receive, send)

    def _knows_key(self, authorization: bytes) -> bool:
        scheme, _, key = authorization.partition(b" ")
        return hmac.compare_digest(key.strip(), self._key) and scheme.lower() == b"bearer"


def _is_local(client: tuple[str, int] | None) -> bool:
    """Whether the address is a loopback one. A proxy's client is told by the server to be where it really is."""
    if client is None:
        return False
    try:
        address = ip_address(client[0].partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


async def _body(request: Request, kind: type[Any], empty: Any) -> Any:
    """The decoded body, or `empty` where there is none. Raises RequestError that names the field."""
    data = await read_body(request.receive, _MAX_BODY_BYTES, _BODY_TIMEOUT_S)
    if data is None:
        raise RequestError("the client went away before the end of its body")
    if not data and empty is not None:
        return empty
    return decode_small(data, kind)


def _name(request: Request) -> Address:
    return Address(request.path_params["name"])


def _answer(answer: DrainAnswer | None) -> Response:
    if answer is None:
        error = ErrorInfo(status=503, message="The gateway does not answer.", code="overloaded", retry_after_s=5)
        return _json(error_body(error), status=error.status)
    if answer.error is not None:
        return _json(error_body(answer.error), status=answer.error.status)
    assert answer.worker is not None
    return _json({answer.worker.name: _full_body(answer.worker)}, status=202)


def _full_body(status: WorkerStatus) -> dict[str, Any]:
    return worker_body(status) | {"corrupt_chunks": status.corrupt_chunks}


def _campaign_body(campaign: Campaign | None, *, is_on: bool) -> dict[str, Any]:
    if campaign is None:
        return {"on": False}
    content: dict[str, Any] = {"on": is_on, "spec": campaign.spec, "hits": campaign.hits()}
    return content | ({"warning": campaign.warning} if campaign.warning else {})


def _json(content: object, *, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
