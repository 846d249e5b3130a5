"""Runs responses, for clients that wait and for those that come back, and keeps what is to be kept.

A client that waits and goes away aborts its response, which is then not kept; a background one goes on.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
import msgspec
import orjson
from starlette.types import Receive, Send

from actors.client import EngineClient
from actors.messages import Delta, ErrorInfo, TokenRecord
from api.errors import send_error, send_json
from api.logprobs import chat_logprobs
from api.model import ApiSettings, ServedModel
from api.responses.background import BackgroundRun, BackgroundRuns, Emit
from api.responses.objects import ResponseObject
from api.responses.output import Event, Logprob
from api.responses.prepare import Prepared
from api.responses.progress import Progress, encode_events
from api.responses.store import Block, Kept, ResponseStore, StoreLimits
from api.run import cancel_on_disconnect, run_job
from api.stream import EventWriter

_TOO_MANY = ErrorInfo(
    status=429,
    message="background: as many responses run in the background as may be kept",
    code="too_many_background_responses",
    param="background",
    retry_after_s=5,
)


class ResponseService:
    """All responses of one server."""

    def __init__(self, model: ServedModel, client: EngineClient, settings: ApiSettings) -> None:
        limits = StoreLimits(
            max_responses=settings.response_store_size,
            max_bytes=settings.response_store_bytes,
            max_age_s=settings.response_store_age_s,
        )
        self.store = ResponseStore(limits, time.monotonic)
        self.background = BackgroundRuns()
        self._model = model
        self._client = client
        self._settings = settings

    async def answer(self, prepared: Prepared, receive: Receive, send: Send) -> None:
        """Runs a response and sends it, whole or in events, while its client is there."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
            if prepared.response.background:
                await self._answer_background(prepared, send)
            elif prepared.job.stream:
                await self._answer_stream(prepared, send)
            else:
                await self._answer_whole(prepared, send)
            tasks.cancel_scope.cancel()

    async def follow(self, run: BackgroundRun, seen: int, receive: Receive, send: Send) -> None:
        """Sends a background response's events from number `seen` on, until its last or the client is gone."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
            await self._send_events(run, seen, send)
            tasks.cancel_scope.cancel()

    async def _answer_whole(self, prepared: Prepared, send: Send) -> None:
        progress = self._progress(prepared)

        async def ignore(events: list[Event]) -> None:
            pass

        end = await self._run(prepared, progress, ignore)
        if isinstance(end, ErrorInfo):
            await send_error(send, end)
            return
        self._keep(prepared, progress.response)
        await send_json(send, _json(progress.response))

    async def _answer_stream(self, prepared: Prepared, send: Send) -> None:
        """Headers leave with the first events, so that a refusal still has its own status."""
        progress = self._progress(prepared)
        writer = EventWriter(send)

        async def write(events: list[Event]) -> None:
            await writer.write(encode_events(events))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.keep_alive, self._settings.ping_interval_s)
            end = await self._run(prepared, progress, write)
            tasks.cancel_scope.cancel()
        if isinstance(end, ErrorInfo) and not writer.started:
            await send_error(send, end)
            return
        last = progress.fail(end) if isinstance(end, ErrorInfo) else end
        self._keep(prepared, progress.response)
        await writer.write(encode_events(last), last=True)

    async def _answer_background(self, prepared: Prepared, send: Send) -> None:
        if len(self.background) >= self.store.limits.max_responses:
            await send_error(send, _TOO_MANY)
            return
        run = BackgroundRun(prepared, self._progress(prepared), streamed=prepared.job.stream)
        queued = run.response
        self.background.start(run, partial(self._work, run), self._keep_run)
        if prepared.job.stream:
            await self._send_events(run, 0, send)
        else:
            await send_json(send, _json(queued))

    async def _send_events(self, run: BackgroundRun, seen: int, send: Send) -> None:
        writer = EventWriter(send)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.keep_alive, self._settings.ping_interval_s)
            while await run.more(seen):
                new = run.events[seen:]
                seen += len(new)
                await writer.write(b"".join(new))
            tasks.cancel_scope.cancel()
        await writer.write(b"", last=True)

    async def _work(self, run: BackgroundRun, emit: Emit) -> list[Event]:
        end = await self._run(run.prepared, run.progress, emit)
        return run.progress.fail(end) if isinstance(end, ErrorInfo) else end

    async def _run(
        self, prepared: Prepared, progress: Progress, emit: Callable[[list[Event]], Awaitable[None]]
    ) -> list[Event] | ErrorInfo:
        """Runs the job; returns the last events, or the failure, of which `progress` does not know yet."""

        async def on_delta(prompt: int, delta: Delta) -> None:
            await emit(progress.add(delta))

        end = await run_job(self._client, prepared.job, on_delta)
        if isinstance(end, ErrorInfo):
            return end
        return progress.complete(end, int(time.time()), include_timing=prepared.job.include_timing)

    def _progress(self, prepared: Prepared) -> Progress:
        job, tokenizer = prepared.job, self._model.tokenizer

        def render(tokens: Sequence[TokenRecord]) -> list[Logprob]:
            content: list[Logprob] = chat_logprobs(tokenizer, tokens, as_ids=job.tokens_as_ids)["content"]
            return content

        return Progress(prepared.response, job.make_parser(), None if job.logprobs is None else render)

    def _keep_run(self, run: BackgroundRun) -> None:
        self._keep(run.prepared, run.response, tuple(run.events))

    def _keep(self, prepared: Prepared, response: ResponseObject, events: tuple[bytes, ...] = ()) -> None:
        if not response.store:
            return
        self.store.put(
            Kept(
                id=response.id,
                body=msgspec.json.encode(response),
                status=response.status,
                background=response.background,
                input=prepared.input,
                output=Block.of_output(response.output),
                events=events,
            )
        )


def _json(response: ResponseObject) -> orjson.Fragment:
    return orjson.Fragment(msgspec.json.encode(response))
