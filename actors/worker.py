"""A worker: the actor of one slice. Its role is a policy, which phases it plans; the code is the same for all.

`actors.worker_commands` is what it does with messages, `actors.landing` what it does with results of steps, and
`actors.worker_state` what both and this module work on. Out: `WorkerUp`, `Inventory`, `PrefixesChanged` to the
scheduler; `PrefillStarted`, `DecodeStarted`, `Preempted` to the gateway; `MoveChunk` to transfer; `ChunkAcked` to other
workers.

Its life is a loop of *turns*: read the inbox, plan, enqueue device work (inserts, row state, one step, gathers) in one
call on the slice's thread, then wait for the step of the turn *before*. So one step is always in flight while the host
reads the last one, and the next chunk is on its way before this one is done. Pages given up during turn t are named by
device work up to turn t at most; they stay in quarantine until that turn has retired.

A step with constrained rows is dispatched without its sample: once the step before it has been read, masks are made
from its tokens, while the device is at the forward pass, and then the sample is enqueued.
"""

import msgspec

from actors.call_deadlines import CallDeadlines
from actors.chunk_check import ChunkCheck
from actors.constraint_calls import ConstraintCalls
from actors.context import Context
from actors.landing import Landing
from actors.messages import Address, DecodeStarted, Key, PrefillStarted
from actors.prefill import PrefillJob
from actors.recovery import RecoveryOptions
from actors.reports import WorkerReports
from actors.slice_calls import SliceCalls, size_of
from actors.telemetry import NO_TELEMETRY, StepMeter, Telemetry
from actors.turn import Flight, Turn, enqueue
from actors.turn_planner import TurnPlanner
from actors.worker_commands import WorkerCommands
from actors.worker_state import WorkerState
from runtime.constraints import Constraints
from runtime.engine import Engine, KvChunk, StepHandle
from runtime.pages import PagePool
from runtime.topology import Role


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`staged_per_decode` is the staging credit per destination; `step_timeout_s` bounds every call on the slice.

    `constraint_timeout_s` bounds what constraints take on the host, which is milliseconds where all is well. With
    `verify_kv` checksums of KV are compared before and behind its transfer.
    """

    staged_per_decode: int = 4
    step_timeout_s: float = 600.0
    constraint_timeout_s: float = 20.0
    verify_kv: bool = False


class WorkerActor:
    """One life of a worker, with an empty pool. `epoch` counts the lives, `deadlines` remembers the slice's times."""

    def __init__(
        self,
        address: Address,
        role: Role,
        engine: Engine,
        pool: PagePool,
        options: WorkerOptions,
        recovery: RecoveryOptions,
        deadlines: CallDeadlines,
        epoch: int,
        constraints: Constraints | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self.address = address
        spec, lane = engine.spec, f"{address}/constraints/{epoch}"
        calls = ConstraintCalls(lane, constraints, spec.vocab_size, options.constraint_timeout_s)
        state = WorkerState(address, role, epoch, engine, pool, options.staged_per_decode, recovery, calls, telemetry)
        self.state = state
        self._recovery = recovery
        self._slice = SliceCalls(address, deadlines)
        self._meter = StepMeter(address, telemetry)
        self._check = ChunkCheck(address, engine) if options.verify_kv else None
        self._reports = WorkerReports(pool.index, epoch, state.inventory, state.holdings)
        self._commands = WorkerCommands(state, self._reports, self._slice, self._check)
        self._landing = Landing(state, self._slice, self._meter)
        self._planner = TurnPlanner(spec, role, state.prefill, state.decode, state.free_rows)
        self._flight: Flight | None = None

    async def run(self, ctx: Context) -> None:
        """Runs turns until cancelled or broken; gives up its array handles in the end."""
        state = self.state
        try:
            self._reports.start(ctx, state.role, state.engine.spec, self._recovery.heartbeat_s)
            while True:
                self._read_inbox(ctx)
                self._sweep(ctx)
                await self._commands.verify(ctx)
                await self.state.constraints.begin(ctx)
                turn = self._plan(ctx)
                flight = await self._execute(ctx, turn) if turn is not None else None
                landing, self._flight = self._flight, flight
                if landing is not None:
                    await self._landing.land(ctx, landing)
                elif turn is None and not state.constraints.waiting:
                    await self._idle(ctx)
                if flight is not None and flight.deferred:
                    self._flight = await self._sample(ctx, flight)
                self._reports.send(ctx)
                state.telemetry.holds(state.address, state.load())
        finally:
            self._reports.end()
            state.deliveries.drop_all(ctx)

    async def _idle(self, ctx: Context) -> None:
        """Nothing to plan and nothing in flight: settles the device if pages wait for it, else waits for a message."""
        state = self.state
        if state.pool.quarantined_pages:
            await self._slice.call(ctx, "wait", state.engine.wait)
            state.turn += 1  # an empty turn: what was given up for the next one is retired by it
            state.pool.retire(state.turn)
            return
        self._reports.send(ctx)
        state.telemetry.holds(state.address, state.load())
        deadline = self._next_deadline()
        self._reports.waits = True
        message = await ctx.receive(None if deadline is None else max(0.0, deadline - ctx.now()))
        self._reports.waits = False
        if message is not None:
            self._commands.handle(ctx, message)

    def _next_deadline(self) -> float | None:
        state = self.state
        deadlines = (state.decode.next_deadline(), state.prefill.next_deadline(), state.deliveries.next_due())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _sweep(self, ctx: Context) -> None:
        """Sends again what was not acknowledged, and gives up what has waited for too long."""
        state = self.state
        deadline = self._next_deadline()
        if deadline is None or deadline > ctx.now():
            return
        for key, choices in state.deliveries.resend(ctx):
            state.abandon(ctx, key, choices)
        state.prefill.sweep(ctx.now(), ctx.arrays.drop)
        for lease in state.decode.expired(ctx.now()):
            key = lease.reserve.key
            state.decode.drop(lease, state.next_fence)
            state.prefill.cancel(key, lease.reserve.choices, state.next_fence)
            state.give_up(ctx, key, lease.reserve.choices, "the lease ran out before the sequence started")

    def _read_inbox(self, ctx: Context) -> None:
        while (message := ctx.receive_nowait()) is not None:
            self._commands.handle(ctx, message)
        self._reports.reads += 1

    # --- planning and execution

    def _plan(self, ctx: Context) -> Turn | None:
        """The next turn, or None when there is nothing to enqueue."""
        state = self.state
        turn, preempted = self._planner.plan([insert for insert, _ in state.arrived], state.next_fence)
        for key, choices in preempted:  # the gateway's abort of the old attempt ends the scheduler's grant
            state.give_up(ctx, key, choices, "the KV pool is exhausted")
            state.telemetry.preempted(state.address, len(choices))
        return turn

    async def _execute(self, ctx: Context, turn: Turn) -> Flight | None:
        state = self.state
        arrived = [chunk for _, chunk in state.arrived]
        size = size_of(turn, state.decode)
        self._meter.began(turn, ctx.now())
        handle, gathered = await self._slice.call(ctx, ("enqueue", size), lambda: self._enqueue(turn, arrived))
        state.turn += 1
        state.arrived.clear()
        self._tell_started(ctx, turn)
        for insert in turn.inserts:
            state.acknowledge(ctx, insert.ready)
        for (planned, _), (kv, checksums) in zip(turn.gathers, gathered, strict=True):
            state.deliveries.move(ctx, planned, ctx.arrays.put(kv), checksums)
        finished = self._end_jobs(turn)
        if handle is None:
            return None
        trailing = bool(turn.gathers or turn.copies)
        cached = tuple((chunk.job.key, chunk.job.cached) for chunk in turn.chunks if chunk.last)
        scored = tuple(chunk for chunk in turn.chunks if chunk.begin < chunk.end and chunk.job.score is not None)
        retires = state.turn - trailing
        return Flight(handle, turn.slots, finished, retires, cached, size, turn.deferred, scored, handle)

    async def _sample(self, ctx: Context, flight: Flight) -> Flight:
        """Enqueues the sample of a deferred step, now that the tokens before it are known."""
        masks = await self.state.constraints.masks(ctx, flight.deferred)
        kind = ("sample", flight.size)
        handle = await self._slice.call(ctx, kind, lambda: self.state.engine.sample(flight.handle, masks))
        return msgspec.structs.replace(flight, handle=handle, deferred=())

    def _enqueue(
        self, turn: Turn, arrived: list[KvChunk]
    ) -> tuple[StepHandle | None, list[tuple[KvChunk, tuple[int, ...] | None]]]:
        """On the slice's thread. Checksums are waited for: a chunk leaves with them."""
        handle, gathered = enqueue(self.state.engine, turn, arrived)
        take = self.state.engine.checksum if self._check is not None else lambda chunk: None
        return handle, [(chunk, take(chunk)) for chunk in gathered]

    def _tell_started(self, ctx: Context, turn: Turn) -> None:
        state = self.state
        for job in [chunk.job for chunk in turn.chunks if not chunk.job.told]:
            job.told = True
            started = PrefillStarted(
                worker=state.address, key=job.key, cached_tokens=job.cached, decode=job.start.decode, at=ctx.now()
            )
            state.tell_gateway(ctx, started)
            if job.start.prefix is not None:
                state.telemetry.looked_up(state.address, len(job.start.tokens), job.cached)
        self._tell_begun(ctx, turn)

    def _tell_begun(self, ctx: Context, turn: Turn) -> None:
        groups: dict[tuple[Key, float], list[int]] = {}
        for sequence in turn.begun:
            assert sequence.kv_at is not None
            groups.setdefault((sequence.group, sequence.kv_at), []).append(sequence.key.choice)
            sequence.kv_at = None
        for (key, kv_at), choices in groups.items():
            begun = DecodeStarted(worker=self.state.address, key=key, choices=tuple(choices), kv_at=kv_at, at=ctx.now())
            self.state.tell_gateway(ctx, begun)

    def _end_jobs(self, turn: Turn) -> tuple[PrefillJob, ...]:
        """Jobs that are on their way as a whole give up their pages, and borrowed rows: later work comes after it.

        Returns the jobs whose first tokens the step samples for another worker.
        """
        state = self.state
        finished = list[PrefillJob]()
        for chunk in turn.chunks:
            if chunk.job.complete:
                state.prefill.end(chunk.job, state.turn)
            if chunk.last and not chunk.job.local:
                finished.append(chunk.job)
                state.deliveries.landing.add(chunk.job.key)
        sampled_rows = [row for segment in (turn.step.prefill if turn.step else ()) for row in segment.sample_rows]
        for row, slot in zip(sampled_rows, turn.slots, strict=False):
            if slot.job is not None:
                state.free_rows.append(row)
        return tuple(finished)
