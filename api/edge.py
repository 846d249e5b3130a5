"""The outermost layer: request ids, bearer keys, and the last resort for the server's own faults.

Every response carries `x-request-id`, the client's own if it sent a harmless one.
"""

import hmac
import logging
import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.messages import ErrorInfo
from api.errors import INTERNAL_ERROR, send_error

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/metrics"})
ADMIN_PREFIX = "/admin/"
"""Below it `api.admin` asks for a key of its own."""

_HARMLESS_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_UNAUTHORIZED = ErrorInfo(
    status=401, message="a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key"
)


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        started = False

        async def send_tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            await send(message)

        if not self._admits(scope["path"], headers.get(b"authorization", b"")):
            await send_error(send_tagged, _UNAUTHORIZED)
            return
        try:
            await self._app(scope, receive, send_tagged)
        except Exception:
            logger.exception("request %s to %s failed in the server", request_id.decode(), scope["path"])
            if not started:
                await send_error(send_tagged, INTERNAL_ERROR)

    def _admits(self, path: str, authorization: bytes) -> bool:
        if not self._keys or path in OPEN_PATHS or path.startswith(ADMIN_PREFIX):
            return True
        scheme, _, key = authorization.partition(b" ")
        matches = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        return scheme.lower() == b"bearer" and any(matches)


def _request_id(sent: bytes) -> bytes:
    return sent if _HARMLESS_ID.fullmatch(sent) else uuid.uuid4().hex.encode()
