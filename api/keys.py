"""Bearer keys: who is let in. Without any, everybody is, whatever header they send.

What a client sent is compared with every key, each comparison taking as long whatever it finds.
"""

import hmac
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from actors.messages import ErrorInfo
from api.errors import send_error

OPEN_PATHS = frozenset({"/health", "/ready", "/live", "/metrics"})
"""What watches a server has no key."""

ADMIN_PREFIX = "/admin/"
"""Below it `api.admin` asks for a key of its own."""

_UNAUTHORIZED = ErrorInfo(
    status=401, message="a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key"
)


class Keys:
    """ASGI middleware that refuses requests without one of the keys."""

    def __init__(self, app: ASGIApp, api_keys: tuple[str, ...]) -> None:
        self._app = app
        self._known = tuple(_digest(key.encode()) for key in api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http" and not self._admits(scope):
            await send_error(send, _UNAUTHORIZED)
            return
        await self._app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        path = scope["path"]
        if not self._known or path in OPEN_PATHS or path.startswith(ADMIN_PREFIX):
            return True
        scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        sent = _digest(key.strip())
        matches = [hmac.compare_digest(sent, known) for known in self._known]
        return scheme.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    """Of the same length for every key, so that not even a key's length shows in the time of a comparison."""
    return sha256(key).digest()
