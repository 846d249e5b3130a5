"""Workers are drained and taken back under load: every answer is exact, and in the end nothing is left."""

from random import Random

import msgspec
import pytest

from actors.messages import SCHEDULER, Address
from runtime.engine import EngineSpec
from runtime.sampling_params import SamplingParams
from runtime.topology import parse_topology
from tests.simulation import harness
from tests.simulation.fake_tokens import VOCAB_SIZE
from tests.simulation.faults import parse_fault
from tests.simulation.harness import Outcome
from tests.simulation.operators import Operator, Order
from tests.simulation.system import SimSystem
from tests.simulation.workload import PlannedRequest, Workload

SPEC = EngineSpec(
    page_size=4,
    num_pages=400,
    num_rows=24,
    max_context_tokens=256,
    vocab_size=VOCAB_SIZE,
    chunk_tokens=8,
    max_prefill_segments=4,
    page_bytes=1,
)
PATIENT_S, AT_ONCE_S = 500.0, 0.001


def _workload(topology: str, seed: int, *, num_requests: int = 8, max_tokens: int = 40) -> Workload:
    """Requests that come one after the other for as long as the first ones run."""
    random, requests = Random(f"drain {seed}"), list[PlannedRequest]()
    for index in range(num_requests):
        prompt = tuple(random.randrange(2, VOCAB_SIZE) for _ in range(random.randint(5, 40)))
        params = SamplingParams(seed=index, max_tokens=max_tokens, presence_penalty=0.5, logprobs=1)
        requests.append(
            PlannedRequest(
                request=f"r{index}",
                arrival_s=0.05 * index,
                prompt=prompt,
                params=params,
                num_choices=1 + index % 3,
            )
        )
    return Workload(seed=seed, topology=topology, spec=SPEC, requests=tuple(requests))


def _run(load: Workload, *orders: Order) -> tuple[Outcome, SimSystem, Operator]:
    """To rest; then all orders have been answered."""
    system = SimSystem(msgspec.structs.replace(load, orders=orders))
    return harness._run(system), system, system.operator


def _state(system: SimSystem, worker: str) -> str:
    status = system.gateway.board.status(Address(worker))
    assert status is not None
    return status.state


def _wait(system: SimSystem, seconds: float) -> None:
    loop = system.carrier.loop
    until = loop.now + seconds
    loop.after(seconds, lambda: None)
    loop.run_until(lambda: loop.now >= until, 1e6, 200_000)


def drainable() -> list[tuple[str, str]]:
    topologies = ("prefill=2,decode=2", "mixed=2")
    return [(topology, part.name) for topology in topologies for part in parse_topology(topology).slices]


@pytest.mark.parametrize(("topology", "worker"), drainable())
@pytest.mark.parametrize("at_s", [0.0, 0.3])
def test_a_patient_drain_lets_everything_finish_where_it_is(topology: str, worker: str, at_s: float) -> None:
    outcome, system, operator = _run(_workload(topology, 1), (at_s, worker, PATIENT_S))
    assert outcome.completed == 8
    assert operator.answers[0].error is None
    assert "Preempted" not in outcome.messages
    assert operator.placed_on(worker, at_s + 0.5) == 0
    _wait(system, 5.0)
    assert _state(system, worker) == "drained"


@pytest.mark.parametrize(("topology", "worker"), drainable())
@pytest.mark.parametrize("at_s", [0.06, 0.5])
def test_what_still_runs_in_the_end_is_moved_and_no_client_notices(topology: str, worker: str, at_s: float) -> None:
    moved = 0
    for seed in range(2):
        load = _workload(topology, seed, max_tokens=60)
        outcome, system, _ = _run(load, (at_s, worker, AT_ONCE_S))
        assert outcome.completed == 8
        moved += outcome.messages.get("Preempted", 0)
        _wait(system, 5.0)
        assert _state(system, worker) == "drained"
    assert moved > 0 or at_s < 0.1 or worker.startswith("prefill"), "there was something to move"


