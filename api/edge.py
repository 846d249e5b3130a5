"""The outermost layer: request ids, the request's record, and the last resort for the server's own faults.

Every response carries `x-request-id`, the client's own if it sent a harmless one, and so does every log line that is
written meanwhile. When the response has ended, what it was is logged in one line, counted, and told as spans where
these are wanted. Only route, status, counts and times are: no prompt, no answer, no key.
"""

import logging
import re
import time
import uuid
from typing import Any

from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from api.errors import INTERNAL_ERROR, send_error
from api.keys import OPEN_PATHS
from api.metrics import Metrics
from api.observation import RequestRecord, current_record
from api.tracing import Tracing

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("api.access")

UNMATCHED = "unmatched"
"""The route of requests that belong to none."""

CLIENT_GONE = 499
"""Stands for the status of a response that never began because nobody waited for it any more."""

_HARMLESS_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(request_id=request_id(scope), began_at=time.monotonic(), wall_ns=time.time_ns())
        path, prefix = scope["path"], scope.get("root_path", "")
        token = current_record.set(record)
        with bound_contextvars(request_id=record.request_id):
            try:
                await self._serve(scope, receive, send, record)
            finally:
                current_record.reset(token)
                record.ended_at = time.monotonic()
                record.route = route_of(scope, prefix)
                self._tell(scope["method"], path, dict(scope["headers"]), record)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        tag = (b"x-request-id", record.request_id.encode())

        async def send_tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message["headers"], tag]}
            await send(message)

        await self._app(scope, receive, send_tagged)

    def _tell(self, method: str, path: str, headers: dict[bytes, bytes], record: RequestRecord) -> None:
        status = record.status or CLIENT_GONE
        self._metrics.http.add(1, record.route, str(status))
        level = logging.DEBUG if path in OPEN_PATHS else logging.INFO
        if access_logger.isEnabledFor(level):
            access_logger.log(level, "request", extra=access_fields(method, status, record))
        if self._tracing is not None and path not in OPEN_PATHS:
            self._tracing.tell(method, status, headers, record)


class LastResort:
    """ASGI middleware that answers for a fault of the server, so that layers around it treat that as any answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def send_noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception:
            record = current_record.get()
            name = record.request_id if record is not None else "?"
            logger.exception("request %s to %s failed in the server", name, scope["path"])
            if not begun:
                await send_error(send, INTERNAL_ERROR)


def access_fields(method: str, status: int, record: RequestRecord) -> dict[str, Any]:
    """What the access line tells; keys without a value are left out."""
    assert record.ended_at is not None
    engine = record.engine
    firsts = [one.first_at for one in engine if one.first_at is not None]
    fields: dict[str, Any] = {
        "method": method,
        "route": record.route,
        "status": status,
        "e2e_s": round(record.ended_at - record.began_at, 6),
        "ttft_s": round(min(firsts) - record.began_at, 6) if firsts else None,
    }
    if engine:
        reasons = {reason for one in engine for reason in one.finished.values()}
        fields |= {
            "prompt_tokens": sum(one.prompt_tokens for one in engine),
            "completion_tokens": sum(one.completion_tokens for one in engine),
            "cached_tokens": sum(one.cached_tokens for one in engine),
            "finish_reason": ",".join(sorted(reasons)) or None,
            "error": next((one.code for one in engine if one.code is not None), None),
        }
    return {key: value for key, value in fields.items() if value is not None}


def route_of(scope: Scope, prefix: str) -> str:
    """The route's own path with its parameters by name; `prefix` is the root path under which the application lies."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    if not isinstance(path, str):
        return UNMATCHED
    return path if isinstance(route, Mount) else str(scope.get("root_path", "")).removeprefix(prefix) + path


def request_id(scope: Scope) -> str:
    """The id that the client sent, if that is a harmless one, or else a new one."""
    sent = dict(scope["headers"]).get(b"x-request-id", b"")
    return sent.decode() if _HARMLESS_ID.fullmatch(sent) else uuid.uuid4().hex
