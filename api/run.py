"""Runs a job's engine requests and tells how they ended, whichever way the answer is sent.

All prompts run concurrently. The first failure ends the others: leaving a request's stream aborts it
everywhere. A client that goes away cancels the caller's scope, which leaves every stream at once, queued or
not.
"""

import logging
from collections.abc import Awaitable, Callable

import anyio
import msgspec
from starlette.types import Receive

from actors.client import EngineClient, GenerateRequest
from actors.messages import Completed, Delta, ErrorInfo, Failed
from actors.stage_clock import StageTimes
from api.errors import INTERNAL_ERROR
from api.validate import Job

logger = logging.getLogger(__name__)

DeltaHandler = Callable[[int, Delta], Awaitable[None]]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a whole job used: tokens, and each choice's time by stage, in the order of the answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    timings: tuple[StageTimes, ...]


async def run_job(client: EngineClient, job: Job, on_delta: DeltaHandler) -> Usage | ErrorInfo:
    """Calls `on_delta(prompt index, delta)` for every delta; returns the usage, or the first failure."""
    ended: dict[int, Completed] = {}
    failures: list[ErrorInfo] = []

    async def run_one(index: int, request: GenerateRequest) -> None:
        end = await _run_request(client, index, request, on_delta)
        if isinstance(end, Completed):
            ended[index] = end
        else:
            failures.append(end)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for index, request in enumerate(job.requests):
            tasks.start_soon(run_one, index, request)
    return failures[0] if failures else _total([ended[index] for index in range(len(job.requests))])


async def _run_request(
    client: EngineClient, index: int, request: GenerateRequest, on_delta: DeltaHandler
) -> Completed | ErrorInfo:
    try:
        async with client.stream(request) as events:
            async for event in events:
                match event:
                    case Delta():
                        await on_delta(index, event)
                    case Completed():
                        return event
                    case Failed():
                        return event.error
    except Exception:
        logger.exception("request %s failed in the server", request.request)
        return INTERNAL_ERROR
    logger.error("the events of request %s ended without a terminal one", request.request)
    return INTERNAL_ERROR


def _total(ended: list[Completed]) -> Usage:
    return Usage(
        prompt_tokens=sum(end.prompt_tokens for end in ended),
        completion_tokens=sum(end.completion_tokens for end in ended),
        cached_tokens=sum(end.cached_tokens for end in ended),
        timings=tuple(times for end in ended for times in end.timings),
    )


async def cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancels the scope as soon as the client is gone. Its body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
