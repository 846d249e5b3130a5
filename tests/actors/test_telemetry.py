"""What actors tell of their work, on the in-memory carrier over fake engines."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from actors.client import GenerateRequest
from actors.messages import Address, Completed
from actors.supervisor import RestartPolicy
from actors.system import System, running_system
from actors.telemetry import NoTelemetry, RecoveryCause, StepMeter, StepRecord, WorkerLoad
from actors.turn import Turn
from actors.wiring import SystemOptions
from runtime.engine import EngineSpec, PrefillSegment, Step
from runtime.sampling_params import SamplingParams
from runtime.topology import parse_topology
from tests.actors.test_system import SPEC, _Dying
from tests.simulation.fake_engine import FakeMover
from tests.simulation.fake_tokens import FakeText

pytestmark = pytest.mark.anyio
PREFILL, DECODE = Address("prefill.0"), Address("decode.0")
USABLE = SPEC.num_pages - 1


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Recorder(NoTelemetry):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[Address, StepRecord]] = []
        self.lookups: list[tuple[Address, int, int]] = []
        self.moves: list[tuple[Address, Address, int, float]] = []
        self.admissions: Counter[bool] = Counter()
        self.recoveries: Counter[str] = Counter()
        self.deaths: list[tuple[Address, bool]] = []
        self.loads: dict[Address, WorkerLoad] = {}
        self.queue = (-1, -1)

    def queued(self, waiting: int, placed: int) -> None:
        self.queue = (waiting, placed)

    def admitted(self, *, again: bool) -> None:
        self.admissions[again] += 1

    def recovered(self, cause: RecoveryCause) -> None:
        self.recoveries[cause] += 1

    def died(self, actor: Address, *, final: bool) -> None:
        self.deaths.append((actor, final))

    def moved(self, source: Address, target: Address, num_tokens: int, duration_s: float) -> None:
        self.moves.append((source, target, num_tokens, duration_s))

    def stepped(self, worker: Address, step: StepRecord) -> None:
        self.steps.append((worker, step))

    def looked_up(self, worker: Address, num_tokens: int, cached_tokens: int) -> None:
        self.lookups.append((worker, num_tokens, cached_tokens))

    def holds(self, worker: Address, load: WorkerLoad) -> None:
        self.loads[worker] = load


@asynccontextmanager
async def system(topology: str, telemetry: Recorder, spec: EngineSpec = SPEC, **fail_at: int) -> AsyncIterator[System]:
    parsed = parse_topology(topology)
    engines = {part.name: _Dying(part.name, spec) for part in parsed.slices}
    for name, step in fail_at.items():
        engines[name.replace("_", ".")].fail_at = (step,)
    options = SystemOptions(
        max_queued=64, max_choices=8, decode_reserve_tokens=16, telemetry=telemetry,
        restart=RestartPolicy(max_restarts=2, backoff_s=0.0),
    )  # fmt: skip
    async with running_system(engines, parsed, FakeMover(engines), FakeText, options) as running:
        yield running


async def answer(running: System, name: str, prompt: tuple[int, ...], max_tokens: int) -> Completed:
    params = SamplingParams(seed=7, max_tokens=max_tokens)
    async with running.client.stream(GenerateRequest(request=name, prompt=prompt, params=params)) as events:
        async for event in events:
            if isinstance(event, Completed):
                return event
    raise AssertionError("no answer")


async def test_one_request_through_two_slices_is_told_once_and_whole() -> None:
    telemetry = Recorder()
    prompt = tuple(range(40))  # chunks of 32 and 8 tokens, 5 pages
    async with system("prefill=1,decode=1", telemetry) as running:
        ended = await answer(running, "a", prompt, max_tokens=6)
    assert ended.completion_tokens == 6
    prefills = [step for worker, step in telemetry.steps if worker == PREFILL]
    assert [(step.phase, step.rows, step.prefill_tokens) for step in prefills] == [
        ("prefill", 0, 32),
        ("prefill", 0, 8),
    ]
    decodes = [step for worker, step in telemetry.steps if worker == DECODE]
    assert {(step.phase, step.rows, step.prefill_tokens) for step in decodes} == {("decode", 1, 0)}
    assert len(decodes) >= 4  # the first token is prefill's; the last step may not be read before the end
    assert all(step.duration_s >= 0 for _, step in telemetry.steps)
    assert sorted(move[:3] for move in telemetry.moves) == [(PREFILL, DECODE, 8), (PREFILL, DECODE, 32)]
    assert sorted(telemetry.lookups) == [(DECODE, 40, 0), (PREFILL, 40, 0)]
    assert telemetry.admissions == {False: 1}
    assert (telemetry.recoveries, telemetry.deaths) == ({}, [])


async def test_a_prefix_is_found_where_it_is_cached() -> None:
    telemetry = Recorder()
    async with system("mixed=1", telemetry) as running:
        await answer(running, "a", tuple(range(40)), max_tokens=2)
        await answer(running, "b", (*range(32), 50, 51), max_tokens=2)
    assert telemetry.lookups == [(Address("mixed.0"), 40, 0), (Address("mixed.0"), 34, 32)]


async def test_a_death_and_what_recovers_from_it_are_told() -> None:
    telemetry = Recorder()
    async with system("prefill=1,decode=1", telemetry, decode_0=3) as running:
        ended = await answer(running, "a", tuple(range(20)), max_tokens=10)
    assert ended.completion_tokens == 10
    assert telemetry.deaths == [(DECODE, False)]
    assert telemetry.recoveries == {"taken back": 1}
    assert telemetry.admissions == {False: 1, True: 1}


async def test_emptied_caches_give_back_their_pages() -> None:
    telemetry = Recorder()
    async with system("prefill=1,decode=1", telemetry) as running:
        await answer(running, "a", tuple(range(40)), max_tokens=2)
        pages = await running.forget_prefixes()
        assert pages == {PREFILL: 5, DECODE: 5}
        assert await running.forget_prefixes() == {PREFILL: 0, DECODE: 0}
        await answer(running, "b", tuple(range(40)), max_tokens=2)
    assert [cached for _, _, cached in telemetry.lookups] == [0, 0, 0, 0]


async def test_pages_are_told_by_what_they_are_used_for() -> None:
    telemetry = Recorder()
    async with system("mixed=1", telemetry) as running:
        await answer(running, "a", tuple(range(40)), max_tokens=2)
        await running.forget_prefixes()
        await answer(running, "b", tuple(range(24)), max_tokens=2)
        await running.forget_prefixes()
    load = telemetry.loads[Address("mixed.0")]
    assert load.used_pages + load.cached_pages + load.free_pages == USABLE
    assert (load.running, load.leases, load.prefills, load.queued_prefill_tokens) == (0, 0, 0, 0)


def turn(step: Step | None) -> Turn:
    return Turn(inserts=[], rows=[], chunks=(), step=step, slots=(), begun=[], deferred=(), gathers=[], copies=[])


def test_a_step_begins_when_the_one_before_it_has_been_read() -> None:
    telemetry = Recorder()
    meter = StepMeter(DECODE, telemetry)
    segment = PrefillSegment(tokens=(1, 2, 3), start=0, pages=(1,))
    meter.began(turn(Step(decode=(0, 1))), 1.0)
    meter.began(turn(None), 1.25)
    meter.began(turn(Step(decode=(0,), prefill=(segment,))), 1.5)
    meter.read(2.0)
    meter.read(2.75)
    meter.began(turn(Step(prefill=(segment, segment))), 4.0)
    meter.read(4.5)
    assert [step for _, step in telemetry.steps] == [
        StepRecord(phase="decode", duration_s=1.0, rows=2, prefill_tokens=0),
        StepRecord(phase="mixed", duration_s=0.75, rows=1, prefill_tokens=3),
        StepRecord(phase="prefill", duration_s=0.5, rows=0, prefill_tokens=6),
    ]