@pytest.mark.parametrize(("topology", "worker"), drainable())
@pytest.mark.parametrize(
    ("timeout_s", "at_s", "back_s"),
    [(AT_ONCE_S, 0.05, 0.06), (PATIENT_S, 0.05, 0.06), (AT_ONCE_S, 0.3, 1.5), (PATIENT_S, 0.2, 4.0)],
)
def test_a_worker_that_is_taken_back_serves_again(
    topology: str, worker: str, timeout_s: float, at_s: float, back_s: float
) -> None:
    load = _workload(topology, 1, num_requests=6)
    late = tuple(
        msgspec.structs.replace(planned, request=f"late-{planned.request}", arrival_s=8.0 + planned.arrival_s)
        for planned in _workload(topology, 2, num_requests=6).requests
    )
    load = msgspec.structs.replace(load, requests=load.requests + late)
    outcome, system, operator = _run(load, (at_s, worker, timeout_s), (back_s, worker, None))
    assert outcome.completed == 12
    assert _state(system, worker) == "up"
    assert operator.placed_on(worker, 8.0) > 0
    assert [answer.error for answer in operator.answers] == [None, None]


@pytest.mark.parametrize(
    ("topology", "first", "last"), [("prefill=2,decode=2", "decode.0", "decode.1"), ("mixed=2", "mixed.0", "mixed.1")]
)
def test_the_last_of_a_path_is_refused_and_serves_on(topology: str, first: str, last: str) -> None:
    outcome, system, operator = _run(_workload(topology, 3), (0.1, first, AT_ONCE_S), (0.2, last, AT_ONCE_S))
    assert outcome.completed == 8
    (granted, refused) = operator.answers
    assert granted.error is None
    assert refused.error is not None
    assert (refused.error.status, refused.error.code) == (409, "last_worker")
    assert _state(system, last) == "up"


@pytest.mark.parametrize(("topology", "worker"), drainable())
def test_a_draining_worker_may_die(topology: str, worker: str) -> None:
    for step in (2, 12):
        load = msgspec.structs.replace(_workload(topology, step), failing_steps={worker: (step,)})
        outcome, _, operator = _run(load, (0.1, worker, PATIENT_S))
        assert outcome.completed == 8
        assert operator.answers[0].error is None


# --- orders and the scheduler may be lost


def _long(topology: str) -> Workload:
    """One more request, so that the run goes on until every report has come."""
    load = _workload(topology, 4)
    last = msgspec.structs.replace(load.requests[0], request="last", arrival_s=12.0)
    return msgspec.structs.replace(load, requests=(*load.requests, last))


@pytest.mark.parametrize(("topology", "worker"), [("prefill=2,decode=2", "decode.1"), ("mixed=2", "mixed.0")])
@pytest.mark.parametrize(("kind", "for_s"), [("drop", 0.0), ("duplicate", 0.0), ("duplicate", 0.7)])
def test_an_order_that_is_lost_or_comes_again_holds_all_the_same(
    topology: str, worker: str, kind: str, for_s: float
) -> None:
    orders = ("DrainWorker", "ResumeWorker")
    faults = tuple(parse_fault(f"{kind}:{order}:gateway:scheduler:1:{for_s}") for order in orders)
    load = msgspec.structs.replace(_long(topology), faults=faults)
    _, system, operator = _run(load, (0.05, worker, AT_ONCE_S), (0.1, worker, None), (6.0, worker, PATIENT_S))
    assert len(system.injector.struck) == 2
    assert [answer.error for answer in operator.answers] == [None] * 3
    assert system.scheduler.drains.drained == {worker}
    assert _state(system, worker) == "drained"


@pytest.mark.parametrize(("topology", "worker"), [("prefill=2,decode=2", "prefill.0"), ("mixed=2", "mixed.1")])
@pytest.mark.parametrize("at", ["DrainWorker:gateway:scheduler:1", "Released:*:scheduler:3"])
def test_a_new_scheduler_is_told_of_drains(topology: str, worker: str, at: str) -> None:
    load = msgspec.structs.replace(_long(topology), faults=(parse_fault(f"kill:{at}:0:receiver:after"),))
    _, system, _ = _run(load, (0.02, worker, 2.0))
    assert system.actors[SCHEDULER].epoch == 2
    assert system.scheduler.drains.workers == (worker,)
    assert _state(system, worker) == "drained"
