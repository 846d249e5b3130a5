"""What no stream shows: lost and repeated messages, and deaths of scheduler and transfer, each at a chosen moment."""

from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest

from actors.messages import Address, Message
from runtime.sampling_params import SamplingParams
from tests.simulation.checks import (
    check_carrier_at_rest,
    check_client,
    check_engines,
    check_gateway_at_rest,
    check_pages,
    check_scheduler_at_rest,
    check_worker_at_rest,
)
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
        assert waiter is not None
        waiter.resolve(error=RuntimeError("struck dead"))

    def _check_deaths(self, source: Address, target: Address, message: Message) -> None:
        """Workers may die here."""


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


@pytest.mark.parametrize("fate", ["drop", "twice", "late"])
@pytest.mark.parametrize("kind", list(LOADS))
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
