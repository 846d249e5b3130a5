import random

import jax
import msgspec
import numpy as np
import pytest

from runtime.engine import PageWrite, Step
from runtime.jax_engine import JaxEngine
from runtime.programs import Key
from runtime.sampling_params import SamplingParams
from tests.runtime.engines import (
    BFLOAT16,
    GREEDY,
    PAGE,
    SPEC,
    Runner,
    assert_greedy,
    dense_logprobs,
    make_engine,
    prompt_of,
    row_state,
    segment,
)

WITH_LOGPROBS = SamplingParams(seed=1, max_tokens=64, temperature=0.0, logprobs=3)


@pytest.fixture(scope="module")
def shared_engine() -> JaxEngine:
    return make_engine()


@pytest.fixture
def engine(shared_engine: JaxEngine) -> JaxEngine:
    shared_engine.wait()
    shared_engine.reset()
    return shared_engine


def test_chunked_prefill_and_decode_are_the_dense_model(engine: JaxEngine) -> None:
    prompts = [prompt_of(37), prompt_of(100), prompt_of(5)]
    pages = [range(1, 8), range(10, 24), range(30, 33)]
    engine.set_rows([row_state(i, prompts[i], pages[i]) for i in range(3)])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompts[0], pages[0], rows=(0,)), segment(prompts[1], pages[1], 0, 27)))
    runner.run(prefill=(segment(prompts[1], pages[1], 27, 80),), decode=(0,))
    runner.run(
        prefill=(segment(prompts[2], pages[2], rows=(2,)), segment(prompts[1], pages[1], 80, rows=(1,))), decode=(0,)
    )
    for _ in range(8):
        runner.run(decode=(2, 0, 1))
    assert [len(runner.tokens(row)) for row in range(3)] == [11, 9, 9]
    for row in range(3):
        assert_greedy(prompts[row], runner.tokens(row))


def test_order_of_samples(engine: JaxEngine) -> None:
    first, second = prompt_of(9), prompt_of(10)
    engine.set_rows([row_state(4, first, (1, 2)), row_state(3, first, (1, 2)), row_state(1, second, (3, 4))])
    engine.set_rows([row_state(0, second, (5, 6), output=(7,))])
    sampled = Runner(engine).run(
        prefill=(segment(first, (1, 2), rows=(4, 3)), segment(second, (3, 4), rows=(1,))), decode=(0,)
    )
    assert [one.row for one in sampled] == [4, 3, 1, 0]


def test_a_mixed_step_equals_separate_steps(engine: JaxEngine) -> None:
    prompts = [prompt_of(20), prompt_of(50)]
    pages = [range(1, 6), range(6, 16)]

    def outcome(together: bool) -> list[tuple[int, float]]:
        engine.reset()
        engine.set_rows([row_state(i, prompts[i], pages[i], sampling=WITH_LOGPROBS) for i in range(2)])
        runner = Runner(engine)
        runner.run(prefill=(segment(prompts[0], pages[0], rows=(0,)),))
        late = segment(prompts[1], pages[1], rows=(1,))
        if together:
            runner.run(prefill=(late,), decode=(0,))
        else:
            runner.run(prefill=(late,))
            runner.run(decode=(0,))
        runner.run(decode=(0, 1))
        samples = runner.sampled[0] + runner.sampled[1]
        return [(one.token, one.logprob or 0.0) for one in samples]

    mixed, separate = outcome(True), outcome(False)
    assert [token for token, _ in mixed] == [token for token, _ in separate]
    np.testing.assert_allclose([p for _, p in mixed], [p for _, p in separate], atol=1e-4)


def test_steps_follow_each_other_without_the_host_having_seen_a_token(engine: JaxEngine) -> None:
    prompt = prompt_of(21)
    engine.set_rows([row_state(5, prompt, range(1, 6))])
    handles = [engine.dispatch(Step(prefill=(segment(prompt, range(1, 6), rows=(5,)),)))]
    handles += [engine.dispatch(Step(decode=(5,))) for _ in range(6)]
    fences = [handle.fence for handle in handles]
    assert fences == sorted(set(fences))
    assert_greedy(prompt, [engine.fetch(handle)[0].token for handle in handles])


def test_logprobs_are_log_softmax_of_raw_logits(engine: JaxEngine) -> None:
    prompt = prompt_of(12)
    hot = SamplingParams(seed=3, max_tokens=8, temperature=2.0, top_k=5, logit_bias=((9, 50.0),), logprobs=20)
    plain = SamplingParams(seed=3, max_tokens=8, temperature=0.0, logprobs=0)
    engine.set_rows(
        [
            row_state(0, prompt, (1, 2, 3), sampling=hot),
            row_state(1, prompt, (4, 5, 6), sampling=plain),
            row_state(2, prompt, (7, 8, 9)),
        ]
    )
    runner = Runner(engine)
    runner.run(
        prefill=tuple(segment(prompt, range(1 + 3 * row, 4 + 3 * row), rows=(row,)) for row in range(3)),
    )
    runner.run(decode=(0, 1, 2))
    for row in (0, 1):
        dense = dense_logprobs([*prompt, *runner.tokens(row)])[len(prompt) - 1 :]
        for step, one in enumerate(runner.sampled[row]):
            assert one.logprob == pytest.approx(dense[step, one.token], abs=1e-4)
            best = np.argsort(-dense[step])[:20] if row == 0 else []
            assert [token for token, _ in one.top] == list(best)
            np.testing.assert_allclose([p for _, p in one.top], dense[step][best] if row == 0 else [], atol=1e-4)
    assert all(one.logprob is None and one.top == () for one in runner.sampled[2])
    assert runner.tokens(0) == [9, 9]


