"""What the sweep does not strike: deaths in a row, deaths and silences that nobody is told of, and long hangs.

Here the moment is a time and not a message.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

import msgspec
import pytest

from actors.messages import SCHEDULER, TRANSFER, Address, KvChunkReady, Message, WorkerDown
from runtime.sampling_params import SamplingParams
from runtime.topology import parse_topology
from tests.simulation.checks import (
    check_carrier_at_rest,
    check_client,
    check_engines,
    check_gateway_at_rest,
    check_pages,
    check_scheduler_at_rest,
    check_worker_at_rest,
)
from tests.simulation.faults import Boundary, is_struck, parse_fault
from tests.simulation.harness import run_workload
from tests.simulation.links import Inbox
from tests.simulation.loop import SimulationError
from tests.simulation.system import SimSystem
from tests.simulation.test_simulation import planned, workload
from tests.simulation.workload import PlannedRequest, Workload

TOPOLOGIES = ("prefill=1,decode=1", "prefill=2,decode=2", "mixed=2")
SETTLE_S = 90.0

Loses = Callable[[Address, Address, Message, int], bool]
"""Whether the n-th message of its type is lost."""


def traffic(**changes: object) -> tuple[PlannedRequest, ...]:
    """Requests of one to three choices, with penalties, logprobs and stop strings; some leave."""
    params = SamplingParams(seed=1, max_tokens=20, presence_penalty=0.5, logprobs=1, min_tokens=3)
    return tuple(
        planned(
            f"r{n}",
            n,
            num_choices=1 + n % 3,
            arrival_s=0.03 * n,
            params=msgspec.structs.replace(params, seed=n),
            stop=("ab", "cc") if n % 2 else (),
            **changes,
        )
        for n in range(6)
    )


class Struck(SimSystem):
    """A system whose actors die at given times and whose links lose messages; `lost` counts them."""

    def __init__(self, load: Workload, loses: Loses = lambda source, target, message, number: False) -> None:
        super().__init__(load)
        self.loses = loses
        self.lost = 0
        self.survivors: set[Address] = set()
        self.seen: Counter[str] = Counter()
        self._transmit = self.carrier.transmit
        self.carrier.transmit = self._struck  # type: ignore[method-assign]
        self.attempts.slack_s = 60.0
        self.timings.exact = False

    def _struck(self, source: Address, inbox: Inbox, message: Message) -> None:
        name = type(message).__name__
        self.seen[name] += 1
        if is_struck(Boundary.of(source, inbox.address, message)) and self.loses(
            source, inbox.address, message, self.seen[name]
        ):
            self.lost += 1
            self.carrier.lose(source, inbox, message)
        else:
            self._transmit(source, inbox, message)

    def kill(self, address: Address) -> None:
        """The actor dies where it waits; its supervisor lives."""
        waiter = self.carrier.main_task(address).waiting
        if waiter is None or waiter.resolved:
            self.carrier.loop.after(0.001, partial(self.kill, address))
        else:
            waiter.resolve(error=RuntimeError("struck dead"))

    def _check_deaths(self, source: Address, target: Address, message: Message) -> None:
        """Workers die here of what strikes them."""
        struck = ("struck dead", "DeviceError", "EngineTimeout")
        if isinstance(message, WorkerDown) and not any(reason in message.reason for reason in struck):
            raise SimulationError(f"{message.worker} failed: {message.reason}")


def finish(system: Struck) -> Struck:
    """Runs until every client has its answer and everything is at rest, and checks both."""
    loop = system.carrier.loop
    try:
        loop.on_step = lambda: check_engines(system.engines.values())
        loop.run_until(system.clients_done, 500.0, 200_000)
        for client in system.clients:
            check_client(client, system.workload)
            assert client.left or client.terminals, client.plan.request
        settled_s = loop.now + SETTLE_S
        while loop.now < settled_s and not at_rest(system):
            moment_s = loop.now + 1.0
            loop.after(1.0, lambda: None)
            loop.run_until(lambda: loop.now >= moment_s, 1000.0, 200_000)  # noqa: B023
        loop.run_until(loop.is_idle, 1000.0, 200_000)
        check_rest(system)
        system.survivors = {worker.address for worker in system.workers}
        for client in system.clients:
            check_client(client, system.workload)
    except Exception as error:
        raise AssertionError(f"{error}\n{system.carrier.trace.text(150)}") from error
    finally:
        for address in list(system.carrier.inboxes):
            system.carrier.kill(address)
    return system


def at_rest(system: Struck) -> bool:
    try:
        check_rest(system)
    except AssertionError:
        return False
    return system.carrier.loop.is_idle()


def check_rest(system: Struck) -> None:
    check_pages(system.workers)
    check_carrier_at_rest(system.carrier)
    check_gateway_at_rest(system.gateway)
    for worker in system.workers:
        check_worker_at_rest(worker, system.engines[worker.address])
    check_scheduler_at_rest(system.scheduler, system.workers)


LOADS = {
    "tight": lambda topology: workload(topology, traffic(), num_pages=24, num_rows=6),
    "leaving": lambda topology: workload(topology, traffic(behaviour="leaves", leave_at=("Delta", 4))),
}


# --- deaths


DEATHS_S = (0.02, 0.08, 0.2)


def struck_dead(load: Workload, *deaths: tuple[float, Address]) -> Struck:
    """Runs with these deaths at these times, in seconds, of actors that wait for a message."""
    system = Struck(load)
    for at_s, address in deaths:
        system.carrier.loop.after(at_s, partial(system.kill, address))
    return finish(system)


@pytest.mark.parametrize("address", [SCHEDULER, TRANSFER])
@pytest.mark.parametrize("kind", list(LOADS))
def test_scheduler_and_transfer_die_twice_and_no_stream_shows_it(kind: str, address: Address) -> None:
    for at_s in DEATHS_S[:2]:
        system = struck_dead(LOADS[kind]("prefill=2,decode=2"), (at_s, address), (at_s + 0.6, address))
        assert system.actors[address].epoch == 3


def test_a_scheduler_that_comes_back_goes_on_with_what_runs() -> None:
    """Nothing has to be started again but what was only on its way."""
    params = SamplingParams(seed=1, max_tokens=60)
    load = workload("prefill=1,decode=1", (planned("r0", 1, params=params), planned("r1", 2, params=params)))
    system = struck_dead(load, (0.5, SCHEDULER))
    assert system.seen["Admit"] == 2
    assert "Preempted" not in system.seen


def test_a_scheduler_that_dies_too_often_ends_the_system() -> None:
    system = Struck(workload("prefill=1,decode=1", (planned("r0", 1),)))
    ended: list[Address] = []
    system.carrier.on_death = lambda address, error: ended.append(address)
    for number in range(4):
        system.carrier.loop.after(0.01 + 4.0 * number, partial(system.kill, SCHEDULER))
    system.carrier.loop.run_until(lambda: SCHEDULER in ended, 60.0, 100_000)


@pytest.mark.parametrize("topology", TOPOLOGIES[1:])
def test_a_death_that_nobody_is_told_of_is_learnt_from_the_next_life(topology: str) -> None:
    """No `WorkerDown` arrives; the new life's first report tells that there was one before."""
    for name in [part.name for part in parse_topology(topology).slices]:
        for at_s in DEATHS_S[1:]:
            system = Struck(workload(topology, traffic()), is_obituary)
            system.carrier.loop.after(at_s, partial(system.kill, Address(name)))
            finish(system)


