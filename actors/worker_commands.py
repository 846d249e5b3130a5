"""What a worker does with the messages that it gets. Every command may come twice, late or never.

In: `Reserve`, `StartPrefill`, `Cancel`, `ResendPrefixes` from the scheduler; `ForgetPrefixes` from operators;
`KvChunkReady`, `ChunkLost` from transfer; `StartDecode`, `StartAcked` and `ChunkAcked` from other workers;
`WorkerDown` from supervisors. Out: `Reserved`, `ReserveRefused`, `Released` to the scheduler; `StartAcked` and
`ChunkAcked` to other workers; `PrefixesForgotten` to operators. Nothing here is computed: turns do that.
"""

from actors.chunk_check import ChunkCheck
from actors.context import Context
from actors.messages import (
    SCHEDULER,
    Cancel,
    ChunkAcked,
    ChunkLost,
    ForgetPrefixes,
    KvChunkReady,
    Message,
    PrefixesForgotten,
    Released,
    ResendPrefixes,
    Reserve,
    Reserved,
    ReserveRefused,
    StartAcked,
    StartDecode,
    StartPrefill,
    WorkerDown,
    WorkerMessage,
)
from actors.prefill import PrefillJob
from actors.reports import WorkerReports
from actors.slice_calls import SliceCalls
from actors.tombstones import Recent
from actors.worker_state import WorkerState
from runtime.engine import KvChunk


class WorkerCommands:
    """See the module. Remembers for a while which groups were leased and begun here, so that none is a second time."""

    def __init__(
        self, state: WorkerState, reports: WorkerReports, slice_calls: SliceCalls, check: ChunkCheck | None
    ) -> None:
        self._state = state
        self._reports = reports
        self._slice = slice_calls
        self._check = check
        self._leased, self._begun = Recent(), Recent()

    def handle(self, ctx: Context, message: Message) -> None:
        """Acts on one message."""
        state = self._state
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
                state.deliveries.acked(ctx, message.key, message.sequence)
            case ChunkLost():
                state.deliveries.lost(ctx, message.key, message.sequence)
            case StartAcked():
                state.deliveries.start_acked(message.key)
            case Cancel():
                self._cancel(ctx, message)
            case ResendPrefixes():
                self._reports.resend_prefixes(ctx)
            case ForgetPrefixes():
                forgotten = PrefixesForgotten(worker=state.address, num_pages=state.pool.forget())
                ctx.post(message.reply_to, forgotten)
            case WorkerDown():
                state.deliveries.forget_decode(ctx, message.worker, message.epoch)

    def _reserve(self, ctx: Context, message: Reserve) -> None:
        """Leases what is asked for, or says again that it is leased."""
        state = self._state
        if message.epoch != state.epoch:
            return
        key = message.key
        lease = state.decode.leases.get(key)
        if lease is None and state.decode.group(key):
            return  # it runs, as the next report tells
        alive = state.tombstones.alive(key, message.choices) if key not in self._leased else ()
        if lease is None and alive == message.choices:
            lease = state.decode.reserve(message)
            if lease is not None and state.role == "decode" and message.prefix is not None:
                state.telemetry.looked_up(state.address, message.num_tokens, lease.cached_tokens)
        inventory = self._reports.inventory()
        if lease is None:
            cancelled = tuple(choice for choice in message.choices if choice not in alive)
            ctx.post(SCHEDULER, ReserveRefused(key=key, cancelled=cancelled, inventory=inventory))
        else:
            self._leased.add(key)
            ctx.post(SCHEDULER, Reserved(key=key, cached_tokens=lease.cached_tokens, inventory=inventory))

    def _start_prefill(self, ctx: Context, message: StartPrefill) -> None:
        state = self._state
        if message.epoch != state.epoch:
            return
        choices = state.tombstones.alive(message.key, message.choices)
        self._reports.expect_more()  # the scheduler counts these tokens as work here: it is told how many are left
        if not choices or message.key in self._begun:
            return
        local_pages = None
        if message.decode == state.address:
            lease = state.decode.leases.get(message.key)
            if lease is None:
                return
            local_pages = state.local_pages(lease, choices[0])
            state.pool.hold(local_pages)
        self._begun.add(message.key)
        job = PrefillJob(message, choices, local_pages)
        state.prefill.add(job)
        state.constraints.add(job)

    def _start_decode(self, ctx: Context, message: StartDecode) -> None:
        state = self._state
        ended = state.decode.start(message, state.next_fence)
        if ended:
            ctx.post(SCHEDULER, Released(worker=state.address, key=message.key, choices=ended))
        lease = state.decode.leases.get(message.key)
        if lease is not None and lease.start is message:
            state.constraints.add(lease)
        ctx.post(message.sender, StartAcked(key=message.key, worker=state.address))

    def _chunk_ready(self, ctx: Context, message: KvChunkReady) -> None:
        chunk = ctx.arrays.take(message.handle)
        if not self._state.decode.wants(message):
            self._state.acknowledge(ctx, message)
        elif chunk is None:
            return  # it lay too long in the inbox: it is moved again
        elif self._check is not None:
            self._check.add(message, chunk)
        else:
            self._place(message, chunk)

    def _place(self, message: KvChunkReady, chunk: KvChunk) -> None:
        insert = self._state.decode.place(message)
        assert insert is not None
        self._state.arrived.append((insert, chunk))

    async def verify(self, ctx: Context) -> None:
        """Places what has arrived as it had left; what has changed on its way is moved again."""
        check = self._check
        if check is None or not check.waiting:
            return
        for message, chunk in await self._slice.call(ctx, ("checksum", len(check.waiting)), check.compare):
            if chunk is None:
                check.report(ctx, message)
            elif self._state.decode.wants(message):
                self._place(message, chunk)
            else:
                self._state.acknowledge(ctx, message)

    def _cancel(self, ctx: Context, message: Cancel) -> None:
        state = self._state
        key, choices = message.key, message.choices
        if message.whole:
            job = state.prefill.jobs.get(key)
            choices = tuple({*choices, *state.decode.group(key), *(job.choices if job is not None else ())})
            state.deliveries.forget(ctx, key)
        state.tombstones.bury(key, choices, message.deadline, ctx.now())
        state.prefill.cancel(key, choices, state.next_fence)
        state.decode.cancel(key, choices, state.next_fence)
