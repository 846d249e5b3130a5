"""Supervision of one child: restart with backoff, within a budget, then give it up.

Each child runs in a scope of its own, so one death is one death. A worker that dies loses its pool: its slice is reset
on the slice's own thread, its inbox is emptied (whatever lay in it belonged to attempts that died with it), scheduler,
transfer and the other workers are told, and a new actor starts with an empty pool. A slice that hangs is out until its
call returns, however long that takes. Scheduler and transfer come back with nothing and learn what there is from the
workers. The gateway holds what nobody else has: its failure ends the system, which answers every client with an error.

A supervisor lives on its child's context, so that the inbox outlives the child. What a life has spawned is therefore in
the supervisor's scope, and has to see for itself that its life has ended.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from actors.context import Actor, Context, EngineFailure, EngineTimeout
from actors.messages import GATEWAY, SCHEDULER, TRANSFER, Address, ChunkAcked, KvChunkReady, WorkerDown
from actors.telemetry import NO_TELEMETRY, Telemetry

logger = logging.getLogger(__name__)


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """At most `max_restarts` within `window_s`; the n-th waits `backoff_s` x 2^n."""

    max_restarts: int = 3
    window_s: float = 60.0
    backoff_s: float = 0.2
    reset_timeout_s: float = 120.0


class RestartBudget:
    """Counts deaths against a policy."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._deaths: deque[float] = deque()

    def spend(self, now: float) -> float | None:
        """One more death: seconds to wait before the next life, or None when there is to be none."""
        self._deaths.append(now)
        while self._deaths[0] < now - self._policy.window_s:
            self._deaths.popleft()
        if len(self._deaths) > self._policy.max_restarts:
            return None
        return self._policy.backoff_s * 2.0 ** len(self._deaths)


class ActorSupervisor:
    """Runs an actor that others can do without for a while. Its inbox stays open; `make` gets the life's number."""

    def __init__(
        self, make: Callable[[int], Actor], policy: RestartPolicy, telemetry: Telemetry = NO_TELEMETRY
    ) -> None:
        self._telemetry = telemetry
        self._make = make
        self._budget = RestartBudget(policy)
        self.epoch = 1
        self.actor = make(1)

    async def run(self, ctx: Context) -> None:
        """Raises what ended the last life when the budget is used up."""
        while True:
            try:
                await self.actor.run(ctx)
            except Exception:
                logger.exception("%s failed", ctx.address)
                backoff_s = self._budget.spend(ctx.now())
                self._telemetry.died(ctx.address, final=backoff_s is None)
                if backoff_s is None:
                    raise
            else:
                raise RuntimeError(f"{ctx.address} returned")
            await ctx.sleep(backoff_s)
            self.epoch += 1
            self.actor = self._make(self.epoch)


class _Once:
    """A call that is made once, however often it is asked for; later askers get its error, too."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._made = False
        self._error: Exception | None = None

    def __call__(self) -> None:
        if not self._made:
            self._made = True
            try:
                self._call()
            except Exception as error:  # whoever waited for it may be gone: it is kept for who waits now
                self._error = error
        if self._error is not None:
            raise self._error


class WorkerSupervisor:
    """Runs one worker, again and again within its budget. It is an actor itself: it lives on the worker's context.

    `make` gets the epoch, the number of the life.
    """

    def __init__(
        self,
        make: Callable[[int], Actor],
        reset: Callable[[], None],
        peers: Sequence[Address],
        policy: RestartPolicy,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._telemetry = telemetry
        self._make = make
        self._reset = reset
        self._peers = tuple(peers)
        self._policy = policy
        self._budget = RestartBudget(policy)
        self.epoch = 0
        self.worker: Actor | None = None

    async def run(self, ctx: Context) -> None:
        """Returns when the worker is given up."""
        while True:
            self.epoch += 1
            self.worker = self._make(self.epoch)
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
        """Tells everybody, waits out the backoff, resets the slice. False when the worker is given up."""
        backoff_s = self._budget.spend(ctx.now())
        self._tell(ctx, reason, final=backoff_s is None)
        self._telemetry.died(ctx.address, final=backoff_s is None)
        if backoff_s is None:
            logger.error("%s failed too often and is given up", ctx.address)
            return False
        await ctx.sleep(backoff_s)
        try:
            await self._wait_for_slice(ctx)
        except EngineFailure as error:
            logger.error("%s could not be reset: %s", ctx.address, error)
            self._tell(ctx, f"reset failed: {error}", final=True)
            return False
        self._empty_inbox(ctx)
        return True

    async def _wait_for_slice(self, ctx: Context) -> None:
        """Resets the slice once it is back from what it does. Raises EngineFailure."""
        reset = _Once(self._reset)
        while True:
            try:
                return await ctx.run_engine(ctx.address, reset, self._policy.reset_timeout_s)
            except EngineTimeout:
                logger.warning("%s is still inside a call", ctx.address)
                self._empty_inbox(ctx)

    def _tell(self, ctx: Context, reason: str, final: bool) -> None:
        down = WorkerDown(worker=ctx.address, epoch=self.epoch, reason=reason, final=final)
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
