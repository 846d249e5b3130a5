"""The fake engine itself: it answers right when KV is right, and it sees every kind of wrong KV."""

import pytest

from runtime.engine import EngineSpec, PageWrite, PrefillSegment, RowState, Step
from runtime.sampling_params import SamplingParams
from tests.simulation.expected import expected_choice
from tests.simulation.fake_engine import FakeEngine, FakeMover
from tests.simulation.fake_pages import KvViolation
from tests.simulation.fake_tokens import END_OF_TEXT, VOCAB_SIZE

SPEC = EngineSpec(
    page_size=4, num_pages=12, num_rows=4, max_context_tokens=64, vocab_size=VOCAB_SIZE, chunk_tokens=8,
    max_prefill_segments=2, page_bytes=1,
)  # fmt: skip
PARAMS = SamplingParams(seed=2**40 + 5, max_tokens=7, logprobs=2, presence_penalty=0.5, stop_token_ids=(END_OF_TEXT,))
PROMPT = (5, 6, 7, 8, 9, 10)


def row(pages: tuple[int, ...], output: tuple[int, ...], length: int, number: int = 0) -> RowState:
    return RowState(
        row=number, sampling=PARAMS, choice=0, prompt=PROMPT, output=output, pages=pages, length=length,
        last_token=output[-1] if output else 0,
    )  # fmt: skip


def prefill(engine: FakeEngine, pages: tuple[int, ...]) -> int:
    """Prefills the prompt in two chunks; returns the first token."""
    engine.set_rows([row((), (), len(PROMPT))])
    engine.dispatch(Step(prefill=(PrefillSegment(tokens=PROMPT[:4], start=0, pages=pages[:1]),)))
    last = PrefillSegment(tokens=PROMPT[4:], start=4, pages=pages, sample_rows=(0,))
    (sampled,) = engine.fetch(engine.dispatch(Step(prefill=(last,))))
    return sampled.token


def test_prefill_move_and_decode_with_one_step_in_flight_give_the_expected_tokens() -> None:
    source, target = FakeEngine("prefill.0", SPEC), FakeEngine("decode.0", SPEC)
    first = prefill(source, (3, 4))
    chunk = FakeMover({"decode.0": target}).move(source.gather((3, 4)), "decode.0")
    target.insert(chunk, (0, 1), (9, 2))
    target.insert(chunk, (0, 1), (9, 2))  # a duplicate does no harm
    target.set_rows([row((9, 2), (first,), len(PROMPT))])
    expected = [record.token for record in expected_choice(PROMPT, PARAMS, 0, ()).records]
    handles = [target.dispatch(Step(decode=(0,))), target.dispatch(Step(decode=(0,)))]
    handles.append(target.dispatch(Step(decode=(0,), table=(PageWrite(0, 2, 5),))))
    tokens = [first, *(sampled.token for handle in handles for sampled in target.fetch(handle))]
    assert tokens == expected[:4]
    assert not source.violations
    assert not target.violations


def test_a_mixed_step_feeds_the_sampled_token_to_the_next_step() -> None:
    engine = FakeEngine("mixed.0", SPEC)
    engine.set_rows([row((1, 2), (), len(PROMPT))])
    segment = PrefillSegment(tokens=PROMPT, start=0, pages=(1, 2), sample_rows=(0,))
    handles = [engine.dispatch(Step(prefill=(segment,))), engine.dispatch(Step(decode=(0,)))]
    tokens = [sampled.token for handle in handles for sampled in engine.fetch(handle)]
    assert tokens == [record.token for record in expected_choice(PROMPT, PARAMS, 0, ()).records[:2]]


def test_an_overrun_token_goes_to_the_sentinel_page_unseen() -> None:
    engine = FakeEngine("decode.0", SPEC)
    prefill(engine, (1, 2))
    engine.set_rows([row((1, 2), (11, 12, 13), len(PROMPT) + 2)])
    engine.dispatch(Step(decode=(0,)))
    with pytest.raises(KvViolation, match="unwritten"):
        engine.wait()  # tokens 11 and 12 were never written
    engine.reset()
    first = prefill(engine, (1, 2))
    engine.set_rows([row((1, 2), (first,), len(PROMPT))])
    for _ in range(3):
        engine.dispatch(Step(decode=(0,)))  # positions 6, 7 and, without a page, 8
    engine.wait()


