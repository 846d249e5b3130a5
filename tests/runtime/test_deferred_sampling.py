"""Deferred steps sample what fused ones do, under the host's masks; and rows start from a mask of their own."""

import re
from collections.abc import Mapping, Sequence

import jax
import msgspec
import numpy as np
import pytest

from runtime.engine import RowState, Sampled, Step
from runtime.jax_engine import JaxEngine
from runtime.programs import Key
from runtime.sampling_params import SamplingParams
from tests.runtime.engines import (
    GREEDY,
    MODEL,
    SPEC,
    dense_logprobs,
    make_engine,
    prompt_of,
    row_state,
    segment,
)

VOCAB = MODEL.vocab_size
EVERYTHING = b"\xff" * (VOCAB // 8)
SAMPLINGS = (
    GREEDY,
    SamplingParams(seed=1, max_tokens=64, temperature=0.0, logprobs=3),
    SamplingParams(seed=2**40 + 7, max_tokens=64, temperature=1.1, top_p=0.9, frequency_penalty=0.5, logprobs=0),
    SamplingParams(seed=8, max_tokens=64, min_p=0.05, repetition_penalty=1.3, stop_token_ids=(3,), min_tokens=9),
    SamplingParams(seed=9, max_tokens=64, temperature=0.7, logit_bias=((5, 3.0),), top_k=20),
)
"""One for each of five rows."""

PROMPTS = tuple(prompt_of(6 + 2 * row, row) for row in range(5))
PAGES = tuple(range(1 + 6 * row, 7 + 6 * row) for row in range(5))


def mask_of(*tokens: int) -> bytes:
    bits = np.zeros(VOCAB, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").tobytes()


@pytest.fixture(scope="module", params=[1, 2], ids="tp{}".format)
def shared_engine(request: pytest.FixtureRequest) -> JaxEngine:
    return make_engine(tp=request.param)


@pytest.fixture
def engine(shared_engine: JaxEngine) -> JaxEngine:
    shared_engine.wait()
    shared_engine.reset()
    return shared_engine


def begin(engine: JaxEngine, samplings: Sequence[SamplingParams] = SAMPLINGS, **row: object) -> None:
    """Prefills rows 0.. with their prompts and samples their first tokens."""
    states = [
        msgspec.structs.replace(row_state(index, PROMPTS[index], PAGES[index], sampling=sampling), **row)
        for index, sampling in enumerate(samplings)
    ]
    engine.set_rows(states)
    for index in range(len(samplings)):
        engine.fetch(engine.dispatch(Step(prefill=(segment(PROMPTS[index], PAGES[index], rows=(index,)),))))


def deferred(
    engine: JaxEngine, masks: Mapping[int, bytes], *, rows: Sequence[int] = range(5), **step: object
) -> tuple[Sampled, ...]:
    handle = engine.dispatch(Step(decode=tuple(rows), deferred=True, **step))  # type: ignore[arg-type]
    return engine.fetch(engine.sample(handle, masks))


def fused(engine: JaxEngine, rows: Sequence[int] = range(5)) -> tuple[Sampled, ...]:
    return engine.fetch(engine.dispatch(Step(decode=tuple(rows))))


def assert_same(ours: Sequence[Sampled], theirs: Sequence[Sampled]) -> None:
    """Tokens are equal; logprobs may differ by the products' order of sums in a program of another size."""
    assert [(one.row, one.token) for one in ours] == [(one.row, one.token) for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.logprob is None) == (other.logprob is None)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        np.testing.assert_allclose(one.logprob or 0.0, other.logprob or 0.0, atol=1e-5)


@pytest.mark.parametrize("masks", [{}, dict.fromkeys(range(5), EVERYTHING)], ids=["none", "all ones"])
def test_without_exclusions_tokens_and_state_are_those_of_fused_steps(
    engine: JaxEngine, masks: Mapping[int, bytes]
) -> None:
    outcomes: list[list[Sampled]] = []
    states = []
    for is_deferred in (False, True):
        engine.reset()
        begin(engine)
        sampled: list[Sampled] = []
        for _ in range(6):
            sampled += deferred(engine, masks) if is_deferred else fused(engine)
        engine.wait()
        # The sentinel row, the last, may hold anything.
        states.append([np.asarray(leaf)[:-1] for leaf in jax.tree.leaves(engine._rows)])
        outcomes.append([*sampled, *fused(engine)])
    assert_same(outcomes[1], outcomes[0])
    for ours, theirs in zip(states[1], states[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_what_the_masks_allow_is_sampled_and_other_rows_are_as_ever(engine: JaxEngine) -> None:
    begin(engine)
    plain = [fused(engine) for _ in range(4)]
    engine.reset()
    begin(engine)
    allowed = {1: (7, 40, 151), 2: (2, 3, 5, 90, 159), 4: (31, 32, 33)}
    seen: dict[int, set[int]] = {row: set() for row in allowed}
    for index in range(4):
        sampled = deferred(engine, {row: mask_of(*tokens) for row, tokens in allowed.items()})
        assert [one.row for one in sampled] == [0, 1, 2, 3, 4]
        for row in (0, 3):
            assert sampled[row].token == plain[index][row].token
        for row in allowed:
            seen[row].add(sampled[row].token)
    assert all(seen[row] <= set(tokens) for row, tokens in allowed.items())


def test_a_masked_greedy_row_takes_the_likeliest_allowed_token_and_keeps_raw_logprobs(engine: JaxEngine) -> None:
    begin(engine, SAMPLINGS[:2])
    first = fused(engine, (1,))[0].token
    tokens = [*PROMPTS[1], _first_token(1), first]
    for allowed in ((5, 77, 140), (6, 30), (12,)):
        (one,) = deferred(engine, {1: mask_of(*allowed)}, rows=(1,))
        dense = dense_logprobs(tokens)[-1]
        assert one.token == max(allowed, key=lambda token: dense[token])
        assert one.logprob == pytest.approx(dense[one.token], abs=1e-4)
        assert [token for token, _ in one.top] == np.argsort(-dense)[:3].tolist()
        tokens.append(one.token)


def _first_token(row: int) -> int:
    return int(dense_logprobs(PROMPTS[row])[-1].argmax())


def test_counts_of_masked_tokens_feed_the_penalties(engine: JaxEngine) -> None:
    """A penalty that no logit outweighs: of three allowed tokens each is taken once before one is taken twice."""
    sampling = SamplingParams(seed=1, max_tokens=64, temperature=0.0, frequency_penalty=100.0)
    begin(engine, (sampling,))
    mask = mask_of(20, 50, 110)
    tokens = [deferred(engine, {0: mask}, rows=(0,))[0].token for _ in range(6)]
    assert sorted(tokens[:3]) == sorted(tokens[3:]) == [20, 50, 110]


def test_in_a_mixed_step_prompts_are_sampled_at_once_and_come_first(engine: JaxEngine) -> None:
    begin(engine, SAMPLINGS[:2])
    engine.set_rows([row_state(4, PROMPTS[4], PAGES[4])])
    late = (segment(PROMPTS[4], PAGES[4], rows=(4,)),)
    handle = engine.dispatch(Step(prefill=late, decode=(1, 0), deferred=True))
    sampling = engine.sample(handle, {0: mask_of(9)})
    assert sampling.fence == engine.fence > handle.fence
    sampled = engine.fetch(sampling)
    assert [one.row for one in sampled] == [4, 1, 0]
    assert (sampled[0].token, sampled[2].token) == (_first_token(4), 9)
    assert sampled[1].token == int(dense_logprobs([*PROMPTS[1], _first_token(1)])[-1].argmax())


def test_the_next_forward_pass_is_fed_what_a_deferred_step_sampled(engine: JaxEngine) -> None:
    """Dispatched before anybody has seen it."""
    begin(engine, SAMPLINGS[:1])
    first = engine.sample(engine.dispatch(Step(decode=(0,), deferred=True)), {0: mask_of(9)})
    second = engine.dispatch(Step(decode=(0,), deferred=True))
    assert engine.fetch(first)[0].token == 9
    (one,) = engine.fetch(engine.sample(second, {}))
    assert one.token == int(dense_logprobs([*PROMPTS[0], _first_token(0), 9])[-1].argmax())


@pytest.mark.parametrize("allowed_mask", [None, mask_of(*range(0, VOCAB, 2))], ids=["free", "even only"])
def test_a_rows_own_mask_counts_until_samples_are_deferred(engine: JaxEngine, allowed_mask: bytes | None) -> None:
    sampling = msgspec.structs.replace(GREEDY, allowed_mask=allowed_mask)
    state = msgspec.structs.replace(row_state(0, PROMPTS[0], PAGES[0], sampling=sampling), mask=mask_of(13))
    engine.set_rows([state])
    (first,) = engine.fetch(engine.dispatch(Step(prefill=(segment(PROMPTS[0], PAGES[0], rows=(0,)),))))
    assert (first.token, fused(engine, (0,))[0].token) == (13, 13)
    dense = dense_logprobs([*PROMPTS[0], 13, 13])[-1].copy()
    if allowed_mask is not None:
        dense[1::2] = -np.inf
    (one,) = deferred(engine, {}, rows=(0,))
    assert one.token == int(dense.argmax())
    engine.set_rows([row_state(0, PROMPTS[0], PAGES[0], sampling=GREEDY, output=(13,))])
    assert deferred(engine, {}, rows=(0,))[0].token == int(dense_logprobs([*PROMPTS[0], 13])[-1].argmax())


def test_a_mask_of_another_vocabulary_is_refused(engine: JaxEngine) -> None:
    begin(engine, SAMPLINGS[:1])
    handle = engine.dispatch(Step(decode=(0,), deferred=True))
    with pytest.raises(ValueError, match="mask 0 has 8 bytes; allowed: 20"):
        engine.sample(handle, {0: b"\xff" * 8})
    wrong: RowState = msgspec.structs.replace(row_state(1, PROMPTS[1], PAGES[1]), mask=b"\xff" * 8)
    with pytest.raises(ValueError, match="mask has 8 bytes; 160 tokens take 20"):
        engine.set_rows([wrong])


def test_more_rows_than_the_platform_usually_samples_at_once() -> None:
    engine = make_engine(num_rows=20, num_pages=64)
    prompt = prompt_of(5)
    engine.set_rows([row_state(row, prompt, (1 + 2 * row, 2 + 2 * row), output=(7,)) for row in range(20)])
    masks = {row: mask_of(row, 100) for row in range(20)}
    sampled = deferred(engine, masks, rows=range(20))
    assert [one.row for one in sampled] == list(range(20))
    assert all(one.token in (one.row, 100) for one in sampled)


@pytest.mark.parametrize("key", [Key("decode", 4), Key("mixed", 32, 4), Key("sample", 4)], ids=str)
def test_no_state_as_wide_as_the_vocabulary_is_copied(shared_engine: JaxEngine, key: Key) -> None:
    text = shared_engine.programs.compiled(key).as_text()
    wide = rf"\w+\[{SPEC.num_rows + 1},(?:{VOCAB}|{VOCAB // 32})\]"
    assert re.search(rf"{wide}\S* parameter\(", text), "the pattern finds what it looks for"
    assert not re.search(rf"{wide}\S* copy", text)
