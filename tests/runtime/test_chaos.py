"""Failures on order: the language, the counts, and what the wrappers do to engine and mover."""

import itertools
import threading
from collections.abc import Sequence

import pytest

from runtime.chaos.campaign import Campaign, Chaos
from runtime.chaos.engine import ChaosEngine, ChaosError
from runtime.chaos.mover import ChaosMover
from runtime.chaos.spec import SpecError, Strike, check_targets, parse_chaos
from runtime.engine import ChunkVanished, EngineSpec, KvChunk, PrefillSegment, Step
from runtime.topology import parse_topology
from tests.simulation.fake_engine import FakeEngine

TOPOLOGY = parse_topology("prefill=2,decode=1")
SPEC = EngineSpec(
    page_size=4,
    num_pages=9,
    num_rows=2,
    max_context_tokens=32,
    vocab_size=64,
    chunk_tokens=8,
    max_prefill_segments=4,
    page_bytes=1,
)
IDLE, DECODE = Step(), Step(decode=())
CHUNKS = Step(prefill=tuple(PrefillSegment(tokens=(index,), start=0, pages=(index,)) for index in (1, 2)))


def strike(part: str) -> Strike:
    (parsed,) = parse_chaos(part)
    return parsed


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("decode.0:crash@step=50", {"kind": "crash", "unit": "step", "count": 50}),
        ("prefill.1:crash@chunk=7", {"kind": "crash", "unit": "chunk", "count": 7}),
        ("prefill.1:hang@chunk=7", {"kind": "hang", "unit": "chunk", "count": 7, "duration_s": None}),
        ("decode.0:hang@step=7/5s", {"kind": "hang", "count": 7, "duration_s": 5.0}),
        ("decode.0:hang@step=7/1.5ms", {"kind": "hang", "duration_s": 0.0015}),
        ("decode.0:oom@step=1", {"kind": "oom", "count": 1}),
        ("decode.0:slow=2.5", {"kind": "slow", "factor": 2.5}),
        ("transfer:drop=0.01", {"kind": "drop", "share": 0.01}),
        ("transfer:fail=1", {"kind": "fail", "share": 1.0}),
        ("transfer:corrupt=1e-3", {"kind": "corrupt", "share": 0.001}),
        ("transfer:delay=50ms", {"kind": "delay", "duration_s": 0.05}),
    ],
)
def test_each_part_says_who_what_and_when(part: str, expected: dict[str, object]) -> None:
    parsed = strike(part)
    assert (parsed.text, parsed.target) == (part, part.partition(":")[0])
    assert {name: getattr(parsed, name) for name in expected} == expected


