"""The emulated engine and mover in virtual time: what overlaps, who waits until when, and which tokens come out."""

import msgspec
import pytest

from runtime.emulated.draws import Draws, drawable_ids
from runtime.emulated.engine import EmulatedChunk, EmulatedEngine
from runtime.emulated.mover import EmulatedMover
from runtime.emulated.timeline import Clock
from runtime.engine import EngineSpec, KvChunk, PrefillSegment, RowState, Step
from runtime.sampling_params import SamplingParams
from runtime.tokens import Tokenizer
from runtime.topology import Role
from tests.runtime.step_times import table
from tests.runtime.tiny_tokenizer import metaspace_tokenizer, tiny_tokenizer

SPEC = EngineSpec(
    page_size=16,
    num_pages=100,
    num_rows=8,
    max_context_tokens=400,
    vocab_size=50,
    chunk_tokens=64,
    max_prefill_segments=2,
    page_bytes=1600,
)


class VirtualClock(Clock):
    """Time that only passes when somebody sleeps, `overshoot_s` too long each time, or when a test says so."""

    def __init__(self, overshoot_s: float = 0.0) -> None:
        self.time = 100.0
        self._overshoot_s = overshoot_s

    def now(self) -> float:
        return self.time

    def sleep_until(self, end: float) -> None:
        if end > self.time:
            self.time = end + self._overshoot_s

    @property
    def passed_s(self) -> float:
        return self.time - 100.0


def engine(clock: Clock, role: Role = "mixed") -> EmulatedEngine:
    return EmulatedEngine(SPEC, table(), Draws(range(50)), role=role, clock=clock)


def row(number: int, *, length: int = 100, output: tuple[int, ...] = (), **sampling: object) -> RowState:
    params = SamplingParams(**({"seed": 7, "max_tokens": 9} | sampling))  # type: ignore[arg-type]
    return RowState(
        row=number, sampling=params, choice=0, prompt=(1,), output=output, pages=(1,), length=length, last_token=1
    )


def prefill(count: int, start: int = 0, sample_rows: tuple[int, ...] = ()) -> Step:
    return Step(prefill=(PrefillSegment(tokens=(1,) * count, start=start, pages=(1,), sample_rows=sample_rows),))


def test_dispatching_takes_no_time_and_fetching_waits_for_the_end() -> None:
    clock = VirtualClock()
    slice_ = engine(clock)
    handle = slice_.dispatch(prefill(32))
    assert clock.passed_s == 0.0
    slice_.fetch(handle)
    assert clock.passed_s == pytest.approx(0.3)
    slice_.fetch(handle)
    assert clock.passed_s == pytest.approx(0.3)


def test_an_operation_begins_when_the_one_before_ends_or_when_it_is_enqueued() -> None:
    clock = VirtualClock()
    slice_ = engine(clock)
    first, second = slice_.dispatch(prefill(32)), slice_.dispatch(prefill(64))
    slice_.fetch(first)
    assert clock.passed_s == pytest.approx(0.3)
    clock.time += 0.1  # the host does something else while the second step runs
    third = slice_.dispatch(prefill(32, start=100))
    slice_.fetch(second)
    assert clock.passed_s == pytest.approx(0.9)
    slice_.fetch(third)
    assert clock.passed_s == pytest.approx(1.3)
    clock.time += 5.0  # the device idles
    slice_.fetch(slice_.dispatch(prefill(32)))
    assert clock.passed_s == pytest.approx(6.6)


def test_one_step_in_flight_keeps_the_device_busy() -> None:
    """As workers do: dispatch the next step, then read the one before, with host work shorter than a step."""
    clock = VirtualClock()
    slice_ = engine(clock)
    slice_.set_rows([row(0)])
    flight = slice_.dispatch(Step(decode=(0,)))
    for _ in range(20):
        landing, flight = flight, slice_.dispatch(Step(decode=(0,)))
        slice_.fetch(landing)
        clock.time += 0.05
    slice_.fetch(flight)
    # Contexts 100, 101, ..., 120 take 0.1 s and 1 ms per token beyond 100.
    assert clock.passed_s == pytest.approx(sum(0.1 + index * 1e-3 for index in range(21)))


def test_sleeping_too_long_delays_nothing_but_the_host() -> None:
    exact, late = VirtualClock(), VirtualClock(overshoot_s=0.01)
    for clock in (exact, late):
        slice_ = engine(clock)
        slice_.set_rows([row(0)])
        flight = slice_.dispatch(Step(decode=(0,)))
        for _ in range(50):
            landing, flight = flight, slice_.dispatch(Step(decode=(0,)))
            slice_.fetch(landing)
        slice_.fetch(flight)
    assert late.passed_s == pytest.approx(exact.passed_s + 0.01)


