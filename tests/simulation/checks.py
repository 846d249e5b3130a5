"""The invariants, checked exactly: what clients were told, and that nothing is left behind."""

import math
from collections.abc import Iterable

from actors.gateway import GatewayActor
from actors.messages import Completed, Delta, Failed, TokenRecord
from actors.scheduler import SchedulerActor
from actors.worker import WorkerActor
from tests.simulation.carrier import Carrier
from tests.simulation.clients import SimClient
from tests.simulation.expected import expected_choice, expected_scores
from tests.simulation.fake_engine import FakeEngine
from tests.simulation.workload import PlannedRequest, Workload

_MAX_TOMBSTONES = 512
"""More than the choices of any run: each is buried once."""

_LATENESS_S = 1.0
"""How long after its deadline a request may end: message delays and hiccups, no more."""


def check_client(client: SimClient, workload: Workload) -> None:
    """Everything that this client saw was right, and as much as it was owed."""
    plan, terminals = client.plan, client.terminals
    assert len(terminals) <= 1, f"{plan.request} has terminal records {terminals}"
    if terminals:
        assert client.events[-1][1] is terminals[0], f"{plan.request} hears more behind its terminal record"
    complete = bool(terminals) and isinstance(terminals[0], Completed)
    sizes = [_check_choice(client, choice, complete) for choice in range(plan.num_choices)]
    if complete:
        completed = terminals[0]
        assert isinstance(completed, Completed)
        usage = (completed.prompt_tokens, completed.completion_tokens)
        assert usage == (len(plan.prompt), sum(sizes)), f"{plan.request} usage {completed}, {sizes=}"
        assert 0 <= completed.cached_tokens < len(plan.prompt), completed
        assert completed.cached_tokens % workload.spec.page_size == 0, completed
        may_reuse = workload.prefix_cache and plan.params.prompt_logprobs is None
        assert may_reuse or completed.cached_tokens == 0, completed
    elif terminals:
        _check_failure(client, workload)
    else:
        assert client.left or client.cut_off, f"{plan.request} has no terminal record"
    _check_deadlines(client)


def _check_choice(client: SimClient, choice: int, complete: bool) -> int:
    """The choice's tokens are a prefix of the undisturbed answer, or all of it; returns their number."""
    plan = client.plan
    expected = expected_choice(plan.prompt, plan.params, choice, plan.stop)
    deltas = [event for _, event in client.events if isinstance(event, Delta) and event.choice == choice]
    records = _records(deltas)
    name = f"{plan.request} choice {choice}"
    assert records == expected.records[: len(records)], f"{name}: {records} instead of {expected.records}"
    scores = [delta.prompt_logprobs for delta in deltas]
    owed_scores = expected_scores(plan.prompt, plan.params)
    assert scores[:1] in ([], [owed_scores]), f"{name}: the prompt's logprobs are {scores[0]}, not {owed_scores}"
    assert not any(scores[1:]), f"{name}: the prompt's logprobs come twice"
    text = "".join(delta.text for delta in deltas)
    assert expected.text.startswith(text), f"{name}: text {text!r} instead of {expected.text!r}"
    ends = [delta for delta in deltas if delta.finish is not None]
    assert len(ends) <= 1, f"{name} finishes twice: {ends}"
    if ends:
        told = (len(records), text, ends[0].finish, ends[0].stop_match)
        owed = (len(expected.records), expected.text, expected.finish, expected.stop_match)
        assert deltas[-1] is ends[0], f"{name} goes on behind its end"
        assert told == owed, f"{name} ends with {told} instead of {owed}"
    assert ends or not complete, f"{name} has no end, but its request is complete"
    assert not complete or expected.finish is not None, f"{name} is complete, although its constraint fails"
    return len(records)


def _records(deltas: Iterable[Delta]) -> tuple[TokenRecord, ...]:
    return tuple(record for delta in deltas for record in delta.tokens)


def _check_failure(client: SimClient, workload: Workload) -> None:
    """Only limits that this workload drew may fail a request: in mid-stream its constraint or its deadline alone."""
    (failed,) = client.terminals
    assert isinstance(failed, Failed)
    plan, allowed, in_stream = client.plan, set[str](), set[str]()
    if workload.max_queued < len(workload.requests):
        allowed.add("queue_full")
    if min(plan.queue_timeout_s, plan.timeout_s or math.inf) < 10:
        allowed.add("queue_slow")
    if plan.queue_timeout_s < 10:
        allowed.add("queue_timeout")
    if plan.timeout_s is not None:
        in_stream.add("deadline_exceeded")
    if _has_failing_constraint(plan):
        in_stream.add("constraint_failed")
    assert failed.error.code in allowed | in_stream, f"{plan.request} failed: {failed.error}"
    has_begun = len(client.events) > 1
    assert failed.error.code in in_stream or not has_begun, f"{plan.request} failed in mid-stream: {failed.error}"
    if failed.error.code == "deadline_exceeded":
        assert plan.timeout_s is not None
        assert client.submitted_s is not None
        lasted_s = client.events[-1][0] - client.submitted_s
        assert lasted_s >= plan.timeout_s - _LATENESS_S, f"{plan.request} fails {lasted_s} s after it was sent"


