"""The actors on the in-memory carrier over fake engines: answers, aborts, deaths and drain."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import msgspec
import pytest

from actors.client import GenerateRequest
from actors.messages import GATEWAY, SCHEDULER, TRANSFER, Address, Completed, Delta, Failed
from actors.scheduler import SchedulerActor
from actors.supervisor import ActorSupervisor, RestartPolicy, WorkerSupervisor
from actors.system import System, running_system
from actors.wiring import SystemOptions
from actors.worker import WorkerActor
from runtime.constraints import Constraints
from runtime.engine import EngineSpec, Step, StepHandle
from runtime.sampling_params import ConstraintSpec, SamplingParams
from runtime.text_stream import TextOptions
from runtime.topology import parse_topology
from tests.simulation.expected import expected_choice
from tests.simulation.fake_constraints import FakeConstraints
from tests.simulation.fake_engine import FakeEngine, FakeMover
from tests.simulation.fake_tokens import FakeText, token_text

pytestmark = pytest.mark.anyio

SPEC = EngineSpec(
    page_size=8,
    num_pages=65,
    num_rows=16,
    max_context_tokens=256,
    vocab_size=64,
    chunk_tokens=32,
    max_prefill_segments=4,
    page_bytes=1,
)
OPTIONS = SystemOptions(
    max_queued=64, max_choices=8, decode_reserve_tokens=16, restart=RestartPolicy(max_restarts=2, backoff_s=0.0)
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class _Dying(FakeEngine):
    """Fails at the given dispatches, counted from 1. Works eagerly, so that only the slice's thread touches it."""

    fail_at: tuple[int, ...] = ()
    dispatched = 0

    def _enqueue(self, work: Callable[[], None]) -> None:
        super()._enqueue(work)
        self.run_to(self.fence)

    def dispatch(self, step: Step) -> StepHandle:
        self.dispatched += 1
        if self.dispatched in self.fail_at:
            raise RuntimeError("the device is on fire")
        return super().dispatch(step)


@asynccontextmanager
async def _system(
    topology: str, constraints: Constraints | None = None, **fail_at: tuple[int, ...]
) -> AsyncIterator[System]:
    parsed = parse_topology(topology)
    engines = {part.name: _Dying(part.name, SPEC) for part in parsed.slices}
    for name, steps in fail_at.items():
        engines[name.replace("_", ".")].fail_at = steps
    mover = FakeMover(engines)
    async with running_system(engines, parsed, mover, FakeText, OPTIONS, constraints) as system:
        yield system


def _request(name: str, prompt_len: int = 20, max_tokens: int = 30, num_choices: int = 1) -> GenerateRequest:
    prompt = tuple((len(name) * 7 + i) % 50 for i in range(prompt_len))
    params = SamplingParams(seed=sum(map(ord, name)), max_tokens=max_tokens)
    return GenerateRequest(request=name, prompt=prompt, params=params, num_choices=num_choices)


async def _answer(system: System, request: GenerateRequest) -> dict[int, list[int]]:
    """Tokens by choice of a request that must succeed; checks the terminal event's counts."""
    tokens: dict[int, list[int]] = {choice: [] for choice in range(request.num_choices)}
    async with system.client.stream(request) as events:
        async for event in events:
            if isinstance(event, Delta):
                tokens[event.choice] += [record.token for record in event.tokens]
            else:
                assert isinstance(event, Completed), event
                assert event.prompt_tokens == len(request.prompt)
                assert event.completion_tokens == sum(map(len, tokens.values()))
                assert len(event.timings) == request.num_choices
    return tokens


def _constrained(name: str, grammar: str, num_choices: int = 1) -> GenerateRequest:
    plain = _request(name, num_choices=num_choices)
    constraint = ConstraintSpec(grammar=grammar)
    return msgspec.structs.replace(plain, params=msgspec.structs.replace(plain.params, constraint=constraint))


def _expected(request: GenerateRequest) -> dict[int, list[int]]:
    return {
        choice: [record.token for record in expected_choice(request.prompt, request.params, choice, ()).records]
        for choice in range(request.num_choices)
    }


async def _settled(system: System) -> None:
    """Waits until gateway and workers hold nothing, then checks the books."""
    await system.drain(30)
    await anyio.wait_all_tasks_blocked()
    for spec in system.specs:
        if isinstance(spec.actor, WorkerSupervisor) and isinstance(spec.actor.worker, WorkerActor):
            pool = spec.actor.worker.state.pool
            with anyio.fail_after(10):
                while pool.available_pages != SPEC.usable_pages:
                    await anyio.lowlevel.checkpoint()
            pool.check_integrity()
            assert len(spec.actor.worker.state.free_rows) == SPEC.num_rows
    assert len(system.carrier.arrays) == 0


