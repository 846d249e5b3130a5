"""More work than the slices can do: whoever is let in is served in time, whoever is not is told so at once."""

from collections import Counter
from random import Random

import msgspec
import pytest

from actors import scheduler
from actors.messages import Completed, Delta, ErrorInfo, Failed
from runtime.engine import EngineSpec
from runtime.sampling_params import SamplingParams
from tests.simulation import checks
from tests.simulation.fake_tokens import VOCAB_SIZE
from tests.simulation.system import SimSystem
from tests.simulation.workload import PlannedRequest, Workload

SPEC = EngineSpec(
    page_size=4,
    num_pages=60,
    num_rows=4,
    max_context_tokens=64,
    vocab_size=VOCAB_SIZE,
    chunk_tokens=16,
    max_prefill_segments=4,
    page_bytes=1,
)
QUEUE_TIMEOUT_S = 4.0
AT_ONCE_S = 0.5
"""Two ways through the slowest links of a simulated system."""

NUM_REQUESTS = 400
RATE_PER_S = 25.0
"""At least three times what four rows do whose steps take 50 ms."""


def overloaded(topology: str, seed: int) -> SimSystem:
    random = Random(f"overload {topology} {seed}")
    requests = list[PlannedRequest]()
    at_s = 0.0
    for index in range(NUM_REQUESTS):
        at_s += random.expovariate(RATE_PER_S)
        requests.append(
            PlannedRequest(
                request=f"r{index}",
                arrival_s=at_s,
                prompt=tuple(random.randrange(2, VOCAB_SIZE) for _ in range(random.randint(4, 20))),
                params=SamplingParams(seed=index, max_tokens=random.randint(4, 20)),
                num_choices=1,
                queue_timeout_s=QUEUE_TIMEOUT_S,
            )
        )
    load = Workload(seed=seed, topology=topology, spec=SPEC, requests=tuple(requests), max_queued=NUM_REQUESTS)
    system = SimSystem(load)
    for name in system.engines:
        system.carrier.lane(name).max_service_s = 0.05
    return system


def run(system: SimSystem) -> Counter[str]:
    """Ends of all requests: `Completed`, or a failure's code."""
    system.carrier.loop.run_until(system.clients_done, 600.0, 2_000_000)
    ends = Counter[str]()
    for client in system.clients:
        (terminal,) = client.terminals
        ends[terminal.error.code if isinstance(terminal, Failed) else type(terminal).__name__] += 1
    return ends


@pytest.mark.parametrize(("topology", "seed"), [("prefill=1,decode=1", 1), ("prefill=1,decode=1", 2), ("mixed=1", 3)])
def test_whoever_is_let_in_is_served_in_time_and_whoever_is_not_is_told_at_once(topology: str, seed: int) -> None:
    system = overloaded(topology, seed)
    ends = run(system)
    assert set(ends) <= {"Completed", "queue_slow", "queue_timeout"}, ends
    refused, accepted = ends["queue_slow"], NUM_REQUESTS - ends["queue_slow"]
    assert refused > NUM_REQUESTS / 3
    assert ends["Completed"] >= 0.99 * accepted, ends
    for client in system.clients:
        checks.check_client(client, msgspec.structs.replace(system.workload, max_queued=0))
        (terminal,) = client.terminals
        assert client.submitted_s is not None
        if isinstance(terminal, Failed) and terminal.error.code == "queue_slow":
            assert client.events[0][0] - client.submitted_s < AT_ONCE_S
            assert terminal.error.retry_after_s is not None
            assert 1 <= terminal.error.retry_after_s <= 2 * QUEUE_TIMEOUT_S
        elif isinstance(terminal, Completed):
            assert isinstance(client.events[0][1], Delta)


def test_a_queue_that_is_only_bounded_lets_requests_in_that_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same load without a look at the rate: this is what the test above has to notice."""

    def bounded(**_: object) -> ErrorInfo | None:
        return None

    monkeypatch.setattr(scheduler, "refusal", bounded)
    ends = run(overloaded("prefill=1,decode=1", 1))
    assert ends["queue_timeout"] > NUM_REQUESTS / 10
