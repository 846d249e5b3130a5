"""The server on the deterministic carrier: mixed traffic and directed cases."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from actors.messages import GATEWAY, Address, Completed, Drain, Drained, Failed
from actors.wiring import CLIENT_CAPACITY
from runtime.engine import EngineSpec
from runtime.sampling_params import SamplingParams
from runtime.topology import parse_topology
from tests.simulation.carrier import SimContext
from tests.simulation.expected import expected_choice
from tests.simulation.fake_tokens import END_OF_TEXT, VOCAB_SIZE
from tests.simulation.harness import SimulationFailure, run_seed, run_workload
from tests.simulation.mutations import MUTATIONS
from tests.simulation.system import SimSystem
from tests.simulation.workload import CANCEL_MOMENTS, PlannedRequest, Workload, draw_workload

TOPOLOGIES = ("prefill=1,decode=1", "prefill=2,decode=2", "mixed=1")
SEED_BLOCKS = [range(first, first + 10) for first in range(0, 120, 10)]


def planned(name: str, seed: int, **changes: object) -> PlannedRequest:
    """A plain request: eleven prompt tokens, twelve answered, no end before that."""
    random = Random(f"{name} {seed}")
    prompt = tuple(random.randrange(2, VOCAB_SIZE) for _ in range(11))
    request = PlannedRequest(
        request=name,
        arrival_s=0.0,
        prompt=prompt,
        params=SamplingParams(seed=seed, max_tokens=12),
        num_choices=1,
    )
    return msgspec.structs.replace(request, **changes)


def workload(topology: str, requests: tuple[PlannedRequest, ...], seed: int = 0, **sizes: int) -> Workload:
    """These requests on a roomy system; `sizes` overrides the engines'."""
    spec = EngineSpec(
        page_size=4,
        num_pages=80,
        num_rows=16,
        max_context_tokens=256,
        vocab_size=VOCAB_SIZE,
        chunk_tokens=8,
        max_prefill_segments=4,
        page_bytes=1,
    )
    spec = msgspec.structs.replace(spec, **sizes)
    return Workload(seed=seed, topology=topology, spec=spec, requests=requests)


