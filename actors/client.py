"""How the HTTP edge talks to the gateway: one stream of events per request.

The protocol is what `api/` depends on; the carriers provide it. Leaving the stream's context before its terminal event
tells the gateway that the client is gone, which aborts the request everywhere.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from actors.messages import Address, Completed, Delta, DrainAnswer, Failed, Status
from runtime.sampling_params import SamplingParams
from runtime.text_stream import TextOptions

ClientEvent = Delta | Completed | Failed


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A validated request as the API hands it over. `request` is unique, also among those that have ended.

    `queue_timeout_s` bounds the time to the first token, `progress_timeout_s` the time from one token to the next.
    Requests share cached prefixes only with those of the same `cache_salt`. The smaller its `priority`, the sooner a
    request is placed. `timeout_s` bounds its whole time.
    """

    request: str
    prompt: tuple[int, ...]
    params: SamplingParams
    num_choices: int = 1
    text: TextOptions = TextOptions()
    cache_salt: str | None = None
    priority: int = 0
    queue_timeout_s: float = 600.0
    progress_timeout_s: float = 300.0
    timeout_s: float | None = None


class EngineClient(Protocol):
    """The gateway as the API sees it."""

    def stream(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncIterator[ClientEvent]]:
        """Submits on entry; the iterator ends after `Completed` or `Failed`. Both raise no errors of their own."""
        ...

    async def status(self) -> Status:
        """The gateway's counts."""
        ...


class CacheClient(Protocol):
    """Who can empty the workers' prefix caches."""

    async def forget_prefixes(self) -> dict[Address, int | None]:
        """How many pages that nobody used each worker has given up; None where there was no answer."""
        ...


class WorkerClient(Protocol):
    """The gateway as operators' routes see it."""

    async def drain_worker(self, worker: Address, timeout_s: float) -> DrainAnswer | None:
        """Orders a drain; None when there is no answer."""
        ...

    async def resume_worker(self, worker: Address) -> DrainAnswer | None:
        """Takes it back; None when there is no answer."""
        ...
