"""What one life of a worker owns: pages, rows, prefills, leases and sequences, and how these are given up.

Commands (`actors.worker_commands`), turns (`actors.worker`) and results (`actors.landing`) all change it, one after
another on the event loop. Pages that are given up wait in the pool for the turn that names them last.
"""

from actors.constraint_calls import ConstraintCalls
from actors.constraint_work import ConstraintWork
from actors.context import Context
from actors.decode import DecodePhase, Insert, Lease
from actors.deliveries import Deliveries
from actors.messages import (
    GATEWAY,
    Address,
    ChunkAcked,
    ErrorInfo,
    GatewayMessage,
    Inventory,
    Key,
    KvChunkReady,
    Preempted,
    Rejected,
)
from actors.prefill import PrefillJob, PrefillPhase
from actors.recovery import RecoveryOptions
from actors.reports import Holdings
from actors.telemetry import Telemetry, WorkerLoad
from actors.tombstones import Tombstones
from runtime.engine import Engine, KvChunk
from runtime.pages import PagePool
from runtime.topology import Role


class WorkerState:
    """See the module. `turn` counts the turns that were enqueued; `arrived` are chunks for the next one to insert."""

    def __init__(
        self,
        address: Address,
        role: Role,
        epoch: int,
        engine: Engine,
        pool: PagePool,
        staged_per_decode: int,
        recovery: RecoveryOptions,
        constraint_calls: ConstraintCalls,
        telemetry: Telemetry,
    ) -> None:
        self.address = address
        self.role = role
        self.epoch = epoch
        self.engine = engine
        self.pool = pool
        self.telemetry = telemetry
        spec = engine.spec
        self.free_rows = list(range(spec.num_rows))
        self.prefill = PrefillPhase(spec, pool, staged_per_decode, self.rematch)
        self.decode = DecodePhase(spec, pool, self.free_rows)
        self.deliveries = Deliveries(address, self.prefill, recovery)
        self.constraints = ConstraintWork(constraint_calls, self.prefill, self.decode, self.reject)
        self.tombstones = Tombstones()
        self.arrived: list[tuple[Insert, KvChunk]] = []
        self.turn = 0

    @property
    def next_fence(self) -> int:
        """Device work that is already planned, but not enqueued, belongs to the next turn."""
        return self.turn + 1

    def local_pages(self, lease: Lease, choice: int) -> tuple[int, ...]:
        """Those of a leased choice that its prompt fills."""
        return lease.pages(choice)[: self.engine.spec.pages_for(lease.reserve.num_tokens)]

    def rematch(self, job: PrefillJob) -> None:
        """A local job that has not begun uses what others have cached since it was leased its pages."""
        lease = self.decode.leases[job.key]
        self.decode.rematch(lease, self.next_fence)
        job.pages = self.local_pages(lease, job.choices[0])
        self.pool.hold(job.pages)
        job.cached = job.done = lease.cached_tokens

    def acknowledge(self, ctx: Context, ready: KvChunkReady) -> None:
        """The chunk need not be sent again."""
        ctx.post(ready.sender, ChunkAcked(key=ready.key, sequence=ready.sequence, worker=self.address))

    def abandon(self, ctx: Context, key: Key, choices: tuple[int, ...]) -> None:
        """What was sent does not arrive: the attempt cannot be completed, so the gateway starts another."""
        job = self.prefill.jobs.get(key)
        if job is not None:
            self.prefill.end(job, self.next_fence)
        self.deliveries.forget(ctx, key)
        wanted = self.tombstones.alive(key, choices)
        if wanted:
            self.give_up(ctx, key, wanted, "it cannot be handed over")

    def give_up(self, ctx: Context, key: Key, choices: tuple[int, ...], reason: str) -> None:
        """Leaves them to another attempt."""
        self.tell_gateway(ctx, Preempted(worker=self.address, key=key, choices=choices, reason=reason))

    def reject(self, ctx: Context, key: Key, choices: tuple[int, ...], index: int, error: ErrorInfo) -> None:
        """Gives choices up for good; the gateway's abort ends the scheduler's grant."""
        self.prefill.cancel(key, choices, self.next_fence)
        self.decode.cancel(key, choices, self.next_fence)
        self.tell_gateway(ctx, Rejected(worker=self.address, key=key, choices=choices, index=index, error=error))

    def tell_gateway(self, ctx: Context, message: GatewayMessage) -> None:
        """There is room for it as long as a request's messages are counted right."""
        if not ctx.post(GATEWAY, message):
            raise RuntimeError("the gateway has no room for what it reserved")

    def inventory(self, version: int) -> Inventory:
        """What is free and what is queued, for the scheduler."""
        return Inventory(
            worker=self.address,
            epoch=self.epoch,
            version=version,
            available_pages=self.pool.available_pages,
            free_rows=len(self.free_rows),
            num_groups=len(self.decode.leases) + len(self.decode.sequences),
            queued_prefill_tokens=self.prefill.queued_tokens,
        )

    def load(self) -> WorkerLoad:
        """What is in use, for metrics."""
        pool = self.pool
        return WorkerLoad(
            used_pages=self.engine.spec.usable_pages - pool.available_pages,
            cached_pages=pool.cached_pages,
            free_pages=pool.available_pages - pool.cached_pages,
            running=len(self.decode.sequences),
            leases=len(self.decode.leases),
            prefills=len(self.prefill.jobs),
            queued_prefill_tokens=self.prefill.queued_tokens,
        )

    def holdings(self) -> Holdings:
        """What it has in hand, for the scheduler's reconciliation."""
        leases, running = self.decode.held()
        return Holdings(leases, running, tuple(sorted({*self.prefill.jobs, *self.deliveries.groups})))
