"""Supervision of one child: restart with backoff, within a budget, then give it up.

Each child runs in a scope of its own, so one death is one death. A worker that dies loses its pool: its slice is reset
on the slice's own thread, its inbox is emptied (whatever lay in it belonged to attempts that died with it), scheduler,
transfer and the other workers are told, and a new actor starts with an empty pool. Gateway, scheduler and transfer hold
state that nobody else has; their failure ends the system, which answers every waiting client with an error.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from actors.context import Actor, Context, EngineFailure, EngineTimeout
from actors.messages import GATEWAY, SCHEDULER, TRANSFER, Address, ChunkAcked, KvChunkReady, WorkerDown

logger = logging.getLogger(__name__)


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """At most `max_restarts` within `window_s`; the n-th waits `backoff_s` x 2^n."""

    max_restarts: int = 3
    window_s: float = 60.0
    backoff_s: float = 0.2
    reset_timeout_s: float = 120.0


class WorkerSupervisor:
    """Runs one worker, again and again within its budget. It is an actor itself: it lives on the worker's context."""

    def __init__(
        self,
        make: Callable[[], Actor],
        reset: Callable[[], None],
        peers: Sequence[Address],
        policy: RestartPolicy,
    ) -> None:
        self._make = make
        self._reset = reset
        self._peers = tuple(peers)
        self._policy = policy
        self._deaths: deque[float] = deque()
        self.worker: Actor | None = None

    async def run(self, ctx: Context) -> None:
        """Returns when the worker is given up."""
        while True:
            self.worker = self._make()
            try:
                await self.worker.run(ctx)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                logger.exception("%s failed", ctx.address)
            else:
                reason = "the actor returned"
            if not await self._recover(ctx, reason):
                return

    async def _recover(self, ctx: Context, reason: str) -> bool:
        """Tells everybody, resets the slice, waits out the backoff. False when the worker is given up."""
        now = ctx.now()
        self._deaths.append(now)
        while self._deaths[0] < now - self._policy.window_s:
            self._deaths.popleft()
        final = len(self._deaths) > self._policy.max_restarts
        self._tell(ctx, reason, final)
        if final:
            logger.error("%s failed %d times and is given up", ctx.address, len(self._deaths))
            return False
        await ctx.sleep(self._policy.backoff_s * 2 ** len(self._deaths))
        try:
            await ctx.run_engine(ctx.address, self._reset, self._policy.reset_timeout_s)
        except (EngineFailure, EngineTimeout) as error:
            logger.error("%s could not be reset: %s", ctx.address, error)
            self._tell(ctx, f"reset failed: {error}", final=True)
            return False
        self._empty_inbox(ctx)
        return True

    def _tell(self, ctx: Context, reason: str, final: bool) -> None:
        down = WorkerDown(worker=ctx.address, reason=reason, final=final)
        for address in (SCHEDULER, GATEWAY, TRANSFER, *self._peers):
            if address != ctx.address:
                ctx.post(address, down)

    def _empty_inbox(self, ctx: Context) -> None:
        """Drops what belonged to dead attempts; chunks that came too late still give their credit back."""
        while (message := ctx.receive_nowait()) is not None:
            if isinstance(message, KvChunkReady):
                ctx.arrays.drop(message.handle)
                acked = ChunkAcked(key=message.key, sequence=message.sequence, worker=ctx.address)
                ctx.post(message.sender, acked)