def test_parts_are_joined_by_commas() -> None:
    assert [part.text for part in parse_chaos("decode.0:slow=2, transfer:drop=0.5")] == [
        "decode.0:slow=2",
        "transfer:drop=0.5",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "'': allowed: WORKER:crash@step=N"),
        ("decode.0", "'decode.0': allowed: WORKER:crash@step=N"),
        ("decode.0:crash@step=1,", "'': allowed: WORKER"),
        (":crash@step=1", "':crash@step=1': allowed: WORKER"),
        ("decode.0:explode@step=1", "allowed: crash@step=N, hang@step=N/5s"),
        ("decode.0:crash@stp=1", "allowed: crash@step=N or crash@chunk=N"),
        ("decode.0:oom@chunk=1", "allowed: oom@step=N"),
        ("decode.0:crash@step=0", "a whole number N from 1"),
        ("decode.0:crash@step=-5", "a whole number N from 1"),
        ("decode.0:crash@step=1/5s", "a whole number N from 1"),
        ("decode.0:hang@step=1/", "a time like 50ms or 5s"),
        ("decode.0:hang@step=1/5", "a time like 50ms or 5s"),
        ("decode.0:slow=1", "a factor above 1"),
        ("decode.0:slow=nan", "a factor above 1"),
        ("transfer:drop=0", "a share above 0 and at most 1"),
        ("transfer:drop=1.01", "a share above 0 and at most 1"),
        ("transfer:delay=0ms", "a time like 50ms or 5s"),
        ("transfer:delay=2h", "a time like 50ms or 5s"),
        ("transfer:crash@step=1", "drop=P, fail=P, corrupt=P or delay=50ms after transfer:"),
        ("x" * 5000, "..."),
    ],
)
def test_what_is_not_understood_is_named_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse_chaos(spec)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("spec", "topology", "message"),
    [
        ("decode.1:slow=2", "prefill=1,decode=1", "no worker 'decode.1'; allowed: prefill.0, decode.0, transfer"),
        ("decode.0:crash@chunk=1", "prefill=1,decode=1", "a decode worker computes no prompt chunks"),
        ("transfer:drop=1", "mixed=2", "moves no chunks; allowed: mixed.0, mixed.1"),
    ],
)
def test_a_strike_needs_a_target(spec: str, topology: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_targets(parse_chaos(spec), parse_topology(topology))


class _Eager(FakeEngine):
    """Prefills into pages that nobody owns: what is computed does not matter here."""

    def dispatch(self, step: Step):  # type: ignore[no-untyped-def]
        return super().dispatch(Step(deferred=step.deferred))


def _engine(spec: str) -> tuple[ChaosEngine, Campaign]:
    chaos = Chaos(TOPOLOGY, seed=1)
    engine = ChaosEngine("prefill.0", _Eager("prefill.0", SPEC), chaos)
    for _ in range(3):
        engine.dispatch(IDLE)
    return engine, chaos.begin(spec)


def test_steps_are_counted_from_the_order_on_and_strike_once() -> None:
    engine, campaign = _engine("prefill.0:crash@step=2,prefill.1:crash@step=1")
    engine.dispatch(IDLE)
    with pytest.raises(ChaosError, match="prefill.0:crash@step=2"):
        engine.dispatch(IDLE)
    engine.reset()
    for _ in range(5):
        engine.fetch(engine.dispatch(IDLE))
    assert campaign.hits() == {"prefill.0:crash@step=2": 1, "prefill.1:crash@step=1": 0}


def test_chunks_are_those_of_prompts() -> None:
    engine, _ = _engine("prefill.0:crash@chunk=4")
    engine.dispatch(CHUNKS)
    engine.dispatch(DECODE)
    with pytest.raises(ChaosError, match="chunk=4"):
        engine.dispatch(CHUNKS)


def test_out_of_memory_is_what_the_steps_result_says() -> None:
    engine, _ = _engine("prefill.0:oom@step=1")
    first, second = engine.dispatch(IDLE), engine.dispatch(IDLE)
    with pytest.raises(ChaosError, match="RESOURCE_EXHAUSTED"):
        engine.fetch(first)
    engine.reset()
    assert engine.fetch(second) == ()


def test_a_deferred_step_fails_by_the_handle_that_is_fetched() -> None:
    engine, _ = _engine("prefill.0:oom@step=1")
    handle = engine.dispatch(Step(deferred=True))
    sampling = engine.sample(handle, {})
    assert sampling.fence > handle.fence
    with pytest.raises(ChaosError, match="RESOURCE_EXHAUSTED: .*prefill.0:oom@step=1"):
        engine.fetch(sampling)


def test_a_hang_lasts_until_the_chaos_ends() -> None:
    chaos = Chaos(TOPOLOGY, seed=1)
    engine = ChaosEngine("prefill.0", _Eager("prefill.0", SPEC), chaos)
    campaign = chaos.begin("prefill.0:hang@step=1")
    hung = threading.Thread(target=engine.dispatch, args=(IDLE,), daemon=True)
    hung.start()
    assert hung.is_alive()
    chaos.end()
    hung.join(30)
    assert not hung.is_alive()
    assert chaos.campaign is None
    assert campaign.hits() == {"prefill.0:hang@step=1": 1}


def test_a_hang_may_end_by_itself_and_slow_steps_are_counted() -> None:
    engine, campaign = _engine("prefill.0:hang@step=1/1ms,prefill.0:slow=1.5")
    engine.fetch(engine.dispatch(IDLE))
    assert campaign.hits() == {"prefill.0:hang@step=1/1ms": 1, "prefill.0:slow=1.5": 1}


def test_a_spec_that_is_refused_leaves_the_old_one_in_force() -> None:
    chaos = Chaos(TOPOLOGY, seed=1)
    campaign = chaos.begin("prefill.0:slow=2")
    with pytest.raises(SpecError):
        chaos.begin("decode.9:slow=2")
    assert chaos.campaign is campaign
    assert chaos.begin("decode.0:slow=2").hits() == {"decode.0:slow=2": 0}
    assert campaign.over.is_set()


def test_where_there_is_no_kv_nothing_can_be_corrupted() -> None:
    with pytest.raises(SpecError, match="emulated slices hold no KV"):
        Chaos(TOPOLOGY, 1, has_kv=False).begin("transfer:corrupt=0.5")


def test_strikes_are_logged_and_what_goes_on_only_once(caplog: pytest.LogCaptureFixture) -> None:
    engine, campaign = _engine("prefill.0:slow=1.5,prefill.0:oom@step=3")
    for _ in range(2):
        engine.fetch(engine.dispatch(IDLE))
    with pytest.raises(ChaosError):
        engine.fetch(engine.dispatch(IDLE))
    assert campaign.hits() == {"prefill.0:slow=1.5": 3, "prefill.0:oom@step=3": 1}
    assert caplog.text.count("chaos strikes: prefill.0:slow=1.5") == 1
    assert caplog.text.count("chaos strikes: prefill.0:oom@step=3") == 1
    assert {record.levelname for record in caplog.records} == {"WARNING"}


class _Mover:
    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        return chunk


def _flip(chunk: KvChunk, draw_below: object) -> KvChunk:
    return KvChunk(("flipped", chunk))


def _outcomes(spec: str, seed: int, moves: int = 200) -> Sequence[object]:
    chaos = Chaos(TOPOLOGY, seed)
    mover = ChaosMover(_Mover(), chaos, _flip)
    chaos.begin(spec)
    outcomes: list[object] = []
    for number in range(moves):
        try:
            outcomes.append(mover.move(KvChunk(number), "decode.0"))
        except (ChunkVanished, ChaosError) as error:
            outcomes.append(type(error).__name__)
    return outcomes


def test_a_share_of_the_chunks_is_lost_failed_and_changed_as_the_seed_says() -> None:
    spec = "transfer:drop=0.2,transfer:fail=0.2,transfer:corrupt=0.2,transfer:delay=1ms"
    outcomes = _outcomes(spec, seed=3)
    kinds = {name: outcomes.count(name) for name in ("ChunkVanished", "ChaosError")}
    kinds["flipped"] = sum(isinstance(outcome, tuple) for outcome in outcomes)
    assert all(10 < count < 80 for count in kinds.values()), kinds
    assert outcomes == _outcomes(spec, seed=3) != _outcomes(spec, seed=4)


def test_without_a_campaign_everything_passes() -> None:
    mover = ChaosMover(_Mover(), Chaos(TOPOLOGY, 1), _flip)
    assert [mover.move(KvChunk(n), "decode.0") for n in range(3)] == list(itertools.islice(itertools.count(), 3))