def _has_failing_constraint(plan: PlannedRequest) -> bool:
    answers = (expected_choice(plan.prompt, plan.params, choice, plan.stop) for choice in range(plan.num_choices))
    return any(answer.finish is None for answer in answers)


def _check_deadlines(client: SimClient) -> None:
    plan = client.plan
    if not client.events or client.submitted_s is None:
        return
    waited_s = client.events[0][0] - client.submitted_s
    assert waited_s <= plan.queue_timeout_s + _LATENESS_S, f"{plan.request} waited {waited_s} s"
    lasted_s = client.events[-1][0] - client.submitted_s
    limit_s = math.inf if plan.timeout_s is None or plan.behaviour == "slow" else plan.timeout_s
    assert lasted_s <= limit_s + _LATENESS_S, f"{plan.request} lasted {lasted_s} s, not {limit_s}"


def check_promptness(clients: Iterable[SimClient], until_s: float) -> None:
    """No client that keeps reading has had to wait longer than this."""
    for client in clients:
        if client.terminals and client.plan.behaviour != "slow":
            ended_s = client.events[-1][0]
            assert ended_s <= until_s, f"{client.plan.request} ends only at {ended_s:.1f} s, not by {until_s:.1f} s"


def check_engines(engines: Iterable[FakeEngine]) -> None:
    """No step, gather or insert met wrong KV."""
    for engine in engines:
        assert not engine.violations, f"{engine.violations[0]}"


def check_pages(workers: Iterable[WorkerActor]) -> None:
    """Each page of each pool is in exactly one state."""
    for worker in workers:
        worker.state.pool.check_integrity()
        counts = worker.state.pool.counts()
        states = counts.free + counts.cached + counts.held + counts.leased + counts.quarantined + counts.sentinel
        assert states == counts.total, f"{worker.address}: {counts}"


def check_worker_at_rest(worker: WorkerActor, engine: FakeEngine) -> None:
    """Pages, rows and credits are back, and nothing waits."""
    state = worker.state
    name, counts = worker.address, state.pool.counts()
    assert counts.free + counts.cached + counts.sentinel == counts.total, f"{name} keeps pages: {counts}"
    assert sorted(state.free_rows) == list(range(engine.spec.num_rows)), f"{name} has rows {state.free_rows}"
    assert not state.prefill.jobs, f"{name} keeps jobs {list(state.prefill.jobs)}"
    assert not state.prefill.staged, f"{name} keeps staged chunks {list(state.prefill.staged)}"
    assert state.prefill.credits_used == 0, f"{name} has {state.prefill.credits_used} credits out"
    assert not state.decode.leases, f"{name} keeps leases {list(state.decode.leases)}"
    assert len(state.tombstones) <= _MAX_TOMBSTONES, f"{name} remembers {len(state.tombstones)} cancels"
    assert not state.decode.sequences, f"{name} keeps sequences {list(state.decode.sequences)}"


def check_scheduler_at_rest(scheduler: SchedulerActor, workers: Iterable[WorkerActor]) -> None:
    """No grant is out, and the scheduler's view of every worker is the worker's own."""
    assert not scheduler.queue, f"the scheduler keeps {[admit.key for admit in scheduler.queue]} waiting"
    assert not scheduler.grants, f"the scheduler keeps grants {list(scheduler.grants)}"
    for worker in workers:
        view = scheduler.workers.get(worker.address)
        assert view is not None, f"the scheduler has not heard of {worker.address}"
        assert view.alive, f"the scheduler takes {worker.address} for dead"
        assert not view.pending, f"{worker.address} has unanswered reservations {list(view.pending)}"
        pool, rows = worker.state.pool, worker.state.free_rows
        seen, true = (view.available_pages, view.free_rows), (pool.available_pages, len(rows))
        assert seen == true, f"the scheduler sees {seen} free pages and rows on {worker.address}, it has {true}"
        assert view.prefill_tokens == 0, f"the scheduler sees {view.prefill_tokens} tokens on {worker.address}"
        assert view.prefixes == set(pool.index.pages), f"the scheduler sees other prefixes on {worker.address}"


def check_gateway_at_rest(gateway: GatewayActor) -> None:
    """Every request was closed."""
    assert not gateway.ledger.requests, f"the ledger keeps {list(gateway.ledger.requests)}"


def check_carrier_at_rest(carrier: Carrier) -> None:
    """No message waits, none but a client's was ever refused, and no array is left."""
    for address, inbox in carrier.inboxes.items():
        if not address.startswith("client/"):
            assert not len(inbox.mailbox), f"{address} has {len(inbox.mailbox)} messages unread"
            assert not any(inbox.taken_room.values()), f"{address} is short of room: {inbox.taken_room}"
    lost = [refused for refused in carrier.refused if refused[1] in carrier.inboxes and "client/" not in refused[1]]
    assert not lost, f"an inbox had no room for {lost[0]}"
    assert not len(carrier.arrays), f"{len(carrier.arrays)} arrays are left in the table"
    busy = [lane.name for lane in carrier.lanes.values() if lane.backlog]
    assert not busy, f"lanes {busy} are busy"
