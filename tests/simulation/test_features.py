"""Constraints, logprobs of prompts, priorities and deadlines: directed cases on the deterministic carrier.

`run_workload` compares every answer with what is expected of it; these tests add what no answer shows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import pytest

from actors.admission import DrainRate
from actors.messages import (
    Address,
    Admit,
    Completed,
    Failed,
    Key,
    Message,
    Preempted,
    Rejected,
    Reserve,
    StartPrefill,
    TokensSampled,
)
from actors.waiting import WaitingGroups
from runtime.constraints import Constraint
from runtime.engine import Step, StepHandle
from runtime.sampling_params import ConstraintSpec, SamplingParams
from tests.simulation.expected import expected_choice
from tests.simulation.fake_constraints import FakeConstraints
from tests.simulation.fake_engine import FakeEngine
from tests.simulation.faults import parse_fault
from tests.simulation.harness import run_workload
from tests.simulation.system import SimSystem
from tests.simulation.test_simulation import TOPOLOGIES, planned, workload
from tests.simulation.workload import PlannedRequest, Workload

Log = list[tuple[str, object]]


def constrained(name: str, seed: int, grammar: str, **changes: object) -> PlannedRequest:
    params = SamplingParams(seed=seed, max_tokens=16, constraint=ConstraintSpec(grammar=grammar))
    return msgspec.structs.replace(planned(name, seed), params=params, **changes)


def served(load: Workload, until_s: float = 200.0, prepare: Callable[[SimSystem], None] | None = None) -> SimSystem:
    """Runs until every client has what it gets, without a look at the answers."""
    system = SimSystem(load)
    if prepare is not None:
        prepare(system)
    system.carrier.loop.run_until(system.clients_done, until_s, 200_000)
    return system


def ends(system: SimSystem) -> dict[str, Completed | Failed]:
    return {client.plan.request: client.terminals[0] for client in system.clients}


# --- constraints


def completing(name: str, seed: int) -> PlannedRequest:
    """A request whose constraint completes it within a few tokens."""
    for number in range(100):
        request = constrained(name, seed, str(number))
        answer = expected_choice(request.prompt, request.params, 0, ())
        if answer.finish == "stop" and 3 <= len(answer.records) <= 10:
            return request
    raise AssertionError("no such constraint")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_complete_constraint_ends_its_choice_and_no_other(topology: str) -> None:
    requests = (completing("ends", 1), constrained("n", 2, "7", num_choices=3), planned("free", 3, num_choices=2))
    assert run_workload(workload(topology, requests)).completed == 3


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("where", ["mask 0", "advance 1", "mask 1", "advance 2", "mask 5", "advance 5"])
def test_a_constraint_that_fails_costs_its_own_request_alone(topology: str, where: str) -> None:
    others = [constrained(f"r{n}", n, str(n), num_choices=2) for n in range(3)]
    bad = constrained("bad", 9, f"1 {where}")
    bad = msgspec.structs.replace(bad, params=msgspec.structs.replace(bad.params, stop_token_ids=()))
    assert expected_choice(bad.prompt, bad.params, 0, ()).finish is None
    load = workload(topology, (*others, bad, planned("free", 4)))
    outcome = run_workload(load)
    assert (outcome.completed, outcome.failed, outcome.messages["Rejected"]) == (4, 1, 1)
    told = ends(served(load))["bad"]
    assert isinstance(told, Failed)
    assert (told.error.status, told.error.code) == (400, "constraint_failed")
    assert where.split()[1] in told.error.message


@pytest.mark.parametrize("topology", ["mixed=1", "prefill=1,decode=1"])
def test_a_constraint_that_hangs_costs_no_other_request(topology: str) -> None:
    """The thread never comes back; those that come later get another one."""
    stuck = constrained("stuck", 1, "1")
    late = constrained("late", 2, "2", arrival_s=30.0)
    load = workload(topology, (stuck, planned("free", 3), late))
    holder = topology.split(",")[0].split("=")[0] + ".0"
    system = served(load, prepare=lambda system: system.carrier.lane(f"{holder}/constraints/1/0").hold(True))
    told = ends(system)
    assert isinstance(told["free"], Completed)
    assert isinstance(told["late"], Completed)
    hung = told["stuck"]
    assert isinstance(hung, Failed)
    assert (hung.error.status, hung.error.code) == (500, "constraint_failed")
    assert not system.injector.struck
    assert all(child.epoch == 1 for child in system.supervisors), "a worker died of it"


def logged(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What is done in which order: dispatches with whether they are deferred, fetches, masks and samples."""
    log = Log()
    dispatch, fetch, sample, masks = FakeEngine.dispatch, FakeEngine.fetch, FakeEngine.sample, FakeConstraints.masks

    def logged_dispatch(self: FakeEngine, step: Step) -> StepHandle:
        log.append(("dispatch", step.deferred))
        return dispatch(self, step)

    def logged_fetch(self: FakeEngine, handle: StepHandle) -> object:
        log.append(("fetch", None))
        return fetch(self, handle)

    def logged_sample(self: FakeEngine, handle: StepHandle, masks: Mapping[int, bytes]) -> StepHandle:
        log.append(("sample", len(masks)))
        return sample(self, handle, masks)

    def logged_masks(self: FakeConstraints, constraints: Sequence[Constraint]) -> list[bytes | None]:
        log.append(("masks", len(constraints)))
        return masks(self, constraints)

    monkeypatch.setattr(FakeEngine, "dispatch", logged_dispatch)
    monkeypatch.setattr(FakeEngine, "fetch", logged_fetch)
    monkeypatch.setattr(FakeEngine, "sample", logged_sample)
    monkeypatch.setattr(FakeConstraints, "masks", logged_masks)
    return log