@pytest.mark.parametrize("seeds", SEED_BLOCKS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_mixed_traffic_holds_every_invariant(seeds: range) -> None:
    outcomes = [run_seed(seed) for seed in seeds]
    assert sum(outcome.completed for outcome in outcomes) > 0


@pytest.mark.parametrize("seeds", SEED_BLOCKS[:6], ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_mixed_traffic_survives_a_device_error(seeds: range) -> None:
    outcomes = [run_workload(_with_a_failing_step(draw_workload(seed))) for seed in seeds]
    assert sum("WorkerDown" in outcome.messages for outcome in outcomes) >= 3


def _with_a_failing_step(drawn: Workload) -> Workload:
    random = Random(f"failing step {drawn.seed}")
    name = random.choice(parse_topology(drawn.topology).slices).name
    return msgspec.structs.replace(drawn, failing_steps={name: (random.randint(1, 25),)})


def test_the_seeds_reach_every_message_that_can_occur() -> None:
    outcomes = [run_seed(seed) for seed in range(30)]
    seen = {name for outcome in outcomes for name in outcome.messages}
    needed = {*CANCEL_MOMENTS, "Cancel", "Refused", "ReserveRefused", "Completed", "Failed", "Disconnect", "Inventory"}
    assert needed <= seen
    assert sum(outcome.left for outcome in outcomes) > 10
    assert sum(outcome.messages.get("Preempted", 0) for outcome in outcomes) > 10


def test_one_seed_is_one_run_whatever_the_process() -> None:
    assert run_seed(2).trace_hash == run_seed(2).trace_hash != run_seed(3).trace_hash
    script = "from tests.simulation.harness import run_seed; print(run_seed(2).trace_hash)"
    root = Path(__file__).parents[2]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        assert int(run.stdout) == run_seed(2).trace_hash


def test_a_failure_names_its_replay_and_shows_what_happened_last(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[0].mutate(monkeypatch)
    with pytest.raises(SimulationFailure, match=r"(?s)was freed while.*python -m tests.simulation 0\n.*-> scheduler"):
        run_seed(0)


# --- pool pressure


@pytest.mark.parametrize("topology", ["prefill=1,decode=1", "prefill=1,decode=2", "mixed=1"])
@pytest.mark.parametrize("seed", range(3))
def test_under_heavy_pool_pressure_every_answer_is_exact(topology: str, seed: int) -> None:
    requests = tuple(
        planned(f"r{n}", n, params=SamplingParams(seed=n, max_tokens=40, presence_penalty=0.5, logprobs=2))
        for n in range(8)
    )
    outcome = run_workload(workload(topology, requests, seed, num_pages=20))
    assert outcome.completed == len(requests)
    assert outcome.messages["Preempted"] >= 3


def test_a_request_that_no_pool_could_hold_is_refused_as_the_clients_fault() -> None:
    system = SimSystem(workload("prefill=1,decode=1", (planned("r0", 1, prompt=(5,) * 90),), num_pages=20))
    system.carrier.loop.run_until(system.clients_done, 10.0, 10_000)
    (failed,) = system.clients[0].terminals
    assert isinstance(failed, Failed)
    assert (failed.error.status, failed.error.code) == (400, "too_large")


def test_the_queue_is_bounded_and_each_refusal_says_when_to_come_back() -> None:
    requests = tuple(planned(f"r{n}", n, num_choices=4) for n in range(12))
    load = workload("prefill=1,decode=1", requests, num_rows=4)
    system = SimSystem(msgspec.structs.replace(load, max_queued=2))
    system.carrier.loop.run_until(system.clients_done, 100.0, 100_000)
    failures = [client.terminals[0] for client in system.clients if isinstance(client.terminals[0], Failed)]
    assert 0 < len(failures) < 12
    for failed in failures:
        assert (failed.error.status, failed.error.code) == (429, "queue_full")
        assert failed.error.retry_after_s


def test_a_request_that_waits_too_long_fails_on_time() -> None:
    hogs = tuple(planned(f"hog{n}", n, params=SamplingParams(seed=n, max_tokens=150)) for n in range(4))
    late = planned("late", 9, arrival_s=0.3, queue_timeout_s=0.2)
    outcome = run_workload(workload("prefill=1,decode=1", (*hogs, late), num_rows=4, num_pages=200))
    assert (outcome.completed, outcome.failed) == (4, 1)


# --- choices


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_choices_of_one_request_end_each_in_its_own_way(topology: str) -> None:
    params = SamplingParams(seed=4, max_tokens=16, stop_token_ids=(END_OF_TEXT,), logprobs=0)
    requests = tuple(planned(f"r{n}", n, params=params, num_choices=4, stop=("ab", "cc")) for n in range(4))
    answers = [expected_choice(r.prompt, params, choice, r.stop) for r in requests for choice in range(4)]
    assert {type(answer.stop_match) for answer in answers} == {int, str, type(None)}
    assert len({len(answer.records) for answer in answers}) > 4
    outcome = run_workload(workload(topology, requests))
    assert outcome.completed == len(requests)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_stop_string_takes_back_one_choice_alone(topology: str, seed: int) -> None:
    number, params = next(_with_one_stopped_choice())
    request = planned(f"r{number}", number, params=params, num_choices=3, stop=("ab",))
    outcome = run_workload(workload(topology, (request, planned("other", 5)), seed))
    assert outcome.completed == 2
    assert outcome.messages["AbortGroup"] == 1


def _with_one_stopped_choice() -> Iterator[tuple[int, SamplingParams]]:
    for number in range(1000):
        params = SamplingParams(seed=number, max_tokens=12)
        request = planned(f"r{number}", number)
        answers = [expected_choice(request.prompt, params, choice, ("ab",)) for choice in range(3)]
        early = [len(answer.records) < 8 for answer in answers]
        if sum(early) == sum(answer.stop_match is not None for answer in answers) == 1:
            yield number, params


# --- cancels


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("moment", CANCEL_MOMENTS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_client_may_leave_at_any_moment(topology: str, moment: str, count: int) -> None:
    leaver = planned("leaver", 1, num_choices=3, stop=("zz",), behaviour="leaves", leave_at=(moment, count))
    outcome = run_workload(workload(topology, (leaver, *(planned(f"r{n}", n) for n in range(3)))))
    assert outcome.completed >= 3
    always = {"Submit", "Admit", "Reserve", "Reserved", "StartPrefill", "PrefillStarted", "Delta", "Released"}
    if moment in always and count == 1:
        assert outcome.left == 1


def test_a_client_that_leaves_while_it_waits_is_never_started() -> None:
    hog = planned("hog", 1, num_choices=4, params=SamplingParams(seed=1, max_tokens=60))
    leaver = planned("leaver", 2, arrival_s=0.1, behaviour="leaves", leave_at=("Admit", 1))
    outcome = run_workload(workload("prefill=1,decode=1", (hog, leaver), num_rows=4))
    assert (outcome.completed, outcome.left, outcome.messages["StartPrefill"]) == (1, 1, 1)


def test_a_slow_client_loses_its_stream_and_nobody_elses() -> None:
    slow = planned("slow", 1, behaviour="slow", params=SamplingParams(seed=1, max_tokens=40))
    outcome = run_workload(workload("prefill=1,decode=1", (slow, *(planned(f"r{n}", n) for n in range(3)))))
    assert outcome.completed == 3
    assert outcome.messages["AbortGroup"] == 1


def test_drain_refuses_newcomers_and_reports_when_the_last_has_gone() -> None:
    requests = (*(planned(f"r{n}", n, num_choices=2) for n in range(4)), planned("late", 9, arrival_s=0.05))
    system = SimSystem(workload("prefill=1,decode=1", requests))
    drained_at: list[float] = []

    async def drain(ctx: SimContext) -> None:
        await ctx.sleep(0.02)
        await ctx.send(GATEWAY, Drain(reply_to=ctx.address))
        assert isinstance(await ctx.receive(), Drained)
        drained_at.append(ctx.now())

    system.carrier.start(Address("client/drain"), drain, CLIENT_CAPACITY)
    system.carrier.loop.run_until(lambda: system.clients_done() and bool(drained_at), 100.0, 100_000)
    *served, late = [client.terminals[0] for client in system.clients]
    assert all(isinstance(terminal, Completed) for terminal in served)
    assert isinstance(late, Failed)
    assert (late.error.status, late.error.code) == (503, "draining")


# --- failures of a slice


def failing_slices() -> list[tuple[str, str]]:
    topologies = ("prefill=1,decode=1", "prefill=2,decode=2", "mixed=2")
    return [(topology, part.name) for topology in topologies for part in parse_topology(topology).slices]


def traffic(gap_s: float) -> tuple[PlannedRequest, ...]:
    return tuple(
        planned(
            f"r{n}",
            n,
            num_choices=1 + n % 3,
            arrival_s=gap_s * n,
            params=SamplingParams(seed=n, max_tokens=20, presence_penalty=0.5, logprobs=1),
        )
        for n in range(6)
    )


@pytest.mark.parametrize(("topology", "name"), failing_slices())
@pytest.mark.parametrize("step", [1, 2, 5, 13])
def test_a_device_error_shows_in_no_stream(topology: str, name: str, step: int) -> None:
    for seed in range(3):
        load = workload(topology, traffic(0.02), seed)
        outcome = run_workload(msgspec.structs.replace(load, failing_steps={name: (step,)}))
        assert outcome.completed == 6


@pytest.mark.parametrize(("topology", "name"), failing_slices()[2:])
def test_a_slice_that_is_given_up_leaves_its_requests_to_the_others(topology: str, name: str) -> None:
    deaths = 0
    for seed in range(4):
        load = workload(topology, traffic(0.1), seed)
        outcome = run_workload(msgspec.structs.replace(load, failing_steps={name: tuple(range(1, 1000, 2))}))
        assert outcome.completed == 6
        deaths += outcome.messages.get("WorkerDown", 0)
    assert deaths > 0


@pytest.mark.parametrize(("topology", "name"), failing_slices())
def test_a_hang_shows_in_no_stream(topology: str, name: str) -> None:
    load = workload(topology, traffic(0.02))
    outcome = run_workload(msgspec.structs.replace(load, step_timeout_s=1.0, hangs={name: (0.07, 9.0)}))
    assert outcome.completed == 6
    assert outcome.messages["WorkerDown"] > 0


def test_drawn_workloads_differ_and_can_be_drawn_again() -> None:
    assert draw_workload(5) == draw_workload(5) != draw_workload(6)