@pytest.mark.parametrize("topology", TOPOLOGIES[1:])
def test_a_worker_that_falls_silent_is_taken_for_dead_and_is_welcome_back(topology: str) -> None:
    """Nothing that it says to the scheduler arrives for a while, although it works on."""
    victim = "mixed.0" if topology.startswith("mixed") else "decode.0"

    def loses(source: Address, target: Address, message: Message, count: int) -> bool:
        return 0.1 < system.carrier.loop.now < 20.0 and source == victim and target == SCHEDULER

    system = Struck(workload(topology, traffic()), loses)
    system.carrier.loop.after(25.0, lambda: None)
    system.carrier.loop.run_until(lambda: system.carrier.loop.now > 15.0, 100.0, 100_000)
    assert not system.scheduler.workers[Address(victim)].alive
    system.carrier.loop.run_until(lambda: system.carrier.loop.now > 23.0, 100.0, 100_000)
    assert system.scheduler.workers[Address(victim)].alive
    finish(system)


def is_obituary(source: Address, target: Address, message: Message, count: int) -> bool:
    return isinstance(message, WorkerDown)


# --- hangs


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_hang_of_whatever_length_ends_and_its_slice_is_back(topology: str) -> None:
    """The call is given up after ten seconds; the worker comes back when it returns, long after, and serves."""
    for name in [part.name for part in parse_topology(topology).slices]:
        load = workload(topology, (*traffic(), planned("late", 99, arrival_s=90.0)))
        load = msgspec.structs.replace(load, step_timeout_s=12.0, hangs={name: (0.15, 70.0)})
        system = finish(Struck(load))
        assert system.survivors == {part.name for part in parse_topology(topology).slices}


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("until_s", [5.0, 45.0, 300.0])
def test_transfer_lanes_that_hang_delay_and_lose_nothing(lanes: int, until_s: float) -> None:
    system = Struck(workload("prefill=1,decode=1", traffic()))
    for lane in range(lanes):
        held = system.carrier.lane(f"transfer/prefill.0->decode.0/{lane}")
        system.carrier.loop.after(0.05, partial(held.hold, True))
        system.carrier.loop.after(until_s, partial(held.hold, False))
    finish(system)


# --- single messages


def test_a_gap_in_a_stream_is_left_by_another_attempt() -> None:
    """The token is lost, those behind it are not: nothing else than time tells the gateway."""
    params = SamplingParams(seed=3, max_tokens=40)
    load = workload("prefill=1,decode=1", (planned("r0", 3, params=params),))
    faults = (parse_fault("drop:TokensSampled:decode:gateway:4:0"),)
    assert run_workload(msgspec.structs.replace(load, faults=faults)).messages["Admit"] == 2


def test_a_copy_that_lies_there_is_told_of_again_and_not_made_again() -> None:
    handles: list[int] = []

    def observe(source: Address, target: Address, message: Message) -> None:
        handles.extend([message.handle] if isinstance(message, KvChunkReady) else [])

    load = workload("prefill=1,decode=1", (planned("r0", 1),))
    faults = (parse_fault("drop:KvChunkReady:transfer:decode:1:0"),)
    outcome = run_workload(msgspec.structs.replace(load, faults=faults), observers=(observe,))
    assert Counter(handles)[handles[0]] == 2
    assert len(set(handles)) == len(handles) - 1
    assert outcome.messages["Admit"] == 1