def test_masks_are_made_between_the_forward_pass_and_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logged(monkeypatch)
    request = constrained("r", 1, "1")
    run_workload(workload("mixed=1", (request,)))
    made = [index for index, (what, _) in enumerate(log) if what == "masks"]
    assert len(made) == len(expected_choice(request.prompt, request.params, 0, ()).records) - 1
    for index in made:
        before = [what for what, _ in log[index - 2 : index]]
        assert before == ["dispatch", "fetch"], "the forward pass is not on its way, or the last token is not known"
        assert log[index + 1] == ("sample", 1)


def test_without_constraints_nothing_is_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logged(monkeypatch)
    system = served(workload("prefill=1,decode=1", tuple(planned(f"r{n}", n) for n in range(3))))
    assert {what for what in log if what[0] != "fetch"} == {("dispatch", False)}
    assert not [name for name in system.carrier.lanes if "constraints" in name]


def test_a_refusal_that_overtakes_tokens_waits_for_them() -> None:
    """A stop string ends the choice before its constraint fails, also where the token that completes it is lost."""
    request = next(_stopped_before_it_fails())
    counts = {"TokensSampled": 0}
    for occurrence in range(1, 12):
        load = workload("mixed=1", (request,))
        load = msgspec.structs.replace(load, faults=(parse_fault(f"drop:TokensSampled:mixed:gateway:{occurrence}:0"),))
        outcome = run_workload(load)
        assert outcome.completed == 1
        counts["TokensSampled"] += outcome.messages.get("Rejected", 0)
    assert counts["TokensSampled"] > 0, "the constraint never failed"


def _stopped_before_it_fails() -> Iterator[PlannedRequest]:
    for number in range(2000):
        plain = planned("r", number, stop=("ab", "cd", "ef"))
        params = SamplingParams(seed=number, max_tokens=30)
        for at in range(3, 9):
            spec = ConstraintSpec(grammar=f"{number} mask {at}")
            bad = msgspec.structs.replace(plain, params=msgspec.structs.replace(params, constraint=spec))
            answer = expected_choice(bad.prompt, bad.params, 0, bad.stop)
            if isinstance(answer.stop_match, str) and len(answer.records) == at - 1:
                yield bad


# --- logprobs of prompts


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_scored_prompt_neither_reads_nor_fills_a_cache(topology: str) -> None:
    def scored(name: str, at_s: float) -> PlannedRequest:
        params = SamplingParams(seed=1, max_tokens=8, prompt_logprobs=1)
        return msgspec.structs.replace(planned("same", 1), request=name, arrival_s=at_s, params=params)

    plain = msgspec.structs.replace(planned("same", 1), request="plain", arrival_s=2.0)
    prefixes = list[tuple[str, bool]]()

    def observe(source: Address, target: Address, message: Message) -> None:
        if isinstance(message, Reserve | StartPrefill):
            prefixes.append((message.key.request, message.prefix is not None))

    requests = (scored("first", 0.0), scored("second", 1.0), plain, scored("third", 4.0))
    outcome = run_workload(workload(topology, requests), observers=(observe,))
    assert outcome.completed == 4
    assert outcome.cached_tokens == 0, "the plain request found what only scored ones had computed"
    assert {name for name, has_prefix in prefixes if has_prefix} == {"plain"}


