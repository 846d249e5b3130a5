"""What no stream shows: lost and repeated messages, and deaths of scheduler and transfer, each at a chosen moment."""

from collections import Counter
from collections.abc import Callable, Iterator
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
from tests.simulation.loop import SimulationError
from tests.simulation.system import SimSystem
from tests.simulation.test_simulation import planned, workload
from tests.simulation.workload import PlannedRequest, Workload

TOPOLOGIES = ("prefill=1,decode=1", "prefill=2,decode=2", "mixed=2")
SETTLE_S = 90.0
LATE_S = 0.7
FROM_CLIENTS = ("Submit", "Disconnect", "Drain", "GetStatus")
LOSABLE = (
    "Admit", "Refused", "AbortGroup", "SchedulerReport", "Reserve", "Reserved", "ReserveRefused", "Inventory",
    "PrefixesChanged", "ResendPrefixes", "StartPrefill", "Cancel", "Released", "MoveChunk", "KvChunkReady",
    "ChunkAcked", "StartDecode", "StartAcked", "PrefillStarted", "DecodeStarted", "TokensSampled", "Preempted",
    "WorkerUp",
)  # fmt: skip

Strike = Callable[[Address, Address, Message, int], str | None]
"""What becomes of the n-th message of its type: None, "drop", "twice" or "late" (its copy is)."""


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
    """A system on whose links things happen; `struck` counts them."""

    def __init__(self, load: Workload, strike: Strike) -> None:
        super().__init__(load)
        self.strike = strike
        self.struck = 0
        self.survivors: set[Address] = set()
        self.seen: Counter[str] = Counter()
        self._transmit = self.carrier.transmit
        self.carrier.transmit = self._struck  # type: ignore[method-assign]
        self.attempts.slack_s = 60.0
        self.timings.exact = False

    def _struck(self, source: Address, inbox: object, message: Message) -> None:
        name = type(message).__name__
        fate = None
        if not {source.split("/")[0], inbox.address.split("/")[0]} & {"client"}:  # type: ignore[attr-defined]
            self.seen[name] += 1
            fate = self.strike(source, inbox.address, message, self.seen[name])  # type: ignore[attr-defined]
        self.struck += fate is not None
        if fate == "drop":
            self.carrier.lose(source, inbox, message)  # type: ignore[arg-type]
            return
        self._transmit(source, inbox, message)  # type: ignore[arg-type]
        if fate in ("twice", "late"):
            self.carrier.loop.after(0.0 if fate == "twice" else LATE_S, lambda: self._repeat(source, inbox, message))

    def _repeat(self, source: Address, inbox: object, message: Message) -> None:
        """The same message once more, which nobody has sent."""
        observers, self.carrier.observers = self.carrier.observers, []
        if inbox.claim(message):  # type: ignore[attr-defined]
            self._transmit(source, inbox, message)  # type: ignore[arg-type]
        self.carrier.observers = observers

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


def no_strike(source: Address, target: Address, message: Message, number: int) -> str | None:
    return None


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


def at(name: str, number: int, fate: str) -> Strike:
    def strike(source: Address, target: Address, message: Message, count: int) -> str | None:
        return fate if type(message).__name__ == name and count == number else None

    return strike


def undisturbed(load: Workload) -> Counter[str]:
    """How many messages of each type there are."""
    return finish(Struck(load, no_strike)).seen


