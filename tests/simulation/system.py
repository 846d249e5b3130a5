"""The whole server on the deterministic carrier: gateway, scheduler, transfer and workers over fake engines."""

from collections.abc import Mapping

from actors.gateway import GatewayActor
from actors.messages import GATEWAY, SCHEDULER, TRANSFER, Address, MailboxClass
from actors.scheduler import SchedulerActor
from actors.transfer import TransferActor
from actors.worker import WorkerActor, WorkerOptions
from runtime.pages import PagePool
from runtime.topology import parse_topology
from tests.simulation.carrier import Carrier
from tests.simulation.clients import SimClient
from tests.simulation.fake_engine import FakeEngine, FakeMover
from tests.simulation.fake_tokens import FakeText
from tests.simulation.workload import Workload

ROOM: Mapping[MailboxClass, int] = {"control": 1024, "cancel": 1024, "token": 1024, "work": 1024}


class SimSystem:
    """Everything of one run, built and started."""

    def __init__(self, workload: Workload, live_trace: bool = False) -> None:
        self.workload = workload
        self.carrier = Carrier(workload.seed, live_trace)
        self.engines: dict[str, FakeEngine] = {}
        self.workers: list[WorkerActor] = []
        self.clients = [SimClient(plan, self.carrier.loop) for plan in workload.requests]
        self.gateway = GatewayActor(FakeText, workload.max_requests)
        self.scheduler = SchedulerActor(workload.max_queued, workload.decode_reserve_tokens)
        self.transfer = TransferActor(FakeMover(self.engines))
        self.carrier.start(GATEWAY, self.gateway.run, ROOM)
        self.carrier.start(SCHEDULER, self.scheduler.run, ROOM)
        self.carrier.start(TRANSFER, self.transfer.run, ROOM)
        for part in parse_topology(workload.topology).slices:
            worker = self._make_worker(Address(part.name), part.role)
            self.workers.append(worker)
            self.carrier.start(worker.address, worker.run, ROOM)
        for client in self.clients:
            self.carrier.observers.append(client.observe)
            self.carrier.start(client.address, client.run, client.capacity)

    def _make_worker(self, address: Address, role: str) -> WorkerActor:
        random = self.carrier.loop.random

        def later(catch_up: object) -> None:
            if random.random() < 0.3:
                assert callable(catch_up)
                self.carrier.loop.after(random.uniform(0.0, 0.05), catch_up)

        engine = FakeEngine(address, self.workload.spec, later)
        pool = PagePool(self.workload.spec.num_pages, engine.pages.poison)
        engine.pages.is_free = lambda page: page in pool._free
        self.engines[address] = engine
        options = WorkerOptions(staged_per_decode=self.workload.staged_per_decode)
        return WorkerActor(address, role, engine, pool, options)  # type: ignore[arg-type]

    def clients_done(self) -> bool:
        """Whether every client has what it will get."""
        for _, address, _ in self.carrier.refused:
            for client in self.clients:
                client.cut_off |= client.address == address
        return all(client.done for client in self.clients)