def test_a_recovered_prompt_is_scored_again_only_if_nothing_of_its_answer_was_accepted() -> None:
    params = SamplingParams(seed=1, max_tokens=12, prompt_logprobs=2)
    request = msgspec.structs.replace(planned("r", 1), params=params)
    told = list[Key]()

    def observe(source: Address, target: Address, message: Message) -> None:
        if isinstance(message, TokensSampled):
            told.extend(key for key, _ in message.prompt_logprobs)

    seen = set[int]()
    for step in range(1, 8):
        told.clear()
        load = msgspec.structs.replace(workload("mixed=2", (request,)), failing_steps={"mixed.0": (step,)})
        run_workload(load, observers=(observe,))
        assert len(told) == 1
        seen.add(told[0].attempt)
    assert seen == {1, 2}


# --- priorities


def test_the_queue_is_ordered_by_priority_then_age_behind_what_is_recovered() -> None:
    waiting = WaitingGroups(10, 8, prefix_cache=False)
    groups = [("a", 1, 0), ("b", 1, 5), ("c", 1, -1), ("d", 2, 5), ("e", 1, 0), ("f", 2, 0)]
    for order, (name, attempt, priority) in enumerate(groups):
        group = Admit(
            key=Key(name, 0, attempt), choices=(0,), order=order, tokens=(1,), prompt_tokens=1, priority=priority,
            params=SamplingParams(seed=0, max_tokens=4), deadline=1.0,
        )  # fmt: skip
        assert waiting.ahead_of(group) == sum(_before(other, group) for other in waiting.queue)
        waiting.enter(group)
    assert "".join(group.key.request for group in waiting.queue) == "fdcaeb"


def _before(other: Admit, group: Admit) -> bool:
    ranks = [(waiting.key.attempt == 1, waiting.priority, waiting.order) for waiting in (other, group)]
    return bool(ranks[0] < ranks[1])


def test_the_smaller_priority_is_placed_first() -> None:
    hog = planned("hog", 1, num_choices=4, params=SamplingParams(seed=1, max_tokens=40))
    priorities = (5, 0, -3, 0)
    queued = [
        planned(f"q{n}", n, num_choices=4, arrival_s=0.05 + n / 100, priority=priority)
        for n, priority in enumerate(priorities)
    ]
    placed = list[str]()

    def observe(source: Address, target: Address, message: Message) -> None:
        if isinstance(message, StartPrefill):
            placed.append(message.key.request)

    load = workload("prefill=1,decode=1", (hog, *queued), num_rows=4)
    assert run_workload(load, observers=(observe,)).completed == 5
    assert placed == ["hog", "q2", "q1", "q3", "q0"]


def test_a_group_that_is_preempted_has_not_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[float]()
    monkeypatch.setattr(DrainRate, "ended", lambda self, now: ended.append(now))
    preempted = 0

    def observe(source: Address, target: Address, message: Message) -> None:
        nonlocal preempted
        preempted += isinstance(message, Preempted)

    params = SamplingParams(seed=1, max_tokens=40)
    requests = tuple(planned(f"r{n}", n, params=params) for n in range(6))
    run_workload(workload("prefill=1,decode=1", requests, num_pages=24), observers=(observe,))
    assert preempted > 0
    assert len(ended) == len(requests)


# --- deadlines


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("timeout_s", [0.001, 0.02, 0.5])
def test_a_request_that_has_no_time_left_fails_and_is_aborted_everywhere(topology: str, timeout_s: float) -> None:
    params = SamplingParams(seed=1, max_tokens=200)
    requests = (planned("late", 1, params=params, num_choices=2, timeout_s=timeout_s), planned("other", 2))
    load = workload(topology, requests)
    outcome = run_workload(load)
    assert (outcome.completed, outcome.failed) == (1, 1)
    told = ends(served(load))["late"]
    assert isinstance(told, Failed)
    assert (told.error.status, told.error.code) == (504, "deadline_exceeded")
    assert f"{timeout_s:g} s" in told.error.message


def test_progress_is_missed_before_the_first_token_would_have_been() -> None:
    """The time to the first token is longer, and has not passed, when the next one does not come."""
    params = SamplingParams(seed=1, max_tokens=60)
    request = planned("r", 1, params=params, queue_timeout_s=100.0, progress_timeout_s=1.0)
    load = workload("prefill=1,decode=1", (request,))
    system = served(msgspec.structs.replace(load, hangs={"decode.0": (0.2, 90.0)}))
    failed = ends(system)["r"]
    assert isinstance(failed, Failed)
    assert failed.error.code == "no_progress"
    assert system.carrier.loop.now < 5.0


def test_what_a_worker_rejects_it_says_behind_which_token() -> None:
    told = list[Rejected]()

    def observe(source: Address, target: Address, message: Message) -> None:
        if isinstance(message, Rejected):
            told.append(message)

    run_workload(workload("mixed=1", (constrained("r", 1, "1 mask 4"),)), observers=(observe,))
    assert [(message.choices, message.index) for message in told] == [((0,), 4)]