def test_a_gathered_chunk_moves_while_the_next_step_runs() -> None:
    clock = VirtualClock()
    slice_, mover = engine(clock, "prefill"), EmulatedMover(table().transfer, clock)
    first = slice_.dispatch(prefill(64))
    chunk = slice_.gather((1, 2, 3, 4))
    second = slice_.dispatch(prefill(64, start=100))
    assert clock.passed_s == 0.0
    # The step takes 0.6 s; packing 64 tokens 0.01 + 0.064 s, moving them 0.03 + 0.128 s.
    moved = mover.move(chunk, "decode.0")
    assert clock.passed_s == pytest.approx(0.6 + 0.074 + 0.158)
    slice_.fetch(first)
    assert clock.passed_s == pytest.approx(0.832)
    slice_.fetch(second)
    assert clock.passed_s == pytest.approx(0.6 + 0.074 + 0.8)
    target = engine(clock, "decode")
    target.insert(moved, (0, 1), (7, 8))
    assert target.wait() == target.fence == 1
    assert clock.passed_s == pytest.approx(1.474 + 0.02 + 0.064)


def test_a_chunk_that_is_there_already_moves_at_once() -> None:
    clock = VirtualClock()
    chunk = KvChunk(EmulatedChunk(num_tokens=100, ready=clock.time - 3))
    EmulatedMover(table().transfer, clock).move(chunk, "decode.0")
    assert clock.passed_s == pytest.approx(0.03 + 0.2)


def test_sizes_are_rounded_up_to_what_the_role_has_programs_for() -> None:
    clock = VirtualClock()
    slice_ = engine(clock)
    slice_.set_rows([row(number) for number in range(8)])
    # One page is packed as four are, and written to five places by two programs of four pages.
    slice_.insert(slice_.gather((3,)), (0,) * 5, (4, 5, 6, 7, 8))
    slice_.wait()
    assert clock.passed_s == pytest.approx(0.074 + 2 * 0.084)
    before = clock.passed_s
    slice_.fetch(slice_.dispatch(Step(prefill=prefill(33).prefill, decode=(0, 1, 2, 3, 4))))
    assert clock.passed_s - before == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("role", "step"),
    [("mixed", prefill(65)), ("decode", prefill(1)), ("prefill", Step(decode=(0,)))],
)
def test_a_step_that_the_role_has_no_program_for_is_refused(role: Role, step: Step) -> None:
    slice_ = engine(VirtualClock(), role)
    slice_.set_rows([row(0)])
    with pytest.raises(ValueError, match="more than the largest bucket"):
        slice_.dispatch(step)


def test_too_many_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="3 prefill segments, at most 2"):
        engine(VirtualClock()).dispatch(Step(prefill=prefill(1).prefill * 3))


def test_fences_count_every_operation_and_a_reset_forgets_the_rows() -> None:
    slice_ = engine(VirtualClock())
    slice_.set_rows([row(0)])
    handle = slice_.dispatch(Step(decode=(0,)))
    assert handle.fence == slice_.fence == 2
    slice_.reset()
    assert slice_.fence == 2
    with pytest.raises(KeyError):
        slice_.dispatch(Step(decode=(0,)))


def answer(slice_: EmulatedEngine, state: RowState, count: int) -> list[int]:
    slice_.set_rows([state])
    return [slice_.fetch(slice_.dispatch(Step(decode=(state.row,))))[0].token for _ in range(count)]


def test_an_answer_goes_on_as_it_began_on_another_slice_and_row() -> None:
    whole = answer(engine(VirtualClock()), row(0), 12)
    assert len(set(whole)) > 6
    first = engine(VirtualClock(), "prefill")
    first.set_rows([row(5)])
    (sampled,) = first.fetch(first.dispatch(prefill(10, sample_rows=(5,))))
    assert (sampled.row, sampled.token) == (5, whole[0])
    for done in (1, 7):
        state = row(3, output=tuple(whole[:done]), length=100 + done)
        assert answer(engine(VirtualClock(), "decode"), state, 12 - done) == whole[done:]


def test_seeds_and_choices_draw_different_answers() -> None:
    draws = Draws(range(1000))
    seeds = [SamplingParams(seed=seed, max_tokens=1) for seed in (1, 2, 2**63 - 1)]
    answers = [
        tuple(draws.draw(0, params, choice, index).token for index in range(5)) for params in seeds for choice in (0, 1)
    ]
    assert len(set(answers)) == 6


def test_samples_come_in_the_order_of_segments_and_then_rows() -> None:
    slice_ = engine(VirtualClock())
    slice_.set_rows([row(number, seed=number) for number in range(4)])
    step = Step(prefill=(*prefill(4, sample_rows=(2,)).prefill, *prefill(4, sample_rows=(3, 1)).prefill), decode=(0,))
    assert [sampled.row for sampled in slice_.fetch(slice_.dispatch(step))] == [2, 3, 1, 0]


