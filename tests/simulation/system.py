"""The whole server on the deterministic carrier: the same wiring as every other carrier, over fake engines."""

from collections.abc import Callable
from functools import partial

from actors.context import Actor
from actors.gateway import GatewayActor
from actors.messages import GATEWAY, SCHEDULER, Address, KvChunkReady, Message, WorkerDown
from actors.scheduler import SchedulerActor
from actors.supervisor import ActorSupervisor, RestartPolicy, WorkerSupervisor
from actors.wiring import CLIENT_CAPACITY, SystemOptions, wire
from actors.worker import WorkerActor, WorkerOptions
from runtime.pages import PagePool
from runtime.topology import parse_topology
from tests.simulation.carrier import Carrier
from tests.simulation.clients import SimClient
from tests.simulation.fake_constraints import FakeConstraints
from tests.simulation.fake_engine import FakeEngine, FakeMover, alter
from tests.simulation.fake_tokens import FakeText
from tests.simulation.faults import SIDED
from tests.simulation.injector import Injector, Mortal, Struck
from tests.simulation.loop import SimulationError
from tests.simulation.operators import Operator
from tests.simulation.timing_watch import TimingWatch
from tests.simulation.watch import AttemptWatch, ReuseWatch
from tests.simulation.workload import MAX_CHOICES, Workload

RECOVERED_S = 20.0
"""This long after the last fault is over, nothing of it is left: a death was noticed, and what was lost with it."""

REPEATED_S = 8.0
"""So soon, where no worker was struck: a new scheduler knows what is held, a lost cancel has been repeated."""


RESTART = RestartPolicy(reset_timeout_s=10.0)
"""Planned hangs are longer than this and a step's deadline together."""


