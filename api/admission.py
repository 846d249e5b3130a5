"""How a request that generates gets in: the server is ready, the body has come whole, and a thread has prepared it.

Whoever is refused on the way is answered here. What comes behind, the run itself, belongs to the route.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.types import Receive, Send

from actors.messages import ErrorInfo
from api.bodies import read_body
from api.errors import from_request_error, send_error
from api.model import ApiSettings, Readiness
from runtime.errors import RequestError

T = TypeVar("T")


class Admission:
    """The way in, shared by all routes that generate. `limiter` bounds the threads that prepare requests."""

    def __init__(
        self, readiness: Callable[[], Readiness], settings: ApiSettings, limiter: anyio.CapacityLimiter
    ) -> None:
        self._readiness = readiness
        self._settings = settings
        self._limiter = limiter

    async def admit(self, receive: Receive, send: Send, prepare: Callable[[bytes], Awaitable[T]]) -> T | None:
        """What `prepare` makes of the body; None when the client was refused, and told so, or has gone away.

        `prepare` may raise RequestError.
        """
        state = self._readiness()
        if not state.is_open:
            await send_error(send, not_ready(state))
            return None
        try:
            data = await read_body(receive, self._settings.max_body_bytes, self._settings.body_timeout_s)
            return None if data is None else await prepare(data)
        except RequestError as error:
            await send_error(send, from_request_error(error))
            return None

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Does the work off the event loop, as soon as there is a thread for it."""
        return await anyio.to_thread.run_sync(work, *args, limiter=self._limiter, abandon_on_cancel=True)


def not_ready(state: Readiness) -> ErrorInfo:
    """The refusal of requests in a state that takes none."""
    detail = f": {state.detail}" if state.detail else ""
    return ErrorInfo(
        status=503, message=f"the server is {state.state}{detail}", code=f"server_{state.state}", retry_after_s=5
    )
