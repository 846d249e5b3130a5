"""The whole server on the deterministic carrier: the same wiring as every other carrier, over fake engines."""

from collections.abc import Callable
from functools import partial

from actors.gateway import GatewayActor
from actors.messages import GATEWAY, SCHEDULER, Address, Message, WorkerDown
from actors.scheduler import SchedulerActor
from actors.supervisor import ActorSupervisor, WorkerSupervisor
from actors.wiring import SystemOptions, wire
from actors.worker import WorkerActor, WorkerOptions
from runtime.pages import PagePool
from runtime.topology import parse_topology
from tests.simulation.carrier import Carrier
from tests.simulation.clients import SimClient
from tests.simulation.fake_engine import FakeEngine, FakeMover
from tests.simulation.fake_tokens import FakeText
from tests.simulation.loop import SimulationError
from tests.simulation.timing_watch import TimingWatch
from tests.simulation.watch import AttemptWatch, ReuseWatch
from tests.simulation.workload import MAX_CHOICES, Workload


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
            worker=WorkerOptions(staged_per_decode=workload.staged_per_decode, step_timeout_s=workload.step_timeout_s),
        )
        specs = wire(self.engines, topology, FakeMover(self.engines), FakeText, options, self._make_pool)
        actors = {spec.address: spec.actor for spec in specs}
        gateway = actors[GATEWAY]
        assert isinstance(gateway, GatewayActor)
        self.gateway = gateway
        self.actors = {name: actor for name, actor in actors.items() if isinstance(actor, ActorSupervisor)}
        self.supervisors = [actor for actor in actors.values() if isinstance(actor, WorkerSupervisor)]
        self.clients = [SimClient(plan, self.carrier.loop) for plan in workload.requests]
        self.carrier.on_death = self._on_death
        for name, steps in workload.failing_steps.items():
            self.engines[name].failing_steps = set(steps)
        for name, (begin_s, end_s) in workload.hangs.items():
            lane = self.carrier.lane(name)
            self.carrier.loop.after(begin_s, partial(lane.hold, True))
            self.carrier.loop.after(end_s, partial(lane.hold, False))
        self.reuse = ReuseWatch()
        self.attempts = AttemptWatch(lambda: self.carrier.loop.now)
        self.timings = TimingWatch(lambda: self.carrier.loop.now)
        self.carrier.observers += [
            self.reuse.observe,
            self._check_deaths,
            self.attempts.observe,
            self.timings.observe,
        ]
        self.carrier.observers += [client.observe for client in self.clients]
        for spec in specs:
            self.carrier.start(spec.address, spec.actor.run, spec.capacity)
        for client in self.clients:
            self.carrier.start(client.address, client.run, client.capacity)

    @property
    def scheduler(self) -> SchedulerActor:
        """The scheduler that runs."""
        scheduler = self.actors[SCHEDULER].actor
        assert isinstance(scheduler, SchedulerActor)
        return scheduler

    @property
    def workers(self) -> list[WorkerActor]:
        """The workers that run, or will again."""
        made = [child.worker for child in self.supervisors if isinstance(child.worker, WorkerActor)]
        return [worker for worker in made if self.carrier.is_running(worker.address)]

    def clients_done(self) -> bool:
        """Whether every client has what it will get."""
        cut_off = {address for _, address, _ in self.carrier.refused}
        for client in self.clients:
            client.cut_off = client.address in cut_off
        return all(client.done for client in self.clients)

    def _make_pool(self, name: str, num_pages: int) -> PagePool:
        pages = self.engines[name].pages
        pool = PagePool(num_pages, pages.poison)
        pages.is_free = lambda page: pool.state(page) in ("free", "cached")
        return pool

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
            planted = "DeviceError" in message.reason or message.reason.startswith("EngineTimeout")
            if planted and message.worker in self.workload.faulty:
                return
            raise SimulationError(f"{message.worker} failed: {message.reason}")
