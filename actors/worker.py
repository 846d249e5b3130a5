"""A worker: the actor of one slice. Its role is a policy, which phases it plans; the code is the same for all.

In: `Reserve`, `StartPrefill`, `Cancel` from the scheduler; `KvChunkReady`, `ChunkLost` from transfer; `StartDecode` and
`ChunkAcked` from other workers. Out: `Reserved`, `ReserveRefused`, `Released`, `Inventory`, `PrefixesChanged` to the
scheduler; `PrefillStarted`, `DecodeStarted`, `TokensSampled`, `Preempted` to the gateway; `MoveChunk` to transfer;
`StartDecode`, `ChunkAcked` to other workers.

Its life is a loop of *turns*: read the inbox, plan, enqueue device work (inserts, row state, one step, gathers) in one
call on the slice's thread, then wait for the step of the turn *before*. So one step is always in flight while the host
reads the last one, and the next chunk is on its way before this one is done. Pages given up during turn t are named by
device work up to turn t at most; they stay in quarantine until that turn has retired.
"""

import msgspec

from actors.context import Context
from actors.decode import DecodePhase, Insert, Lease, finish_of
from actors.messages import (
    GATEWAY,
    SCHEDULER,
    TRANSFER,
    Address,
    Cancel,
    ChunkAcked,
    ChunkLost,
    DecodeStarted,
    GatewayMessage,
    Inventory,
    Key,
    KvChunkReady,
    Message,
    MoveChunk,
    Preempted,
    PrefillStarted,
    Released,
    Reserve,
    Reserved,
    ReserveRefused,
    SampledToken,
    StartDecode,
    StartPrefill,
    TokenRecord,
    TokensSampled,
    WorkerDown,
    WorkerMessage,
)
from actors.prefill import PlannedChunk, PrefillJob, PrefillPhase
from actors.reports import WorkerReports
from actors.tombstones import Tombstones
from actors.turn import Flight, Slot, Turn, enqueue
from actors.turn_planner import TurnPlanner
from runtime.engine import Engine, Sampled
from runtime.pages import PagePool
from runtime.topology import Role


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`staged_per_decode` is the staging credit per destination; `step_timeout_s` bounds every call on the slice.

    With `verify_kv` checksums of KV are compared before and behind its transfer.
    """

    staged_per_decode: int = 4
    step_timeout_s: float = 600.0
    verify_kv: bool = False


class WorkerActor:
    """See the module. Made anew after a failure, with an empty pool."""

    def __init__(self, address: Address, role: Role, engine: Engine, pool: PagePool, options: WorkerOptions) -> None:
        self.address = address
        self.role = role
        self.pool = pool
        self._engine = engine
        self._options = options
        spec = engine.spec
        self.free_rows = list(range(spec.num_rows))
        self.prefill = PrefillPhase(spec, pool, options.staged_per_decode, self._rematch)
        self.decode = DecodePhase(spec, pool, self.free_rows)
        self._planner = TurnPlanner(spec, role, self.prefill, self.decode, self.free_rows)
        self._tombstones = Tombstones()
        self._arrived: list[Insert] = []
        self._flight: Flight | None = None
        self._turn = 0
        self._reports = WorkerReports(pool.index, self._inventory)

    async def run(self, ctx: Context) -> None:
        """Runs turns until cancelled or broken; gives up its array handles in the end."""
        try:
            self._reports.announce(ctx, self.role, self._engine.spec)
            while True:
                self._read_inbox(ctx)
                self._sweep(ctx)
                turn = self._plan(ctx)
                flight = await self._execute(ctx, turn) if turn is not None else None
                landing, self._flight = self._flight, flight
                if landing is not None:
                    await self._land(ctx, landing)
                elif turn is None:
                    await self._idle(ctx)
                self._reports.send(ctx)
        finally:
            self._drop_handles(ctx)

    async def _idle(self, ctx: Context) -> None:
        """Nothing to plan and nothing in flight: settles the device if pages wait for it, else waits for a message."""
        if self.pool.quarantined_pages:
            await ctx.run_engine(self.address, self._engine.wait, self._options.step_timeout_s)
            self._turn += 1  # an empty turn: what was given up for the next one is retired by it
            self.pool.retire(self._turn)
            return
        self._reports.send(ctx)
        deadline = self._next_deadline()
        message = await ctx.receive(None if deadline is None else max(0.0, deadline - ctx.now()))
        if message is not None:
            self._handle(ctx, message)

    def _next_deadline(self) -> float | None:
        deadlines = (self.decode.next_deadline(), self.prefill.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _sweep(self, ctx: Context) -> None:
        """Gives up leases and staged chunks whose time has run out; all other ways of ending them have failed."""
        deadline = self._next_deadline()
        if deadline is None or deadline > ctx.now():
            return
        self.prefill.sweep(ctx.now(), ctx.arrays.drop)
        for lease in self.decode.expired(ctx.now()):
            key = lease.reserve.key
            self.decode.drop(lease, self._next_fence)
            self.prefill.cancel(key, lease.reserve.choices, self._next_fence)
            self._give_up(ctx, key, lease.reserve.choices, "the lease ran out before the sequence started")

    # --- inbox

    def _read_inbox(self, ctx: Context) -> None:
        while (message := ctx.receive_nowait()) is not None:
            self._handle(ctx, message)

    def _handle(self, ctx: Context, message: Message) -> None:
        assert isinstance(message, WorkerMessage), message
        match message:
            case Reserve():
                self._reserve(ctx, message)
            case StartPrefill():
                self._start_prefill(ctx, message)
            case StartDecode():
                self._start_decode(ctx, message)
            case KvChunkReady():
                self._chunk_ready(ctx, message)
            case ChunkAcked():
                self._unstage(ctx, message.key, message.sequence)
            case ChunkLost():
                self._chunk_lost(ctx, message)
            case Cancel():
                self._cancel(ctx, message)
            case WorkerDown():
                self.prefill.forget_decode(message.worker, ctx.arrays.drop)

    @property
    def _next_fence(self) -> int:
        """Device work that is already planned, but not enqueued, belongs to the next turn."""
        return self._turn + 1

    def _reserve(self, ctx: Context, message: Reserve) -> None:
        wanted = self._tombstones.alive(message.key, message.choices)
        lease = self.decode.reserve(message) if wanted == message.choices else None
        inventory = self._reports.inventory()
        if lease is None:
            ctx.post(SCHEDULER, ReserveRefused(key=message.key, inventory=inventory))
        else:
            ctx.post(SCHEDULER, Reserved(key=message.key, cached_tokens=lease.cached_tokens, inventory=inventory))

    def _start_prefill(self, ctx: Context, message: StartPrefill) -> None:
        choices = self._tombstones.alive(message.key, message.choices)
        self._reports.expect_more()  # the scheduler counts these tokens as work here: it is told how many are left
        if not choices:
            return
        local_pages = None
        if message.decode == self.address:
            lease = self.decode.leases.get(message.key)
            if lease is None:
                return
            local_pages = self._local_pages(lease, choices[0])
            self.pool.hold(local_pages)
        self.prefill.add(PrefillJob(message, choices, local_pages))

    def _local_pages(self, lease: Lease, choice: int) -> tuple[int, ...]:
        return lease.pages(choice)[: self._engine.spec.pages_for(lease.reserve.num_tokens)]

    def _rematch(self, job: PrefillJob) -> None:
        """A local job that has not begun uses what others have cached since it was leased its pages."""
        lease = self.decode.leases[job.key]
        self.decode.rematch(lease, self._next_fence)
        job.pages = self._local_pages(lease, job.choices[0])
        self.pool.hold(job.pages)
        job.cached = job.done = lease.cached_tokens

    def _start_decode(self, ctx: Context, message: StartDecode) -> None:
        ended = self.decode.start(message, self._next_fence)
        if ended:
            ctx.post(SCHEDULER, Released(worker=self.address, key=message.key, choices=ended))

    def _chunk_ready(self, ctx: Context, message: KvChunkReady) -> None:
        insert = self.decode.place(message)
        if insert is not None:
            self._arrived.append(insert)
        else:
            self._acknowledge(ctx, message)

    def _acknowledge(self, ctx: Context, ready: KvChunkReady) -> None:
        ctx.arrays.drop(ready.handle)
        ctx.post(ready.sender, ChunkAcked(key=ready.key, sequence=ready.sequence, worker=self.address))

    def _unstage(self, ctx: Context, key: Key, sequence: int) -> tuple[int, ...]:
        """Takes the chunk and its credit back; returns the choices that it was for."""
        staged = self.prefill.unstage(key, sequence)
        if staged is None:
            return ()
        ctx.arrays.drop(staged.handle)
        return staged.choices

    def _chunk_lost(self, ctx: Context, message: ChunkLost) -> None:
        """The transfer failed: this attempt cannot complete its coverage, so the gateway starts another."""
        choices = self._tombstones.alive(message.key, self._unstage(ctx, message.key, message.sequence))
        if choices:
            job = self.prefill.jobs.get(message.key)
            if job is not None:
                self.prefill.end(job, self._next_fence)
            self._give_up(ctx, message.key, choices, f"transfer failed: {message.reason}")

    def _give_up(self, ctx: Context, key: Key, choices: tuple[int, ...], reason: str) -> None:
        self._tell_gateway(ctx, Preempted(worker=self.address, key=key, choices=choices, reason=reason))

    def _cancel(self, ctx: Context, message: Cancel) -> None:
        self._tombstones.bury(message.key, message.choices, message.deadline, ctx.now())
        self.prefill.cancel(message.key, message.choices, self._next_fence)
        self.decode.cancel(message.key, message.choices, self._next_fence)

    # --- planning

    def _plan(self, ctx: Context) -> Turn | None:
        """The next turn, or None when there is nothing to enqueue."""
        turn, preempted = self._planner.plan(list(self._arrived), self._next_fence)
        for key, choices in preempted:  # the gateway's abort of the old attempt ends the scheduler's grant
            self._give_up(ctx, key, choices, "the KV pool is exhausted")
        return turn

    # --- execution

    async def _execute(self, ctx: Context, turn: Turn) -> Flight | None:
        arrived = [ctx.arrays.get(insert.ready.handle) for insert in turn.inserts]
        handle, gathered = await ctx.run_engine(
            self.address, lambda: enqueue(self._engine, turn, arrived), self._options.step_timeout_s
        )
        self._turn += 1
        self._arrived.clear()  # not before: a failed turn gives their handles up with the worker
        self._tell_started(ctx, turn)
        for insert in turn.inserts:
            self._acknowledge(ctx, insert.ready)
        for (planned, _), kv in zip(turn.gathers, gathered, strict=True):
            self._move(ctx, planned, ctx.arrays.put(kv))
        finished = self._end_jobs(turn)
        if handle is None:
            return None
        trailing = bool(turn.gathers or turn.copies)
        return Flight(handle, turn.slots, finished, self._turn - trailing)

    def _tell_started(self, ctx: Context, turn: Turn) -> None:
        for job in [chunk.job for chunk in turn.chunks if not chunk.job.told]:
            job.told = True
            started = PrefillStarted(
                worker=self.address, key=job.key, cached_tokens=job.cached, decode=job.start.decode, at=ctx.now()
            )
            self._tell_gateway(ctx, started)
        self._tell_begun(ctx, turn)

    def _tell_begun(self, ctx: Context, turn: Turn) -> None:
        groups: dict[tuple[Key, float], list[int]] = {}
        for sequence in turn.begun:
            assert sequence.kv_at is not None
            groups.setdefault((sequence.group, sequence.kv_at), []).append(sequence.key.choice)
            sequence.kv_at = None
        for (key, kv_at), choices in groups.items():
            begun = DecodeStarted(worker=self.address, key=key, choices=tuple(choices), kv_at=kv_at, at=ctx.now())
            self._tell_gateway(ctx, begun)

    def _move(self, ctx: Context, planned: PlannedChunk, handle: int) -> None:
        job = planned.job
        sequence = self.prefill.stage(planned, handle)
        assert planned.send is not None
        move = MoveChunk(
            key=job.key,
            sequence=sequence,
            token_start=planned.send[0],
            token_end=planned.send[1],
            handle=handle,
            sender=self.address,
            target=job.start.decode,
            deadline=job.start.deadline,
        )
        if not ctx.post(TRANSFER, move):
            raise RuntimeError(f"transfer has no room for {job.key}")

    def _end_jobs(self, turn: Turn) -> tuple[PrefillJob, ...]:
        """Jobs that are on their way as a whole give up their pages, and borrowed rows: later work comes after it.

        Returns the jobs whose first tokens the step samples for another worker.
        """
        finished = list[PrefillJob]()
        for chunk in turn.chunks:
            if chunk.job.complete:
                self.prefill.end(chunk.job, self._turn)
            if chunk.last and not chunk.job.local:
                finished.append(chunk.job)
        sampled_rows = [row for segment in (turn.step.prefill if turn.step else ()) for row in segment.sample_rows]
        for row, slot in zip(sampled_rows, turn.slots, strict=False):
            if slot.job is not None:
                self.free_rows.append(row)
        return tuple(finished)

    # --- results

    async def _land(self, ctx: Context, flight: Flight) -> None:
        """Reads a step: tokens to the gateway, finished sequences out, prefilled groups on to their decode worker."""
        sampled = await ctx.run_engine(
            self.address, lambda: self._engine.fetch(flight.handle), self._options.step_timeout_s
        )
        self.pool.retire(flight.retires)
        tokens = list[SampledToken]()
        starts: dict[Key, list[tuple[int, int]]] = {job.key: [] for job in flight.finished_jobs}
        for slot, result in zip(flight.slots, sampled, strict=True):
            token = self._land_token(ctx, slot, result)
            if token is None:
                continue
            tokens.append(token)
            if slot.job is not None and token.finish is None:
                starts[slot.job.key].append((slot.key.choice, result.token))
        if tokens:
            self._tell_gateway(ctx, TokensSampled(worker=self.address, tokens=tuple(tokens)))
        for job in flight.finished_jobs:
            self._hand_over(ctx, job, tuple(starts[job.key]))
            if not starts[job.key] and job.key in self.prefill.jobs:
                self.prefill.end(job, self._next_fence)  # nobody wants what is still to be sent

    def _land_token(self, ctx: Context, slot: Slot, result: Sampled) -> SampledToken | None:
        """The token for the gateway; None for the overrun of a sequence that has ended in the meantime."""
        if slot.job is not None:
            if not self._tombstones.alive(slot.key, (slot.key.choice,)):
                return None
            finish = finish_of(slot.job.start.params, result.token, slot.index)
        else:
            sequence = self.decode.sequences.get(slot.key)
            if sequence is None:
                return None
            sequence.tokens.append(result.token)
            finish = finish_of(sequence.params, result.token, slot.index)
            if finish is not None:
                self.decode.end(sequence, self._turn)
                released = Released(worker=self.address, key=sequence.group, choices=(slot.key.choice,))
                ctx.post(SCHEDULER, released)
        return SampledToken(slot.key, slot.index, TokenRecord(result.token, result.logprob, result.top), finish)

    def _hand_over(self, ctx: Context, job: PrefillJob, starts: tuple[tuple[int, int], ...]) -> None:
        start = job.start
        ctx.post(
            start.decode,
            StartDecode(
                key=job.key,
                order=start.order,
                starts=starts,
                tokens=start.tokens,
                prompt_tokens=start.prompt_tokens,
                params=start.params,
                sender=self.address,
                deadline=start.deadline,
            ),
        )

    def _tell_gateway(self, ctx: Context, message: GatewayMessage) -> None:
        if not ctx.post(GATEWAY, message):
            raise RuntimeError("the gateway has no room for what it reserved")

    # --- inventory

    def _inventory(self) -> Inventory:
        return Inventory(
            worker=self.address,
            available_pages=self.pool.available_pages,
            free_rows=len(self.free_rows),
            num_groups=len(self.decode.leases) + len(self.decode.sequences),
            queued_prefill_tokens=self.prefill.queued_tokens,
        )

    def _drop_handles(self, ctx: Context) -> None:
        for insert in self._arrived:
            ctx.arrays.drop(insert.ready.handle)
        for staged in self.prefill.staged.values():
            ctx.arrays.drop(staged.handle)