def test_choices_share_a_prompt_and_get_tail_pages_of_their_own(engine: JaxEngine) -> None:
    prompt = prompt_of(2 * PAGE + 5)
    biased = SamplingParams(seed=1, max_tokens=8, temperature=0.0, logit_bias=((11, 100.0),))
    engine.set_rows(
        [
            row_state(0, prompt, (1, 2, 3, 10)),
            row_state(1, prompt, (1, 2, 4, 11), sampling=biased, choice=1),
            row_state(2, prompt, (1, 2, 5, 12), choice=2),
        ]
    )
    handle = engine.dispatch(Step(prefill=(segment(prompt, (1, 2, 3), rows=(0, 1, 2)),)))
    engine.insert(engine.gather((3,)), (0, 0), (4, 5))
    runner = Runner(engine)
    for _ in range(2 * PAGE):
        runner.run(decode=(0, 1, 2))
    first = {one.row: one.token for one in engine.fetch(handle)}
    assert first[1] == 11
    assert runner.tokens(1) == [11] * (2 * PAGE)
    for row in (0, 2):
        assert_greedy(prompt, [first[row], *runner.tokens(row)])


def test_overrun_writes_go_to_the_sentinel_page(engine: JaxEngine) -> None:
    neighbour, short = prompt_of(PAGE), prompt_of(PAGE - 1)
    engine.set_rows([row_state(0, neighbour, (1, 2, 3)), row_state(1, short, (4,))])
    runner = Runner(engine)
    runner.run(prefill=(segment(neighbour, (1,), rows=(0,)), segment(short, (4,), rows=(1,))))
    for _ in range(PAGE + 3):
        runner.run(decode=(0, 1))
    assert_greedy(neighbour, runner.tokens(0))
    assert_greedy(short, runner.tokens(1)[:2])


def test_a_row_may_run_past_the_longest_context() -> None:
    engine = make_engine(max_context_tokens=2 * PAGE, num_pages=8)
    prompt = prompt_of(2 * PAGE - 2)
    engine.set_rows([row_state(0, prompt, (1, 2)), row_state(1, prompt, (3, 4))])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompt, (1, 2), rows=(0,)), segment(prompt, (3, 4), rows=(1,))))
    runner.run(decode=(0,))
    for _ in range(4):
        runner.run(decode=(0,))
    runner.run(decode=(1,))
    assert_greedy(prompt, runner.tokens(0)[:3])
    assert_greedy(prompt, runner.tokens(1))


@pytest.mark.parametrize("num_writes", [1, 200])
def test_page_table_deltas(engine: JaxEngine, num_writes: int) -> None:
    prompt = prompt_of(PAGE)
    engine.set_rows([row_state(0, prompt, (1,))])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompt, (1,), rows=(0,)),))
    writes = [PageWrite(3, index % 16, index % 60) for index in range(num_writes - 1)]
    runner.run(decode=(0,), table=(PageWrite(0, 1, 7), *writes))
    for _ in range(PAGE - 1):
        runner.run(decode=(0,))
    runner.run(decode=(0,), table=(*writes, PageWrite(0, 2, 9)))
    assert_greedy(prompt, runner.tokens(0))


def test_a_step_may_have_table_writes_only(engine: JaxEngine) -> None:
    assert engine.fetch(engine.dispatch(Step(table=(PageWrite(0, 1, 7),)))) == ()


def test_reset_empties_pool_and_rows(engine: JaxEngine) -> None:
    prompt = prompt_of(20)
    fence = engine.fence
    for _ in range(2):
        engine.set_rows([row_state(0, prompt, (1, 2, 3))])
        runner = Runner(engine)
        runner.run(prefill=(segment(prompt, (1, 2, 3), rows=(0,)),))
        assert_greedy(prompt, runner.tokens(0))
        assert engine.wait() == engine.fence > fence
        fence = engine.fence
        engine.reset()
        assert not np.asarray(engine.gather((1, 2, 3))).any()


