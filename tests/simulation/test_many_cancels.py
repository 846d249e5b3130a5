"""Ten thousand requests in one run, most of which their clients leave at some stage: nothing of them stays behind."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from random import Random

import pytest

from actors.context import ArrayTable
from actors.messages import Address, Completed, Failed, Key, Message, TokensSampled
from actors.transfer import MOVES_PER_PAIR
from runtime.engine import EngineSpec
from runtime.sampling_params import SamplingParams
from tests.simulation import checks
from tests.simulation.clients import SimClient
from tests.simulation.fake_tokens import VOCAB_SIZE
from tests.simulation.system import SimSystem
from tests.simulation.workload import CANCEL_MOMENTS, Behaviour, PlannedRequest, Workload

NUM_REQUESTS = 10_000
RATE_PER_S = 60.0
LEAVES = 0.75
TIMEOUT_S = 30.0
MAX_QUEUED = 12
SPEC = EngineSpec(
    page_size=4,
    num_pages=30,
    num_rows=6,
    max_context_tokens=64,
    vocab_size=VOCAB_SIZE,
    chunk_tokens=8,
    max_prefill_segments=4,
    page_bytes=1,
)
RARE = {"Preempted", "AbortGroup"}
"""Stages that only some requests come to."""


def drawn(index: int, random: Random) -> PlannedRequest:
    """A small request; who leaves does so when some message about it is sent."""
    behaviour: Behaviour = "leaves" if random.random() < LEAVES else "patient"
    return PlannedRequest(
        request=f"r{index}",
        arrival_s=0.0,
        prompt=tuple(random.randrange(2, VOCAB_SIZE) for _ in range(random.choice((1, 3, 5, 12)))),
        params=SamplingParams(seed=index, max_tokens=random.choice((1, 2, 4, 8))),
        num_choices=random.choice((1, 1, 1, 2)),
        behaviour=behaviour,
        leave_at=(random.choice(CANCEL_MOMENTS), random.choice((1, 1, 1, 2))),
        queue_timeout_s=TIMEOUT_S,
        progress_timeout_s=TIMEOUT_S,
    )


class Crowd:
    """Starts clients one after another on a running system, and looks after each when it has ended."""

    def __init__(self, system: SimSystem, count: int) -> None:
        self._system, self._left_to_start = system, count
        self._random = Random("crowd")
        self.here: dict[str, SimClient] = {}
        self.ends = Counter[str]()
        self.left_at = Counter[str]()
        system.carrier.observers.append(self._observe)
        self._start_next(0)

    @property
    def is_gone(self) -> bool:
        """Whether everybody has come and left."""
        return not self.here and not self._left_to_start

    def look_after(self) -> None:
        """Checks those who are done, and takes their inboxes away, as an HTTP edge does."""
        refused = {address for _, address, _ in self._system.carrier.refused}
        self._system.carrier.refused.clear()
        assert not [address for address in refused if not address.startswith("client/")]
        for client in [client for client in self.here.values() if client.done]:
            self._check(client)
            del self.here[client.plan.request]
            self._system.carrier.kill(client.address)

    def _check(self, client: SimClient) -> None:
        end = client.terminals[0] if client.terminals else None
        if isinstance(end, Failed):
            assert (end.error.status, len(client.events)) == (429, 1), end
        else:
            checks.check_client(client, self._system.workload)
        self.ends[end.error.code if isinstance(end, Failed) else type(end).__name__] += 1
        if client.left and end is None:
            self.left_at[client.plan.leave_at[0]] += 1

    def _start_next(self, index: int) -> None:
        client = SimClient(drawn(index, self._random), self._system.carrier.loop)
        self.here[client.plan.request] = client
        self._system.carrier.start(client.address, client.run, client.capacity)
        self._left_to_start -= 1
        if self._left_to_start:
            wait_s = self._random.expovariate(RATE_PER_S)
            self._system.carrier.loop.after(wait_s, partial(self._start_next, index + 1))

    def _observe(self, source: Address, target: Address, message: Message) -> None:
        for request in requests_of(message):
            client = self.here.get(request)
            if client is not None:
                client.observe(source, target, message)


def requests_of(message: Message) -> Iterator[str]:
    """Requests that the message is about."""
    if isinstance(message, TokensSampled):
        yield from {token.key.request for token in message.tokens}
    elif isinstance(key := getattr(message, "key", None), Key):
        yield key.request
    elif isinstance(request := getattr(message, "request", None), str):
        yield request


def until(system: SimSystem, time_s: float) -> None:
    """Lets the clock run on."""
    loop = system.carrier.loop
    loop.after(time_s - loop.now, lambda: None)
    loop.run_until(lambda: loop.now >= time_s, time_s + 1.0, 10_000_000)


def run(count: int) -> Crowd:
    """Lets so many clients come and go, and checks that everything is at rest and as it was before them."""
    workload = Workload(
        seed=7, topology="prefill=1,decode=2", spec=SPEC, requests=(), max_queued=MAX_QUEUED, decode_reserve_tokens=2
    )
    system = SimSystem(workload)
    carrier, loop = system.carrier, system.carrier.loop
    until(system, 1.0)
    tasks, inboxes = {task.name for task in loop.tasks}, set(carrier.inboxes)
    crowd = Crowd(system, count)

    def check_step() -> None:
        if loop.steps % 97 == 0:
            crowd.look_after()
            checks.check_pages(system.workers)

    loop.on_step = check_step
    loop.run_until(lambda: crowd.is_gone, 10_000.0, 20_000_000)
    until(system, loop.now + 2 * TIMEOUT_S)
    checks.check_engines(system.engines.values())
    checks.check_carrier_at_rest(carrier)
    checks.check_gateway_at_rest(system.gateway)
    for worker in system.workers:
        checks.check_worker_at_rest(worker, system.engines[worker.address])
    checks.check_scheduler_at_rest(system.scheduler, system.workers)
    assert {task.name for task in loop.tasks} == tasks
    assert set(carrier.inboxes) == inboxes
    assert len(carrier.lanes) <= len(system.engines) + 2 * MOVES_PER_PAIR, "a lane is a thread"
    assert not system.gateway._deadlines
    return crowd


@pytest.mark.slow
def test_ten_thousand_requests_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was cancelled is remembered for a while, so that a late message makes no zombie."""
    monkeypatch.setattr(checks, "_MAX_TOMBSTONES", NUM_REQUESTS)
    crowd = run(NUM_REQUESTS)
    assert crowd.ends.total() == NUM_REQUESTS
    assert set(crowd.ends) <= {Completed.__name__, "NoneType", "queue_full", "queue_slow"}, crowd.ends
    assert crowd.ends[Completed.__name__] > NUM_REQUESTS / 10
    few = {moment: crowd.left_at[moment] for moment in CANCEL_MOMENTS if crowd.left_at[moment] < 50}
    assert set(few) <= RARE, few


def test_a_planted_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Staged chunks that were acknowledged stay in the table."""
    monkeypatch.setattr(ArrayTable, "drop", lambda self, handle: None)
    with pytest.raises(AssertionError, match="arrays are left"):
        run(60)
