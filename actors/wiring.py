"""Which actors a system has, with the sizes of their inboxes: the same on every carrier.

Rooms are computed from what admission lets in, because sends back along a request's path never wait: for each choice
that may be under way there is room for every message that it can cause.
"""

from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from actors.call_deadlines import CallDeadlines
from actors.context import Actor
from actors.gateway import GatewayActor, TextStreamFactory
from actors.messages import GATEWAY, SCHEDULER, TRANSFER, Address, MailboxClass
from actors.recovery import RecoveryOptions
from actors.scheduler import SchedulerActor
from actors.supervisor import ActorSupervisor, RestartPolicy, WorkerSupervisor
from actors.telemetry import NO_TELEMETRY, Telemetry
from actors.transfer import TransferActor
from actors.worker import WorkerActor, WorkerOptions
from runtime.constraints import Constraints
from runtime.engine import Engine, KvMover
from runtime.pages import PagePool
from runtime.topology import Slice, Topology

CLIENT_CAPACITY: Mapping[MailboxClass, int] = {"control": 16, "cancel": 1, "token": 4096, "work": 1}
"""A client that lets this many deltas lie is cut off."""


class SystemOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`max_queued` requests wait for a place; `max_choices` bounds n. The rest bounds or times the workers.

    `prefix_cache` lets requests share the KV of equal beginnings. `telemetry` hears of the actors' work.
    """

    max_queued: int = 1024
    max_choices: int = 128
    decode_reserve_tokens: int = 256
    prefix_cache: bool = True
    worker: WorkerOptions = WorkerOptions()
    restart: RestartPolicy = RestartPolicy()
    recovery: RecoveryOptions = RecoveryOptions()
    telemetry: Telemetry = NO_TELEMETRY


class ActorSpec(msgspec.Struct, frozen=True):
    """An actor to start: where, with how much room, and whether its death may be survived."""

    address: Address
    actor: Actor
    capacity: dict[MailboxClass, int]


MakePool = Callable[[str, int], PagePool]
"""Makes a slice's page accounting from the slice's name and its number of pages."""


def _plain_pool(name: str, num_pages: int) -> PagePool:
    return PagePool(num_pages)


def wire(
    engines: Mapping[str, Engine],
    topology: Topology,
    mover: KvMover,
    make_text: TextStreamFactory,
    options: SystemOptions,
    make_pool: MakePool = _plain_pool,
    constraints: Constraints | None = None,
) -> list[ActorSpec]:
    """Makes the actors of a system, one worker per slice. `make_pool` gets the slice's name and its pages.

    Without `constraints` requests that want some are failed.
    """
    roles = {Address(part.name): part.role for part in topology.slices}
    rows = sum(engine.spec.num_rows for engine in engines.values())
    max_requests = options.max_queued + rows
    room = _capacity(max_requests * min(options.max_choices, rows), len(topology.slices))
    names = [Address(part.name) for part in topology.slices]
    gateway = GatewayActor(make_text, max_requests, roles, options.recovery, options.telemetry)
    scheduler = ActorSupervisor(lambda life: _scheduler(names, options), options.restart, options.telemetry)
    specs = [ActorSpec(GATEWAY, gateway, room), ActorSpec(SCHEDULER, scheduler, room)]
    if not topology.named("mixed"):
        transfer = ActorSupervisor(lambda life: _transfer(mover, options), options.restart, options.telemetry)
        specs.append(ActorSpec(TRANSFER, transfer, room))
    for part in topology.slices:
        address, engine = Address(part.name), engines[part.name]
        deadlines = CallDeadlines(options.worker.step_timeout_s)
        make = partial(_worker, part, engine, make_pool, options, deadlines, constraints)
        peers = [name for name in names if name != address]
        worker = WorkerSupervisor(make, engine.reset, peers, options.restart, options.telemetry)
        specs.append(ActorSpec(address, worker, room))
    return specs


def _scheduler(workers: list[Address], options: SystemOptions) -> Actor:
    """A scheduler that knows nothing yet."""
    return SchedulerActor(
        options.max_queued,
        options.decode_reserve_tokens,
        workers,
        options.recovery,
        prefix_cache=options.prefix_cache,
        telemetry=options.telemetry,
    )


def _transfer(mover: KvMover, options: SystemOptions) -> Actor:
    """A transfer actor with nothing under way."""
    return TransferActor(mover, options.recovery.dead_after_s, telemetry=options.telemetry)


def _worker(
    part: Slice,
    engine: Engine,
    make_pool: MakePool,
    options: SystemOptions,
    deadlines: CallDeadlines,
    constraints: Constraints | None,
    epoch: int,
) -> Actor:
    """A worker with an empty pool; made anew after each of its deaths."""
    pool = make_pool(part.name, engine.spec.num_pages)
    address = Address(part.name)
    worker, recovery, telemetry = options.worker, options.recovery, options.telemetry
    return WorkerActor(address, part.role, engine, pool, worker, recovery, deadlines, epoch, constraints, telemetry)


def _capacity(num_choices: int, num_workers: int) -> dict[MailboxClass, int]:
    """Room by class for `num_choices` choices under way, and for the reports of this many workers.

    Reports come at a slow, fixed rate, and one that finds no room is skipped.
    """
    return {
        "control": 256 + 16 * num_workers + 16 * num_choices,
        "cancel": 64 + 4 * num_choices,
        "token": 1024 + 16 * num_choices,
        "work": 64 + 4 * num_choices,
    }