def test_recovery_continues_the_same_draws(engine: JaxEngine) -> None:
    prompt = prompt_of(11)
    sampling = SamplingParams(
        seed=2**40 + 5, max_tokens=20, temperature=1.3, presence_penalty=0.7, repetition_penalty=1.2, top_p=0.9
    )
    engine.set_rows([row_state(0, prompt, range(1, 6), sampling=sampling)])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompt, range(1, 6), rows=(0,)),))
    for _ in range(11):
        runner.run(decode=(0,))
    output = tuple(runner.tokens(0))
    again = (*prompt, *output[:5])
    engine.set_rows([row_state(6, prompt, range(20, 26), sampling=sampling, output=output[:5])])
    late = Runner(engine)
    late.run(prefill=(segment(again, range(20, 26)),))
    engine.set_rows([row_state(6, prompt, range(20, 26), sampling=sampling, output=output[:5])])
    for _ in range(7):
        late.run(decode=(6,))
    assert tuple(late.tokens(6)) == output[5:]


def test_bfloat16_is_close_to_the_dense_model() -> None:
    engine = make_engine(model=BFLOAT16)
    prompt = prompt_of(40)
    engine.set_rows([row_state(0, prompt, range(1, 9), sampling=WITH_LOGPROBS)])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompt, range(1, 9), rows=(0,)),))
    for _ in range(5):
        runner.run(decode=(0,))
    dense = dense_logprobs([*prompt, *runner.tokens(0)], BFLOAT16)[len(prompt) - 1 :]
    wanted = [dense[step, one.token] for step, one in enumerate(runner.sampled[0])]
    np.testing.assert_allclose([one.logprob for one in runner.sampled[0]], wanted, atol=0.05)


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        (Step(prefill=(segment(prompt_of(65), range(1, 10)),)), "65 is more than the largest bucket"),
        (Step(prefill=(segment((1,), (1,)),) * 5), "5 prefill segments, at most 4"),
        (Step(decode=tuple(range(9))), "9 is more than the largest bucket"),
    ],
)
def test_steps_beyond_the_engine_are_refused(engine: JaxEngine, step: Step, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        engine.dispatch(step)


@pytest.mark.parametrize("key", [Key("decode", 4), Key("prefill", 32), Key("mixed", 32, 4), Key("insert", 4)])
def test_a_donated_pool_is_not_copied(engine: JaxEngine, key: Key) -> None:
    memory = engine.programs.compiled(key).memory_analysis()
    pool_bytes = SPEC.num_pages * SPEC.page_bytes
    assert memory.alias_size_in_bytes >= pool_bytes
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < pool_bytes // 8


@pytest.mark.parametrize("key", [Key("decode", 8), Key("decode", 4), Key("set_rows", 8)])
def test_a_step_needs_less_memory_than_the_pool(key: Key) -> None:
    """A full copy anywhere inside a program would show in its scratch memory."""
    engine = make_engine(num_pages=4096)
    memory = engine.programs.compiled(key).memory_analysis()
    assert memory.temp_size_in_bytes < 4096 * SPEC.page_bytes // 2


def test_nothing_compiles_after_warm_up() -> None:
    engine = make_engine("mixed", 3)
    labels: list[tuple[str, int, int]] = []
    engine.warm_up(lambda label, done, total: labels.append((label, done, total)))
    assert [done for _, done, _ in labels] == list(range(2, len(labels) + 2))
    assert {total for _, _, total in labels} == {engine.buckets.num_programs}
    _random_traffic(engine, random.Random(0))
    engine.reset()
    _random_traffic(engine, random.Random(1))
    assert engine.compiles_since_warm_up() == 0
    jax.jit(lambda x: x * 3 + engine.fence)(1)
    assert engine.compiles_since_warm_up() == 1


def _random_traffic(engine: JaxEngine, rng: random.Random) -> None:
    samplings = (
        GREEDY,
        WITH_LOGPROBS,
        SamplingParams(seed=7, max_tokens=9, temperature=0.8, top_p=0.9, frequency_penalty=0.5),
        SamplingParams(seed=8, max_tokens=9, allowed_mask=b"\xff" * 20, min_p=0.1, stop_token_ids=(3,), min_tokens=4),
    )
    for _ in range(25):
        rows = rng.sample(range(8), rng.randint(1, 8))
        prompts = {row: prompt_of(rng.randint(1, 16), row) for row in rows}
        engine.set_rows(
            [row_state(row, prompts[row], (1 + row, 9 + row), sampling=rng.choice(samplings)) for row in rows]
        )
        fresh = rows[: rng.randint(0, min(4, len(rows)))]
        prefill = tuple(
            msgspec.structs.replace(
                segment(prompts[row], (1 + row, 9 + row), rows=(row,)), score=rng.choice((None, 2)), next_token=5
            )
            for row in fresh
        )
        decode, deferred = tuple(rows[len(fresh) :]), rng.random() < 0.5
        handle = engine.dispatch(Step(prefill=prefill, decode=decode, deferred=deferred))
        if deferred:
            handle = engine.sample(handle, {row: b"\x0f" * 20 for row in decode if rng.random() < 0.5})
        chunk = engine.gather(rng.sample(range(1, 60), rng.randint(1, 4)))
        engine.insert(chunk, (0,), (rng.randint(40, 63),))
        assert sorted(one.row for one in engine.fetch(handle)) == sorted(rows)
        assert len(engine.fetch_scores(handle)) == sum(part.score is not None for part in prefill)
        engine.wait()
