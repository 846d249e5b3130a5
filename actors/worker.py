"""A worker: the actor of one slice. Its role is a policy, which phases it plans; the code is the same for all.

In: `Reserve`, `StartPrefill`, `Cancel`, `ResendPrefixes` from the scheduler; `ForgetPrefixes` from operators;
`KvChunkReady`, `ChunkLost` from transfer; `StartDecode`, `StartAcked` and `ChunkAcked` from other workers. Out:
`Reserved`, `ReserveRefused`, `Released`, `Inventory`, `PrefixesChanged`, `WorkerUp` to the scheduler; `PrefillStarted`,
`DecodeStarted`, `TokensSampled`, `Preempted`, `Rejected` to the gateway; `MoveChunk` to transfer; `StartDecode`,
`StartAcked`, `ChunkAcked` to other workers. Every command may come twice, late or never.

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
from actors.constraint_work import ConstraintWork
from actors.context import Context
from actors.decode import DecodePhase, Insert, Lease, finish_of
from actors.deliveries import Deliveries
from actors.messages import (
    GATEWAY,
    SCHEDULER,
    Address,
    Cancel,
    ChunkAcked,
    ChunkLost,
    DecodeStarted,
    ErrorInfo,
    FinishReason,
    ForgetPrefixes,
    GatewayMessage,
    Inventory,
    Key,
    KvChunkReady,
    Message,
    Preempted,
    PrefillStarted,
    PrefixesForgotten,
    Rejected,
    Released,
    ResendPrefixes,
    Reserve,
    Reserved,
    ReserveRefused,
    SampledToken,
    StartAcked,
    StartDecode,
    StartPrefill,
    TokenRecord,
    TokensSampled,
    WorkerDown,
    WorkerMessage,
)
from actors.prefill import PrefillJob, PrefillPhase
from actors.recovery import RecoveryOptions
from actors.reports import Holdings, WorkerReports
from actors.slice_calls import SliceCalls, size_of
from actors.telemetry import NO_TELEMETRY, StepMeter, Telemetry, WorkerLoad
from actors.tombstones import Recent, Tombstones
from actors.turn import Flight, Slot, Turn, enqueue
from actors.turn_planner import TurnPlanner
from runtime.constraints import Constraints
from runtime.engine import Engine, KvChunk, Sampled, Scored, StepHandle
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
        self.role = role
        self.pool = pool
        self.epoch = epoch
        self._engine = engine
        self._recovery = recovery
        self._slice = SliceCalls(address, deadlines)
        spec = engine.spec
        self.free_rows = list(range(spec.num_rows))
        self.prefill = PrefillPhase(spec, pool, options.staged_per_decode, self._rematch)
        self.decode = DecodePhase(spec, pool, self.free_rows)
        self.deliveries = Deliveries(address, self.prefill, recovery)
        self._planner = TurnPlanner(spec, role, self.prefill, self.decode, self.free_rows)
        self._tombstones = Tombstones()
        self._leased, self._begun = Recent(), Recent()
        self._arrived: list[tuple[Insert, KvChunk]] = []
        lane = f"{address}/constraints/{epoch}"
        calls = ConstraintCalls(lane, constraints, spec.vocab_size, options.constraint_timeout_s)
        self._constraints = ConstraintWork(calls, self.prefill, self.decode, self._reject)
        self._check = ChunkCheck(address, engine) if options.verify_kv else None
        self._flight: Flight | None = None
        self._turn = 0
        self._telemetry = telemetry
        self._meter = StepMeter(address, telemetry)
        self._reports = WorkerReports(pool.index, epoch, self._inventory, self._holdings)

    async def run(self, ctx: Context) -> None:
        """Runs turns until cancelled or broken; gives up its array handles in the end."""
        try:
            self._reports.start(ctx, self.role, self._engine.spec, self._recovery.heartbeat_s)
            while True:
                self._read_inbox(ctx)
                self._sweep(ctx)
                if self._check is not None:
                    await self._verify(ctx, self._check)
                await self._constraints.begin(ctx)
                turn = self._plan(ctx)
                flight = await self._execute(ctx, turn) if turn is not None else None
                landing, self._flight = self._flight, flight
                if landing is not None:
                    await self._land(ctx, landing)
                elif turn is None and not self._constraints.waiting:
                    await self._idle(ctx)
                if flight is not None and flight.deferred:
                    self._flight = await self._sample(ctx, flight)
                self._reports.send(ctx)
                self._telemetry.holds(self.address, self._load())
        finally:
            self._reports.end()
            self.deliveries.drop_all(ctx)

    async def _idle(self, ctx: Context) -> None:
        """Nothing to plan and nothing in flight: settles the device if pages wait for it, else waits for a message."""
        if self.pool.quarantined_pages:
            await self._slice.call(ctx, "wait", self._engine.wait)
            self._turn += 1  # an empty turn: what was given up for the next one is retired by it
            self.pool.retire(self._turn)
            return
        self._reports.send(ctx)
        self._telemetry.holds(self.address, self._load())
        deadline = self._next_deadline()
        self._reports.waits = True
        message = await ctx.receive(None if deadline is None else max(0.0, deadline - ctx.now()))
        self._reports.waits = False
        if message is not None:
            self._handle(ctx, message)

    def _next_deadline(self) -> float | None:
        deadlines = (self.decode.next_deadline(), self.prefill.next_deadline(), self.deliveries.next_due())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _sweep(self, ctx: Context) -> None:
        """Sends again what was not acknowledged, and gives up what has waited for too long."""
        deadline = self._next_deadline()
        if deadline is None or deadline > ctx.now():
            return
        for key, choices in self.deliveries.resend(ctx):
            self._abandon(ctx, key, choices)
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
        self._reports.reads += 1

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
                self.deliveries.acked(ctx, message.key, message.sequence)
            case ChunkLost():
                self.deliveries.lost(ctx, message.key, message.sequence)
            case StartAcked():
                self.deliveries.start_acked(message.key)
            case Cancel():
                self._cancel(ctx, message)
            case ResendPrefixes():
                self._reports.resend_prefixes(ctx)
            case ForgetPrefixes():
                forgotten = PrefixesForgotten(worker=self.address, num_pages=self.pool.forget())
                ctx.post(message.reply_to, forgotten)
            case WorkerDown():
                self.deliveries.forget_decode(ctx, message.worker, message.epoch)

    @property
    def _next_fence(self) -> int:
        """Device work that is already planned, but not enqueued, belongs to the next turn."""
        return self._turn + 1

    def _reserve(self, ctx: Context, message: Reserve) -> None:
        """Leases what is asked for, or says again that it is leased."""
        if message.epoch != self.epoch:
            return
        key = message.key
        lease = self.decode.leases.get(key)
        if lease is None and self.decode.group(key):
            return  # it runs, as the next report tells
        alive = self._tombstones.alive(key, message.choices) if key not in self._leased else ()
        if lease is None and alive == message.choices:
            lease = self.decode.reserve(message)
            if lease is not None and self.role == "decode" and message.prefix is not None:
                self._telemetry.looked_up(self.address, message.num_tokens, lease.cached_tokens)
        inventory = self._reports.inventory()
        if lease is None:
            cancelled = tuple(choice for choice in message.choices if choice not in alive)
            ctx.post(SCHEDULER, ReserveRefused(key=key, cancelled=cancelled, inventory=inventory))
        else:
            self._leased.add(key)
            ctx.post(SCHEDULER, Reserved(key=key, cached_tokens=lease.cached_tokens, inventory=inventory))

    def _start_prefill(self, ctx: Context, message: StartPrefill) -> None:
        if message.epoch != self.epoch:
            return
        choices = self._tombstones.alive(message.key, message.choices)
        self._reports.expect_more()  # the scheduler counts these tokens as work here: it is told how many are left
        if not choices or message.key in self._begun:
            return
        local_pages = None
        if message.decode == self.address:
            lease = self.decode.leases.get(message.key)
            if lease is None:
                return
            local_pages = self._local_pages(lease, choices[0])
            self.pool.hold(local_pages)
        self._begun.add(message.key)
        job = PrefillJob(message, choices, local_pages)
        self.prefill.add(job)
        self._constraints.add(job)

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
        lease = self.decode.leases.get(message.key)
        if lease is not None and lease.start is message:
            self._constraints.add(lease)
        ctx.post(message.sender, StartAcked(key=message.key, worker=self.address))

    def _chunk_ready(self, ctx: Context, message: KvChunkReady) -> None:
        chunk = ctx.arrays.take(message.handle)
        if not self.decode.wants(message):
            self._acknowledge(ctx, message)
        elif chunk is None:
            return  # it lay too long in the inbox: it is moved again
        elif self._check is not None:
            self._check.add(message, chunk)
        else:
            self._place(message, chunk)

    def _place(self, message: KvChunkReady, chunk: KvChunk) -> None:
        insert = self.decode.place(message)
        assert insert is not None
        self._arrived.append((insert, chunk))

    async def _verify(self, ctx: Context, check: ChunkCheck) -> None:
        """Places what has arrived as it had left; what has changed on its way is moved again."""
        if not check.waiting:
            return
        for message, chunk in await self._slice.call(ctx, ("checksum", len(check.waiting)), check.compare):
            if chunk is None:
                check.report(ctx, message)
            elif self.decode.wants(message):
                self._place(message, chunk)
            else:
                self._acknowledge(ctx, message)

    def _acknowledge(self, ctx: Context, ready: KvChunkReady) -> None:
        ctx.post(ready.sender, ChunkAcked(key=ready.key, sequence=ready.sequence, worker=self.address))

    def _abandon(self, ctx: Context, key: Key, choices: tuple[int, ...]) -> None:
        """What was sent does not arrive: the attempt cannot be completed, so the gateway starts another."""
        job = self.prefill.jobs.get(key)
        if job is not None:
            self.prefill.end(job, self._next_fence)
        self.deliveries.forget(ctx, key)
        wanted = self._tombstones.alive(key, choices)
        if wanted:
            self._give_up(ctx, key, wanted, "it cannot be handed over")

    def _give_up(self, ctx: Context, key: Key, choices: tuple[int, ...], reason: str) -> None:
        self._tell_gateway(ctx, Preempted(worker=self.address, key=key, choices=choices, reason=reason))

    def _reject(self, ctx: Context, key: Key, choices: tuple[int, ...], index: int, error: ErrorInfo) -> None:
        """Gives choices up for good; the gateway's abort ends the scheduler's grant."""
        self.prefill.cancel(key, choices, self._next_fence)
        self.decode.cancel(key, choices, self._next_fence)
        self._tell_gateway(ctx, Rejected(worker=self.address, key=key, choices=choices, index=index, error=error))

    def _cancel(self, ctx: Context, message: Cancel) -> None:
        key, choices = message.key, message.choices
        if message.whole:
            job = self.prefill.jobs.get(key)
            choices = tuple({*choices, *self.decode.group(key), *(job.choices if job is not None else ())})
            self.deliveries.forget(ctx, key)
        self._tombstones.bury(key, choices, message.deadline, ctx.now())
        self.prefill.cancel(key, choices, self._next_fence)
        self.decode.cancel(key, choices, self._next_fence)

    # --- planning

    def _plan(self, ctx: Context) -> Turn | None:
        """The next turn, or None when there is nothing to enqueue."""
        turn, preempted = self._planner.plan([insert for insert, _ in self._arrived], self._next_fence)
        for key, choices in preempted:  # the gateway's abort of the old attempt ends the scheduler's grant
            self._give_up(ctx, key, choices, "the KV pool is exhausted")
            self._telemetry.preempted(self.address, len(choices))
        return turn

    # --- execution

    async def _execute(self, ctx: Context, turn: Turn) -> Flight | None:
        arrived = [chunk for _, chunk in self._arrived]
        size = size_of(turn, self.decode)
        self._meter.began(turn, ctx.now())
        handle, gathered = await self._slice.call(ctx, ("enqueue", size), lambda: self._enqueue(turn, arrived))
        self._turn += 1
        self._arrived.clear()
        self._tell_started(ctx, turn)
        for insert in turn.inserts:
            self._acknowledge(ctx, insert.ready)
        for (planned, _), (kv, checksums) in zip(turn.gathers, gathered, strict=True):
            self.deliveries.move(ctx, planned, ctx.arrays.put(kv), checksums)
        finished = self._end_jobs(turn)
        if handle is None:
            return None
        trailing = bool(turn.gathers or turn.copies)
        cached = tuple((chunk.job.key, chunk.job.cached) for chunk in turn.chunks if chunk.last)
        scored = tuple(chunk for chunk in turn.chunks if chunk.begin < chunk.end and chunk.job.score is not None)
        retires = self._turn - trailing
        return Flight(handle, turn.slots, finished, retires, cached, size, turn.deferred, scored, handle)

    async def _sample(self, ctx: Context, flight: Flight) -> Flight:
        """Enqueues the sample of a deferred step, now that the tokens before it are known."""
        masks = await self._constraints.masks(ctx, flight.deferred)
        kind = ("sample", flight.size)
        handle = await self._slice.call(ctx, kind, lambda: self._engine.sample(flight.handle, masks))
        return msgspec.structs.replace(flight, handle=handle, deferred=())

    def _enqueue(
        self, turn: Turn, arrived: list[KvChunk]
    ) -> tuple[StepHandle | None, list[tuple[KvChunk, tuple[int, ...] | None]]]:
        """On the slice's thread. Checksums are waited for: a chunk leaves with them."""
        handle, gathered = enqueue(self._engine, turn, arrived)
        take = self._engine.checksum if self._check is not None else lambda chunk: None
        return handle, [(chunk, take(chunk)) for chunk in gathered]

    def _tell_started(self, ctx: Context, turn: Turn) -> None:
        for job in [chunk.job for chunk in turn.chunks if not chunk.job.told]:
            job.told = True
            started = PrefillStarted(
                worker=self.address, key=job.key, cached_tokens=job.cached, decode=job.start.decode, at=ctx.now()
            )
            self._tell_gateway(ctx, started)
            if job.start.prefix is not None:
                self._telemetry.looked_up(self.address, len(job.start.tokens), job.cached)
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
                self.deliveries.landing.add(chunk.job.key)
        sampled_rows = [row for segment in (turn.step.prefill if turn.step else ()) for row in segment.sample_rows]
        for row, slot in zip(sampled_rows, turn.slots, strict=False):
            if slot.job is not None:
                self.free_rows.append(row)
        return tuple(finished)

    # --- results

    async def _land(self, ctx: Context, flight: Flight) -> None:
        """Reads a step: tokens to the gateway, finished sequences out, prefilled groups on to their decode worker."""
        sampled, scores = await self._slice.call(ctx, ("fetch", flight.size), lambda: self._fetch(flight))
        self._meter.read(ctx.now())
        self.pool.retire(flight.retires)
        outcomes = await self._constraints.advance(ctx, flight.slots, sampled)
        tokens = list[SampledToken]()
        starts: dict[Key, list[tuple[int, int]]] = {job.key: [] for job in flight.finished_jobs}
        for slot, result in zip(flight.slots, sampled, strict=True):
            token = self._land_token(ctx, slot, result, outcomes.get(slot.key, False))
            if token is None:
                continue
            tokens.append(token)
            if slot.job is not None and token.finish is None:
                starts[slot.job.key].append((slot.key.choice, result.token))
        self._tell_tokens(ctx, flight, tuple(tokens), _land_scores(flight, scores))
        for job in flight.finished_jobs:
            self.deliveries.hand_over(ctx, job, tuple(starts[job.key]))
            if not starts[job.key] and job.key in self.prefill.jobs:
                self.prefill.end(job, self._next_fence)  # nobody wants what is still to be sent

    def _fetch(self, flight: Flight) -> tuple[tuple[Sampled, ...], tuple[tuple[Scored, ...], ...]]:
        """On the slice's thread."""
        sampled = self._engine.fetch(flight.handle)
        return sampled, self._engine.fetch_scores(flight.scores) if flight.scored else ()

    def _land_token(self, ctx: Context, slot: Slot, result: Sampled, outcome: bool | ErrorInfo) -> SampledToken | None:
        """The token for the gateway; None for the overrun of a sequence that has ended in the meantime.

        `outcome` is what the constraint says to the token: whether the choice is complete with it, or why it fails.
        """
        if slot.job is not None:
            if not self._tombstones.alive(slot.key, (slot.key.choice,)):
                return None
            group, params = slot.job.key, slot.job.start.params
        else:
            sequence = self.decode.sequences.get(slot.key)
            if sequence is None:
                return None
            group, params = sequence.group, sequence.params
        if isinstance(outcome, ErrorInfo):
            self._reject(ctx, group, (slot.key.choice,), slot.index, outcome)
            return None
        finish = "stop" if outcome else finish_of(params, result.token, slot.index)
        if slot.job is None:
            self._note_token(ctx, slot, result.token, finish)
        return SampledToken(slot.key, slot.index, TokenRecord(result.token, result.logprob, result.top), finish)

    def _note_token(self, ctx: Context, slot: Slot, token: int, finish: FinishReason | None) -> None:
        """A sequence has got another token, and ends with it if it is its last."""
        sequence = self.decode.sequences[slot.key]
        sequence.tokens.append(token)
        if finish is not None:
            self.decode.end(sequence, self._turn)
            ctx.post(SCHEDULER, Released(worker=self.address, key=sequence.group, choices=(slot.key.choice,)))

    def _tell_tokens(
        self,
        ctx: Context,
        flight: Flight,
        tokens: tuple[SampledToken, ...],
        scores: tuple[tuple[Key, tuple[TokenRecord, ...]], ...],
    ) -> None:
        """Logprobs of a prompt go with its first tokens, so that both are accepted or neither."""
        if tokens:
            told = TokensSampled(worker=self.address, tokens=tokens, cached=flight.cached, prompt_logprobs=scores)
            self._tell_gateway(ctx, told)

    def _tell_gateway(self, ctx: Context, message: GatewayMessage) -> None:
        if not ctx.post(GATEWAY, message):
            raise RuntimeError("the gateway has no room for what it reserved")

    # --- inventory

    def _inventory(self, version: int) -> Inventory:
        return Inventory(
            worker=self.address,
            epoch=self.epoch,
            version=version,
            available_pages=self.pool.available_pages,
            free_rows=len(self.free_rows),
            num_groups=len(self.decode.leases) + len(self.decode.sequences),
            queued_prefill_tokens=self.prefill.queued_tokens,
        )

    def _load(self) -> WorkerLoad:
        pool = self.pool
        return WorkerLoad(
            used_pages=self._engine.spec.usable_pages - pool.available_pages,
            cached_pages=pool.cached_pages,
            free_pages=pool.available_pages - pool.cached_pages,
            running=len(self.decode.sequences),
            leases=len(self.decode.leases),
            prefills=len(self.prefill.jobs),
            queued_prefill_tokens=self.prefill.queued_tokens,
        )

    def _holdings(self) -> Holdings:
        leases, running = self.decode.held()
        return Holdings(leases, running, tuple(sorted({*self.prefill.jobs, *self.deliveries.groups})))


def _land_scores(
    flight: Flight, scores: tuple[tuple[Scored, ...], ...]
) -> tuple[tuple[Key, tuple[TokenRecord, ...]], ...]:
    """Keeps each chunk's logprobs with its job; returns those of prompts that the step has ended."""
    for chunk, found in zip(flight.scored, scores, strict=True):
        chunk.job.scores += [TokenRecord(score.token, score.logprob, score.top) for score in found]
    return tuple((chunk.job.key, tuple(chunk.job.scores)) for chunk in flight.scored if chunk.last)