def test_decode_before_coverage_is_seen() -> None:
    engine = FakeEngine("decode.0", SPEC)
    engine.set_rows([row((1, 2), (11,), len(PROMPT))])
    handle = engine.dispatch(Step(decode=(0,)))
    with pytest.raises(KvViolation, match=r"row 0 .* reads unwritten page 1 slot 0 at position 0"):
        engine.fetch(handle)


def test_reading_a_poisoned_page_is_seen() -> None:
    engine = FakeEngine("decode.0", SPEC)
    first = prefill(engine, (1, 2))
    engine.pages.poison(1)
    engine.set_rows([row((1, 2), (first,), len(PROMPT))])
    engine.dispatch(Step(decode=(0,)))
    with pytest.raises(KvViolation, match="poisoned page 1 slot 0 at position 0"):
        engine.wait()


def test_a_page_that_is_freed_under_a_pending_step_is_seen() -> None:
    engine = FakeEngine("decode.0", SPEC)
    first = prefill(engine, (1, 2))
    engine.set_rows([row((1, 2), (first,), len(PROMPT))])
    handle = engine.dispatch(Step(decode=(0,)))
    engine.pages.poison(2)
    with pytest.raises(KvViolation, match="page 2 was freed while row 0"):
        engine.fetch(handle)
    with pytest.raises(KvViolation):
        engine.wait()  # broken until it is reset
    engine.reset()
    assert engine.wait() == engine.fence


def test_a_page_that_is_freed_under_a_pending_gather_or_insert_is_seen() -> None:
    engine = FakeEngine("prefill.0", SPEC)
    prefill(engine, (1, 2))
    good = FakeMover({"prefill.0": engine}).move(engine.gather((1, 2)), "prefill.0")
    engine.insert(good, (0,), (5,))
    engine.pages.poison(5)
    with pytest.raises(KvViolation, match="page 5 was freed while an insert"):
        engine.wait()
    engine.reset()
    prefill(engine, (1, 2))
    chunk = engine.gather((1, 2))
    engine.pages.poison(1)
    with pytest.raises(KvViolation, match="page 1 was freed while a gather"):
        FakeMover({"prefill.0": engine}).move(chunk, "prefill.0")


def test_a_page_that_another_sequence_reused_is_seen() -> None:
    engine = FakeEngine("decode.0", SPEC)
    first = prefill(engine, (1, 2))
    other = PrefillSegment(tokens=(40, 41, 42, 43), start=0, pages=(1,))
    engine.dispatch(Step(prefill=(other,)))
    engine.set_rows([row((1, 2), (first,), len(PROMPT))])
    engine.dispatch(Step(decode=(0,)))
    with pytest.raises(KvViolation, match="row 0 .* another sequence's KV in page 2 slot 0"):
        engine.wait()


def test_naming_a_free_page_or_a_foreign_chunk_is_seen() -> None:
    engine, other = FakeEngine("decode.0", SPEC), FakeEngine("decode.1", SPEC)
    engine.pages.is_free = lambda page: page == 7
    with pytest.raises(KvViolation, match="page 7, which is free"):
        engine.gather((6, 7))
    with pytest.raises(KvViolation, match="lies on decode.1"):
        engine.insert(other.gather((1,)), (0,), (1,))
    assert len(engine.violations) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"presence_penalty": 0.7},
        {"frequency_penalty": 0.7}, {"repetition_penalty": 1.5}, {"logit_bias": ((3, 1.0),)},
        {"allowed_mask": b"\xfe" * (VOCAB_SIZE // 8)}, {"stop_token_ids": tuple(range(2, 10)), "min_tokens": 7},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_sampling_parameter_matters(change: dict[str, object]) -> None:
    fields = {name: getattr(PARAMS, name) for name in PARAMS.__struct_fields__}
    changed = SamplingParams(**{**fields, **change})
    assert expected_choice(PROMPT, changed, 0, ()).records != expected_choice(PROMPT, PARAMS, 0, ()).records


def test_choice_and_prompt_length_matter() -> None:
    records = expected_choice(PROMPT, PARAMS, 0, ()).records
    assert expected_choice(PROMPT, PARAMS, 1, ()).records != records
    longer = expected_choice((*PROMPT, records[0].token), PARAMS, 0, ()).records
    assert longer[0] != records[1]