class SimSystem:
    """Everything of one run, built and started."""

    def __init__(self, workload: Workload, live_trace: bool = False) -> None:
        self.workload = workload
        self.carrier = Carrier(workload.seed, live_trace)
        topology = parse_topology(workload.topology)
        self.engines = {part.name: FakeEngine(part.name, workload.spec, self._later) for part in topology.slices}
        options = SystemOptions(
            max_queued=workload.max_queued,
            max_choices=MAX_CHOICES,
            decode_reserve_tokens=workload.decode_reserve_tokens,
            prefix_cache=workload.prefix_cache,
            worker=WorkerOptions(
                staged_per_decode=workload.staged_per_decode,
                step_timeout_s=workload.step_timeout_s,
                verify_kv=workload.verify_kv,
            ),
            restart=RESTART,
        )
        mover, constraints = FakeMover(self.engines), FakeConstraints()
        specs = wire(self.engines, topology, mover, FakeText, options, self._make_pool, constraints)
        actors = {spec.address: spec.actor for spec in specs}
        gateway = actors[GATEWAY]
        assert isinstance(gateway, GatewayActor)
        self.gateway = gateway
        self.actors = {name: actor for name, actor in actors.items() if isinstance(actor, ActorSupervisor)}
        self.supervisors = [actor for actor in actors.values() if isinstance(actor, WorkerSupervisor)]
        self.injector = self.carrier.injector = Injector(self.carrier, workload.faults)
        if workload.verify_kv:
            self.injector.alter = self._alter
        for child in self.supervisors:
            child._make = partial(self._make_mortal, child._make)
        for actor in self.actors.values():
            actor.actor = Mortal(actor.actor, self.injector)
            actor._make = partial(self._make_mortal, actor._make)
        self.clients = [SimClient(plan, self.carrier.loop) for plan in workload.requests]
        self.operator = Operator(self, workload.orders)
        self._waiting = list(self.clients)
        self._seen_refused = 0
        self.carrier.on_death = self._on_death
        for name, steps in workload.failing_steps.items():
            self.engines[name].failing_steps = set(steps)
        for name, (begin_s, end_s) in workload.hangs.items():
            lane = self.carrier.lane(name)
            self.carrier.loop.after(begin_s, partial(lane.hold, True))
            self.carrier.loop.after(end_s, partial(lane.hold, False))
        self.reuse = ReuseWatch()
        self.attempts = AttemptWatch(lambda: self.carrier.loop.now)
        if workload.disturbed:
            self.attempts.forgiven_until = self._forgiven_until
        self.timings = TimingWatch(lambda: self.carrier.loop.now)
        if workload.faults:
            self.timings.exact = False
        self.carrier.observers += [
            self.reuse.observe,
            self._check_deaths,
            self.attempts.observe,
            self.timings.observe,
        ]
        self.carrier.observers += [client.observe for client in self.clients if client.plan.behaviour == "leaves"]
        for spec in specs:
            self.carrier.start(spec.address, spec.actor.run, spec.capacity)
        for client in self.clients:
            self.carrier.start(client.address, client.run, client.capacity)
        if workload.orders:
            self.carrier.observers.append(self.operator.observe)
            self.carrier.start(self.operator.address, self.operator.run, CLIENT_CAPACITY)

    @property
    def scheduler(self) -> SchedulerActor:
        """The scheduler that runs."""
        mortal = self.actors[SCHEDULER].actor
        assert isinstance(mortal, Mortal)
        assert isinstance(mortal.actor, SchedulerActor)
        return mortal.actor

    @property
    def workers(self) -> list[WorkerActor]:
        """The workers that run, or will again."""
        made = [child.worker.actor for child in self.supervisors if isinstance(child.worker, Mortal)]
        workers = [worker for worker in made if isinstance(worker, WorkerActor)]
        return [worker for worker in workers if self.carrier.is_running(worker.address)]

    @property
    def quiet_at(self) -> float:
        """When the last planned disturbance is over."""
        return max(
            [self.injector.quiet_at, self.operator.quiet_at, *(end_s for _, end_s in self.workload.hangs.values())]
        )

    def clients_done(self) -> bool:
        """Whether every client has what it will get, and the operator's orders are answered."""
        if len(self.carrier.refused) > self._seen_refused:
            self._seen_refused = len(self.carrier.refused)
            cut_off = {address for _, address, _ in self.carrier.refused}
            for client in self.clients:
                client.cut_off = client.address in cut_off
        while self._waiting and self._waiting[-1].done:
            self._waiting.pop()
        return not self._waiting and self.operator.done

    def _forgiven_until(self) -> float:
        struck = bool(self.workload.faulty) or any(
            entry.fault.kind in SIDED and _victim(entry) != "scheduler" for entry in self.injector.struck
        )
        return self.quiet_at + (RECOVERED_S if struck else REPEATED_S)

    def _make_mortal(self, make: Callable[[int], Actor], life: int) -> Actor:
        return Mortal(make(life), self.injector)

    def _make_pool(self, name: str, num_pages: int) -> PagePool:
        pages = self.engines[name].pages
        pool = PagePool(num_pages, pages.poison)
        pages.is_free = lambda page: pool.state(page) in ("free", "cached")
        return pool

    def _alter(self, ready: KvChunkReady) -> None:
        if ready.handle in self.carrier.arrays:
            alter(self.carrier.arrays.get(ready.handle))

    def _later(self, catch_up: Callable[[], None]) -> None:
        """Now and then the device gets on with its work before anybody waits for it."""
        random = self.carrier.loop.random
        if random.random() < 0.3:
            self.carrier.loop.after(random.uniform(0.0, 0.05), catch_up)

    def _on_death(self, address: Address, error: BaseException | None) -> None:
        """Clients may end, and workers with planted failures may be given up."""
        if error is not None or not (address.startswith("client/") or address in self.workload.faulty):
            raise SimulationError(f"{address} ended with {error!r}") from error

    def _check_deaths(self, source: Address, target: Address, message: Message) -> None:
        """A worker dies of a planted failure or not at all."""
        if isinstance(message, WorkerDown):
            self._check_given_up(message)
            planted = "DeviceError" in message.reason or message.reason.startswith(("EngineTimeout", "PlantedDeath"))
            if planted and (message.worker in self.workload.faulty or self.injector.struck):
                return
            raise SimulationError(f"{message.worker} failed: {message.reason}")

    def _check_given_up(self, down: WorkerDown) -> None:
        """A worker is given up when more has struck it than its budget allows, and for nothing else."""
        planned = len(self.workload.failing_steps.get(down.worker, ())) + (down.worker in self.workload.hangs)
        struck = sum(entry.fault.kind in ("kill", "hang") for entry in self.injector.struck)
        if down.final and planned + struck <= RESTART.max_restarts:
            raise SimulationError(f"{down.worker} is given up: {down.reason}")


def _victim(entry: Struck) -> str:
    """The role of the actor that the fault struck."""
    return entry.boundary.sender if entry.fault.side == "sender" else entry.boundary.receiver