def test_tokens_that_would_stop_the_request_are_not_drawn() -> None:
    draws = Draws(range(4))
    params = SamplingParams(seed=1, max_tokens=1, stop_token_ids=(0, 3, 77), logprobs=3)
    drawn = [draws.draw(0, params, 0, index) for index in range(100)]
    assert {sampled.token for sampled in drawn} == {1, 2}
    # Two tokens are left, each as likely as the other: ln 1/2.
    assert drawn[0].logprob == pytest.approx(-0.6931471805599453)
    assert [token for token, _ in drawn[0].top] == [1, 2]
    assert {logprob for _, logprob in drawn[0].top} == {drawn[0].logprob}
    all_stop = SamplingParams(seed=1, max_tokens=1, stop_token_ids=(0, 1, 2, 3))
    assert draws.draw(0, all_stop, 0, 0).token in range(4)


def test_a_deferred_step_lasts_as_long_as_a_fused_one_and_draws_under_its_masks() -> None:
    fused_clock, clock = VirtualClock(), VirtualClock()
    fused = answer(engine(fused_clock), row(0), 6)
    slice_ = engine(clock)
    slice_.set_rows([row(0), row(1)])
    tokens: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(6):
        step = slice_.dispatch(Step(decode=(0, 1), deferred=True))
        handle = slice_.sample(step, {1: bytes([0b0001_0100, 0, 0, 0])})
        assert handle.fence == slice_.fence > step.fence
        for sampled in slice_.fetch(handle):
            tokens[sampled.row].append(sampled.token)
    assert tokens[0] == fused
    assert set(tokens[1]) == {2, 4}
    assert clock.passed_s == pytest.approx(fused_clock.passed_s)


def test_a_rows_own_mask_counts_until_samples_are_deferred() -> None:
    slice_ = engine(VirtualClock())
    masked = msgspec.structs.replace(row(0), mask=bytes([0b1000, 0, 0, 0]))
    slice_.set_rows([masked])
    (first,) = slice_.fetch(slice_.dispatch(prefill(4, sample_rows=(0,))))
    later = [
        slice_.fetch(slice_.sample(slice_.dispatch(Step(decode=(0,), deferred=True)), {}))[0].token for _ in range(8)
    ]
    assert first.token == 3
    assert len(set(later)) > 1


def test_a_mask_of_none_of_the_drawn_ids_still_counts() -> None:
    draws = Draws(range(8))
    params = SamplingParams(seed=1, max_tokens=1, stop_token_ids=(7,), logprobs=5)
    only_stop, beyond = bytes([0x80, 0, 0, 0]), bytes([0, 0b10, 0, 0])
    stopping = draws.draw(0, params, 0, 0, only_stop)
    assert (stopping.token, stopping.logprob, stopping.top) == (7, 0.0, ((7, 0.0),))
    assert draws.draw(0, params, 0, 0, beyond).token == 9


def test_scores_are_of_the_tokens_that_follow() -> None:
    slice_ = engine(VirtualClock())
    parts = (
        PrefillSegment(tokens=(5, 6, 7), start=0, pages=(1,), score=2, next_token=8),
        PrefillSegment(tokens=(5, 6), start=0, pages=(1,), score=0),
    )
    first, last = slice_.fetch_scores(slice_.dispatch(Step(prefill=parts)))
    assert [one.token for one in first] == [6, 7, 8]
    assert [one.token for one in last] == [6]
    assert all(one.logprob < 0 and len(one.top) == 2 for one in first)
    assert last[0].top == ()
    assert slice_.fetch_scores(slice_.dispatch(prefill(3))) == ()


def test_without_the_wish_there_are_no_logprobs() -> None:
    sampled = Draws(range(4)).draw(0, SamplingParams(seed=1, max_tokens=1), 0, 0)
    assert (sampled.logprob, sampled.top) == (None, ())
    alone = Draws(range(4)).draw(0, SamplingParams(seed=1, max_tokens=1, logprobs=0), 0, 0)
    assert (alone.logprob is not None, alone.top) == (True, ())


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), metaspace_tokenizer()], ids=["byte level", "metaspace"])
def test_every_drawn_id_is_a_text_of_its_own(tokenizer: Tokenizer) -> None:
    ids = drawable_ids(tokenizer, tokenizer.vocab_size + 100)
    assert len(ids) > 100
    assert not tokenizer.special_ids.intersection(ids)
    assert all(tokenizer.piece(token).decode() for token in ids)
    assert drawable_ids(tokenizer, 40) == tuple(token for token in ids if token < 40)
