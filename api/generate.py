"""The endpoint that both completions routes share: read, prepare in a thread, run, and abort with the client.

One instance serves one route. While a request runs, queued or not, streamed or not, a watcher waits for the
client to go away and then cancels everything at once.
"""

from collections.abc import Callable

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

from actors.client import EngineClient
from api.admission import Admission
from api.answer import Answer
from api.model import ApiSettings, ServedModel
from api.run import cancel_on_disconnect
from api.stream import send_stream, send_whole
from api.timing import wants_timing
from api.validate import Job

Prepare = Callable[[bytes, ServedModel, ApiSettings], Job]


class GenerateEndpoint:
    """An ASGI application for one route."""

    def __init__(
        self,
        model: ServedModel,
        client: EngineClient,
        settings: ApiSettings,
        admission: Admission,
        prepare: Prepare,
        answer: type[Answer],
    ) -> None:
        self._model = model
        self._client = client
        self._settings = settings
        self._admission = admission
        self._prepare = prepare
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def prepare(data: bytes) -> Job:
            timed = wants_timing(scope["headers"])
            job = await self._admission.in_thread(self._prepare, data, self._model, self._settings)
            return msgspec.structs.replace(job, include_timing=timed)

        job = await self._admission.admit(receive, send, prepare)
        if job is None:
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
            await self._run(self._answer(job, self._model), send)
            tasks.cancel_scope.cancel()

    async def _run(self, answer: Answer, send: Send) -> None:
        if answer.job.stream:
            await send_stream(send, self._client, answer, self._settings.ping_interval_s)
        else:
            await send_whole(send, self._client, answer)