def moments(count: int) -> Iterator[int]:
    yield from sorted({1, 1 + count // 2, max(1, count)})


LOADS = {
    "calm": lambda topology: workload(topology, traffic()),
    "tight": lambda topology: workload(topology, traffic(), num_pages=24, num_rows=6),
    "leaving": lambda topology: workload(topology, traffic(behaviour="leaves", leave_at=("Delta", 4))),
}


@pytest.mark.parametrize(
    ("kind", "fate"),
    [("calm", "drop"), ("tight", "drop"), ("leaving", "drop"), ("tight", "twice"), ("tight", "late")],
)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_message_that_is_lost_or_comes_twice_shows_in_no_stream(topology: str, kind: str, fate: str) -> None:
    load = LOADS[kind](topology)
    counts = undisturbed(load)
    struck = 0
    for name in LOSABLE:
        for number in moments(counts[name]) if counts[name] else ():
            try:
                struck += finish(Struck(load, at(name, number, fate))).struck
            except AssertionError as error:
                raise AssertionError(f"{fate} {name} {number}: {error}") from error
    assert struck > 20


# --- deaths


DEATHS_S = (0.02, 0.08, 0.2, 0.5)


def struck_dead(load: Workload, *deaths: tuple[float, Address]) -> Struck:
    """Runs with these deaths at these times, in seconds, of actors that wait for a message."""
    system = Struck(load, no_strike)
    for at_s, address in deaths:
        system.carrier.loop.after(at_s, partial(system.kill, address))
    return finish(system)


@pytest.mark.parametrize("address", [SCHEDULER, TRANSFER])
@pytest.mark.parametrize("kind", list(LOADS))
@pytest.mark.parametrize("topology", TOPOLOGIES[:2])
def test_scheduler_and_transfer_die_and_no_stream_shows_it(topology: str, kind: str, address: Address) -> None:
    moments = [(at_s,) for at_s in DEATHS_S] + [(DEATHS_S[1], DEATHS_S[1] + 0.6)]
    lives = [
        struck_dead(LOADS[kind](topology), *((at_s, address) for at_s in when)).actors[address] for when in moments
    ]
    assert sum(life.epoch - 1 for life in lives) == 6


def test_a_scheduler_that_comes_back_goes_on_with_what_runs() -> None:
    """Nothing has to be started again but what was only on its way."""
    params = SamplingParams(seed=1, max_tokens=60)
    load = workload("prefill=1,decode=1", (planned("r0", 1, params=params), planned("r1", 2, params=params)))
    system = struck_dead(load, (0.5, SCHEDULER))
    assert system.seen["Admit"] == 2
    assert "Preempted" not in system.seen


def test_a_scheduler_that_dies_too_often_ends_the_system() -> None:
    system = Struck(workload("prefill=1,decode=1", (planned("r0", 1),)), no_strike)
    ended: list[Address] = []
    system.carrier.on_death = lambda address, error: ended.append(address)
    for number in range(4):
        system.carrier.loop.after(0.01 + 4.0 * number, partial(system.kill, SCHEDULER))
    system.carrier.loop.run_until(lambda: SCHEDULER in ended, 60.0, 100_000)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_death_that_nobody_is_told_of_is_learnt_from_the_next_life(topology: str) -> None:
    """No `WorkerDown` arrives; the new life's first report tells that there was one before."""
    for name in [part.name for part in parse_topology(topology).slices]:
        for at_s in DEATHS_S[:3]:
            system = Struck(workload(topology, traffic()), drops("WorkerDown"))
            system.carrier.loop.after(at_s, partial(system.kill, Address(name)))
            finish(system)


@pytest.mark.parametrize("topology", TOPOLOGIES[1:])
def test_a_worker_that_falls_silent_is_taken_for_dead_and_is_welcome_back(topology: str) -> None:
    """Nothing that it says to the scheduler arrives for a while, although it works on."""
    victim = "mixed.0" if topology.startswith("mixed") else "decode.0"

    def strike(source: Address, target: Address, message: Message, count: int) -> str | None:
        silent = 0.1 < system.carrier.loop.now < 20.0
        return "drop" if silent and source == victim and target == SCHEDULER else None

    system = Struck(workload(topology, traffic()), strike)
    system.carrier.loop.after(25.0, lambda: None)
    finish(system)
    system = Struck(workload(topology, traffic()), strike)
    system.carrier.loop.run_until(lambda: system.carrier.loop.now > 15.0, 100.0, 100_000)
    assert not system.scheduler.workers[Address(victim)].alive
    system.carrier.loop.run_until(lambda: system.carrier.loop.now > 23.0, 100.0, 100_000)
    assert system.scheduler.workers[Address(victim)].alive
    finish(system)


def drops(*names: str) -> Strike:
    """All messages of these types are lost."""
    return lambda source, target, message, count: "drop" if type(message).__name__ in names else None


# --- hangs


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_hang_of_whatever_length_ends_and_its_slice_is_back(topology: str) -> None:
    """The call is given up after ten seconds; the worker comes back when it returns, minutes later, and serves."""
    for name in [part.name for part in parse_topology(topology).slices]:
        load = workload(topology, (*traffic(), planned("late", 99, arrival_s=400.0)))
        load = msgspec.structs.replace(load, step_timeout_s=12.0, hangs={name: (0.15, 380.0)})
        system = finish(Struck(load, no_strike))
        assert system.survivors == {part.name for part in parse_topology(topology).slices}


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("until_s", [5.0, 45.0, 300.0])
def test_transfer_lanes_that_hang_delay_and_lose_nothing(lanes: int, until_s: float) -> None:
    system = Struck(workload("prefill=1,decode=1", traffic()), no_strike)
    for lane in range(lanes):
        held = system.carrier.lane(f"transfer/prefill.0->decode.0/{lane}")
        system.carrier.loop.after(0.05, partial(held.hold, True))
        system.carrier.loop.after(until_s, partial(held.hold, False))
    finish(system)


def test_a_gap_in_a_stream_is_left_by_another_attempt() -> None:
    """The token is lost, those behind it are not: nothing else than time tells the gateway."""
    params = SamplingParams(seed=3, max_tokens=40)
    load = workload("prefill=1,decode=1", (planned("r0", 3, params=params),))
    system = finish(Struck(load, at("TokensSampled", 5, "drop")))
    assert system.seen["Admit"] == 2
    assert system.struck == 1


def test_a_copy_that_lies_there_is_told_of_again_and_not_made_again() -> None:
    handles: list[int] = []

    def strike(source: Address, target: Address, message: Message, count: int) -> str | None:
        handles.extend([message.handle] if isinstance(message, KvChunkReady) else [])
        return "drop" if isinstance(message, KvChunkReady) and count == 1 else None

    system = finish(Struck(workload("prefill=1,decode=1", (planned("r0", 1),)), strike))
    assert Counter(handles)[handles[0]] == 2
    assert len(set(handles)) == len(handles) - 1
    assert system.seen["Admit"] == 1
