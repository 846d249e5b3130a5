"""The endpoint that both completions routes share: read, prepare in a thread, run, and abort with the client.

One instance serves one route. While a request runs, queued or not, streamed or not, a watcher waits for the
client to go away and then cancels everything at once.
"""

from collections.abc import Callable

import anyio
import anyio.to_thread
import msgspec
from starlette.types import Receive, Scope, Send

from actors.client import EngineClient
from actors.messages import ErrorInfo
from api.answer import Answer
from api.errors import from_request_error, send_error
from api.model import ApiSettings, Readiness, ServedModel
from api.run import cancel_on_disconnect
from api.stream import send_stream, send_whole
from api.timing import wants_timing
from api.validate import Job
from runtime.errors import RequestError

Prepare = Callable[[bytes, ServedModel, ApiSettings], Job]


class GenerateEndpoint:
    """An ASGI application for one route."""

    def __init__(
        self,
        model: ServedModel,
        client: EngineClient,
        readiness: Callable[[], Readiness],
        settings: ApiSettings,
        limiter: anyio.CapacityLimiter,
        prepare: Prepare,
        answer: type[Answer],
    ) -> None:
        self._model = model
        self._client = client
        self._readiness = readiness
        self._settings = settings
        self._limiter = limiter
        self._prepare = prepare
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        state = self._readiness()
        if not state.is_open:
            await send_error(send, not_ready(state))
            return
        try:
            data = await read_body(receive, self._settings.max_body_bytes, self._settings.body_timeout_s)
            if data is None:
                return
            timed = wants_timing(scope["headers"])
            job = await anyio.to_thread.run_sync(
                self._prepare, data, self._model, self._settings, limiter=self._limiter, abandon_on_cancel=True
            )
        except RequestError as error:
            await send_error(send, from_request_error(error))
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
            job = msgspec.structs.replace(job, include_timing=timed)
            await self._run(self._answer(job, self._model), send)
            tasks.cancel_scope.cancel()

    async def _run(self, answer: Answer, send: Send) -> None:
        if answer.job.stream:
            await send_stream(send, self._client, answer, self._settings.ping_interval_s)
        else:
            await send_whole(send, self._client, answer)


async def read_body(receive: Receive, max_bytes: int, timeout_s: float) -> bytes | None:
    """The request's body, or None when the client went away before its end."""
    with anyio.move_on_after(timeout_s):
        return await _read_parts(receive, max_bytes)
    raise RequestError(f"the body did not arrive within {timeout_s:g} seconds", status=408, code="request_timeout")


async def _read_parts(receive: Receive, max_bytes: int) -> bytes | None:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise RequestError(f"the body is larger than {max_bytes} bytes", status=413, code="request_too_large")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def not_ready(state: Readiness) -> ErrorInfo:
    """The refusal of requests in a state that takes none."""
    detail = f": {state.detail}" if state.detail else ""
    return ErrorInfo(
        status=503, message=f"the server is {state.state}{detail}", code=f"server_{state.state}", retry_after_s=5
    )