@pytest.mark.parametrize("topology", ["prefill=1,decode=1", "prefill=2,decode=2", "prefill=1,decode=3", "mixed=2"])
async def test_many_streams_get_their_own_answers(topology: str) -> None:
    async with _system(topology) as system:
        requests = [_request(f"r{i}", prompt_len=1 + 5 * i, num_choices=1 + i % 3) for i in range(20)]
        answers: dict[str, dict[int, list[int]]] = {}

        async def ask(request: GenerateRequest) -> None:
            answers[request.request] = await _answer(system, request)

        async with anyio.create_task_group() as group:
            for request in requests:
                group.start_soon(ask, request)
        assert answers == {request.request: _expected(request) for request in requests}
        await _settled(system)


async def cut_while_queued(system: System, requests: list[GenerateRequest]) -> None:
    """Submits the requests behind others that fill all rows, sees them wait in the scheduler, and leaves them."""
    supervisor = next(spec.actor for spec in system.specs if spec.address == SCHEDULER)
    assert isinstance(supervisor, ActorSupervisor)
    scheduler = supervisor.actor
    assert isinstance(scheduler, SchedulerActor)
    names = {request.request for request in requests}
    async with AsyncExitStack() as streams:
        for request in requests:
            await streams.enter_async_context(system.client.stream(request))
        with anyio.fail_after(30):
            while names - {admit.key.request for admit in scheduler.queue}:
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("topology", ["prefill=2,decode=2", "mixed=1"])
async def test_aborts_leave_nothing_behind(topology: str) -> None:
    """Of 64 concurrent streams 16 are cut off mid-stream and 8 while queued; the others are whole."""
    async with _system(topology) as system:
        whole: dict[str, dict[int, list[int]]] = {}

        async def keep(request: GenerateRequest) -> None:
            whole[request.request] = await _answer(system, request)

        async def cut(request: GenerateRequest, after: int) -> None:
            async with system.client.stream(request) as events:
                for _ in range(after):
                    await anext(events)

        kept = [_request(f"k{i}", prompt_len=3 + i) for i in range(40)]
        async with anyio.create_task_group() as group:
            for i in range(16):
                group.start_soon(cut, _request(f"c{i}", prompt_len=40 + i, max_tokens=60), 2)
            for request in kept:
                group.start_soon(keep, request)
            await cut_while_queued(system, [_request(f"q{i}", prompt_len=100 + i) for i in range(8)])
        assert whole == {request.request: _expected(request) for request in kept}
        await _settled(system)


@pytest.mark.parametrize(
    ("topology", "fail_at"),
    [
        ("prefill=1,decode=1", {"prefill_0": (2,)}),
        ("prefill=1,decode=1", {"decode_0": (3, 9)}),
        ("prefill=2,decode=2", {"decode_1": (4,), "prefill_1": (1,)}),
        ("mixed=1", {"mixed_0": (2, 7)}),
    ],
)
async def test_a_worker_that_dies_is_not_noticed(topology: str, fail_at: dict[str, tuple[int, ...]]) -> None:
    async with _system(topology, **fail_at) as system:
        requests = [_request(f"d{i}", prompt_len=10 + 9 * i, num_choices=1 + i % 2) for i in range(8)]
        answers: dict[str, dict[int, list[int]]] = {}

        async def ask(request: GenerateRequest) -> None:
            answers[request.request] = await _answer(system, request)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for request in requests:
                    group.start_soon(ask, request)
        assert answers == {request.request: _expected(request) for request in requests}
        await _settled(system)


async def _failure(system: System, request: GenerateRequest) -> Failed:
    async with system.client.stream(request) as events:
        event = [event async for event in events][-1]
    assert isinstance(event, Failed), event
    return event


@pytest.mark.parametrize("topology", ["prefill=1,decode=2", "mixed=1"])
async def test_constraints_are_followed_on_threads_of_their_own(topology: str) -> None:
    async with _system(topology, FakeConstraints(), **{f"{topology.split('=')[0]}_0": (4,)}) as system:
        requests = [_constrained(f"c{i}", str(i), num_choices=1 + i % 2) for i in range(8)]
        requests += [_request(f"free{i}") for i in range(4)]
        answers: dict[str, dict[int, list[int]]] = {}

        async def ask(request: GenerateRequest) -> None:
            answers[request.request] = await _answer(system, request)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for request in requests:
                    group.start_soon(ask, request)
            failed = await _failure(system, _constrained("bad", "1 advance 2"))
        assert answers == {request.request: _expected(request) for request in requests}
        assert (failed.error.status, failed.error.code) == (400, "constraint_failed")
        await _settled(system)


async def test_a_constraint_is_refused_where_nobody_knows_any() -> None:
    async with _system("mixed=1") as system:
        failed = await _failure(system, _constrained("c", "1"))
        assert (failed.error.status, failed.error.code) == (500, "constraint_failed")
        assert await _answer(system, _request("free")) == _expected(_request("free"))
        await _settled(system)


