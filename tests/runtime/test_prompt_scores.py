"""Prompts' own logprobs are the dense model's, however their chunks are cut and batched."""

import re

import msgspec
import numpy as np
import pytest

from runtime.engine import PrefillSegment, Scored, Step
from runtime.jax_engine import JaxEngine
from runtime.programs import Key
from runtime.step_sampling import SCORE_BLOCK
from tests.runtime.engines import (
    MODEL,
    Runner,
    assert_greedy,
    dense_logprobs,
    make_engine,
    prompt_of,
    row_state,
    segment,
)

CHUNK = 256


@pytest.fixture(scope="module", params=[1, 2], ids="tp{}".format)
def shared_engine(request: pytest.FixtureRequest) -> JaxEngine:
    return make_engine(tp=request.param, chunk_tokens=CHUNK, max_context_tokens=512, num_pages=128)


@pytest.fixture
def engine(shared_engine: JaxEngine) -> JaxEngine:
    shared_engine.wait()
    shared_engine.reset()
    return shared_engine


def scored(
    prompt: tuple[int, ...], pages: range, start: int = 0, end: int | None = None, *, score: int = 0, **more: object
) -> PrefillSegment:
    part = segment(prompt, pages, start, end, **more)  # type: ignore[arg-type]
    stop = start + len(part.tokens)
    return msgspec.structs.replace(part, score=score, next_token=prompt[stop] if stop < len(prompt) else None)


def run(engine: JaxEngine, *prefill: PrefillSegment, decode: tuple[int, ...] = ()) -> tuple[tuple[Scored, ...], ...]:
    handle = engine.dispatch(Step(prefill=prefill, decode=decode))
    engine.fetch(handle)
    return engine.fetch_scores(handle)


def assert_scores(prompt: tuple[int, ...], found: list[Scored], top: int) -> None:
    """`found` are those of all tokens but the first."""
    assert [one.token for one in found] == list(prompt[1:])
    dense = dense_logprobs(prompt)[:-1]
    wanted = dense[np.arange(len(found)), prompt[1:]]
    np.testing.assert_allclose([one.logprob for one in found], wanted, atol=1e-4)
    best = np.argsort(-dense, axis=1)[:, :top]
    assert [[token for token, _ in one.top] for one in found] == best.tolist()
    np.testing.assert_allclose(
        [[logprob for _, logprob in one.top] for one in found], np.take_along_axis(dense, best, axis=1), atol=1e-4
    )


@pytest.mark.parametrize(("length", "top"), [(3, 20), (SCORE_BLOCK, 1), (SCORE_BLOCK + 2, 0), (201, 5)])
def test_a_prompt_in_one_chunk(engine: JaxEngine, length: int, top: int) -> None:
    prompt = prompt_of(length)
    (found,) = run(engine, scored(prompt, range(1, 40), score=top))
    assert_scores(prompt, list(found), top)


def test_a_prompt_over_several_chunks(engine: JaxEngine) -> None:
    prompt, pages = prompt_of(200), range(1, 40)
    found: list[Scored] = []
    for start, end in ((0, 40), (40, 41), (41, 150), (150, 199), (199, 200)):
        (part,) = run(engine, scored(prompt, pages, start, end, score=3))
        assert len(part) == end - start - (end == 200)
        found += part
    assert_scores(prompt, found, 3)


def test_segments_are_scored_as_they_ask_and_sampled_as_ever(engine: JaxEngine) -> None:
    prompts = [prompt_of(length) for length in (9, 70, 20, 101)]
    pages = [range(1, 3), range(10, 20), range(20, 24), range(30, 44)]
    engine.set_rows([row_state(row, prompts[row], [*pages[row], 50 + row]) for row in range(4)])
    handle = engine.dispatch(
        Step(
            prefill=(
                segment(prompts[0], pages[0], rows=(0,)),
                scored(prompts[1], pages[1], score=2, rows=(1,)),
                segment(prompts[2], pages[2], rows=(2,)),
                scored(prompts[3], pages[3], score=0, rows=(3,)),
            )
        )
    )
    first = engine.fetch(handle)
    found = engine.fetch_scores(handle)
    assert [one.row for one in first] == [0, 1, 2, 3]
    for row in range(4):
        assert_greedy(prompts[row], [first[row].token])
    assert len(found) == 2
    assert_scores(prompts[1], list(found[0]), 2)
    assert_scores(prompts[3], list(found[1]), 0)


def test_beside_deferred_decode_rows(engine: JaxEngine) -> None:
    old, new = prompt_of(8), prompt_of(30)
    engine.set_rows([row_state(0, old, (1, 2, 3))])
    runner = Runner(engine)
    runner.run(prefill=(segment(old, (1, 2), rows=(0,)),))
    handle = engine.dispatch(Step(prefill=(scored(new, range(5, 9), score=1),), decode=(0,), deferred=True))
    sampling = engine.sample(handle, {})
    assert_greedy(old, [*runner.tokens(0), engine.fetch(sampling)[0].token])
    assert_scores(new, list(engine.fetch_scores(sampling)[0]), 1)


def test_who_asks_for_nothing_gets_nothing(engine: JaxEngine) -> None:
    assert run(engine, segment(prompt_of(30), range(1, 5))) == ()
    assert run(engine, scored(prompt_of(1), range(1, 2))) == ((),)


def test_logits_of_a_whole_chunk_never_exist(engine: JaxEngine) -> None:
    text = engine.programs.compiled(Key("prefill", CHUNK)).as_text()
    rows = {int(count) for count in re.findall(rf"f32\[(\d+),{MODEL.vocab_size}\]", text)}
    assert max(rows) == SCORE_BLOCK < CHUNK