async def test_a_worker_beyond_its_budget_is_given_up_and_clients_are_told() -> None:
    async with _system("prefill=1,decode=1", decode_0=tuple(range(1, 100))) as system:
        with anyio.fail_after(30):
            failed = await _failure(system, _request("x"))
            failure = await system.until_failure()
        assert (failed.error.status, failed.error.code) == (503, "no_workers")
        assert "decode.0" in failed.error.message
        assert failure.code == "no_workers", "the process has to end: it can never serve again"


async def test_the_survivor_takes_over_for_good() -> None:
    async with _system("prefill=1,decode=2", decode_0=tuple(range(1, 100))) as system:
        with anyio.fail_after(30):
            for i in range(6):
                request = msgspec.structs.replace(_request(f"s{i}"), cache_salt=str(i))  # or all would follow the first
                assert await _answer(system, request) == _expected(request)
        assert (await system.status()).workers_down == ("decode.0",)


async def test_the_gateways_death_reaches_every_client() -> None:
    async with _system("prefill=1,decode=1") as system:
        async with system.client.stream(_request("w", max_tokens=200)) as events:
            await anext(events)
            gateway = next(spec.actor for spec in system.specs if spec.address == GATEWAY)
            del gateway.ledger  # type: ignore[attr-defined]
            with anyio.fail_after(10):
                last = [event async for event in events][-1]
        assert isinstance(last, Failed)
        with anyio.fail_after(10):
            assert (await _failure(system, _request("later"))).error.status == 500


@pytest.mark.parametrize("address", [SCHEDULER, TRANSFER])
async def test_scheduler_and_transfer_come_back_and_streams_go_on(address: Address) -> None:
    async with _system("prefill=1,decode=1") as system:
        supervisor = next(spec.actor for spec in system.specs if spec.address == address)
        assert isinstance(supervisor, ActorSupervisor)
        running, later = _request("running", max_tokens=200), _request("later")
        async with system.client.stream(running) as events:
            first = await anext(events)
            assert isinstance(first, Delta)
            vars(supervisor.actor)["_handle"] = None  # its next message is its death
            tokens = [first.tokens[0].token]
            with anyio.fail_after(30):
                assert await _answer(system, later) == _expected(later)
                async for event in events:
                    tokens += [record.token for record in getattr(event, "tokens", ())]
        assert tokens == _expected(running)[0]
        assert supervisor.epoch == 2
        assert system.failure is None
        await _settled(system)


async def test_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    async with _system("prefill=1,decode=1") as system:
        running = _request("running", max_tokens=100)
        async with system.client.stream(running) as events:
            first = await anext(events)
            assert isinstance(first, Delta)
            drained: list[bool] = []

            async def drain() -> None:
                drained.append(await system.drain(30))

            async with anyio.create_task_group() as group:
                group.start_soon(drain)
                await anyio.lowlevel.checkpoint()
                refused = await _failure(system, _request("late"))
                assert (refused.error.status, refused.error.code) == (503, "draining")
                tokens = [first.tokens[0].token]
                async for event in events:
                    tokens += [record.token for record in getattr(event, "tokens", ())]
        assert tokens == _expected(running)[0]
        assert drained == [True]


async def test_a_stream_after_the_end_is_refused_at_once() -> None:
    async with _system("prefill=1,decode=1") as system:
        assert await system.drain(30)
    with anyio.fail_after(10):
        failed = await _failure(system, _request("too-late"))
    assert (failed.error.status, failed.error.code) == (503, "shutting_down")


async def test_a_request_that_waits_too_long_is_told_so() -> None:
    async with _system("prefill=1,decode=1") as system:
        late = GenerateRequest(
            request="t", prompt=(1,) * 200, params=SamplingParams(seed=1, max_tokens=9), queue_timeout_s=0.0
        )
        failed = await _failure(system, late)
        assert (failed.error.status, failed.error.code) == (503, "queue_timeout")
        await _settled(system)


@pytest.mark.parametrize("include", [False, True])
async def test_a_token_that_stops_has_text_only_where_it_is_included(include: bool) -> None:
    params = SamplingParams(seed=3, max_tokens=200, stop_token_ids=(9,), logit_bias=((9, 100.0), (10, 100.0)))
    request = GenerateRequest(request="r", prompt=(1, 2), params=params, text=TextOptions(include_stop=include))
    async with _system("prefill=1,decode=1") as system:
        deltas = list[Delta]()
        async with system.client.stream(request) as events:
            deltas += [event async for event in events if isinstance(event, Delta)]
        await _settled(system)
    owed = expected_choice(request.prompt, params, 0, ())
    assert owed.records[-1].token == deltas[-1].stop_match == 9
    assert "".join(delta.text for delta in deltas) == owed.text + (token_text(9) if include else "")


async def test_more_choices_than_rows_is_refused_with_the_numbers() -> None:
    async with _system("prefill=1,decode=1") as system:
        failed = await _failure(system, _request("n", num_choices=17))
        assert failed.error.status == 400
        assert "16 rows" in failed.error.message
