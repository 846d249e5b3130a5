"""The engine on the TPU kernels, in the TPU interpreter: what `test_jax_engine` asks of plain JAX, on a model that they
cover."""

import functools

import msgspec
import numpy as np
import pytest

from runtime.engine import PageWrite, Step
from runtime.jax_engine import JaxEngine
from runtime.sampling_params import SamplingParams
from tests.runtime import engines
from tests.runtime.engines import MODEL, Runner, make_engine, prompt_of, row_state

PAGE = 16
COVERED = msgspec.structs.replace(MODEL, head_dim=128)
segment = functools.partial(engines.segment, page_size=PAGE)
assert_greedy = functools.partial(engines.assert_greedy, model=COVERED)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_engine() -> JaxEngine:
    """One program of each kind."""
    return make_engine(
        model=COVERED, kernels="pallas-interpret", page_size=PAGE, num_pages=40, num_rows=4, chunk_tokens=32
    )


@pytest.fixture
def engine(shared_engine: JaxEngine) -> JaxEngine:
    shared_engine.wait()
    shared_engine.reset()
    return shared_engine


def test_chunked_prefill_and_decode_are_the_dense_model(engine: JaxEngine) -> None:
    prompts = [prompt_of(13), prompt_of(45)]
    pages = [range(1, 4), range(10, 14)]
    engine.set_rows([row_state(i, prompts[i], pages[i]) for i in range(2)])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompts[0], pages[0], rows=(0,)), segment(prompts[1], pages[1], 0, 19)))
    runner.run(prefill=(segment(prompts[1], pages[1], 19, rows=(1,)),), decode=(0,))
    for _ in range(6):
        runner.run(decode=(1, 0))
    assert [len(runner.tokens(row)) for row in range(2)] == [8, 7]
    for row in range(2):
        assert_greedy(prompts[row], runner.tokens(row))


def test_choices_share_a_prompt_and_get_tail_pages_of_their_own(engine: JaxEngine) -> None:
    prompt = prompt_of(PAGE + 12)
    biased = SamplingParams(seed=1, max_tokens=8, temperature=0.0, logit_bias=((11, 100.0),))
    engine.set_rows([row_state(0, prompt, (1, 2, 10)), row_state(1, prompt, (1, 3, 11), sampling=biased, choice=1)])
    handle = engine.dispatch(Step(prefill=(segment(prompt, (1, 2), rows=(0, 1)),)))
    engine.insert(engine.gather((2,)), (0,), (3,))
    runner = Runner(engine)
    for _ in range(6):
        runner.run(decode=(0, 1))
    first = {one.row: one.token for one in engine.fetch(handle)}
    assert [first[1], *runner.tokens(1)] == [11] * 7
    assert_greedy(prompt, [first[0], *runner.tokens(0)])


def test_overrun_writes_go_to_the_sentinel_page(engine: JaxEngine) -> None:
    neighbour, short = prompt_of(PAGE), prompt_of(PAGE - 1)
    engine.set_rows([row_state(0, neighbour, (1, 2)), row_state(1, short, (4,))])
    runner = Runner(engine)
    runner.run(prefill=(segment(neighbour, (1,), rows=(0,)), segment(short, (4,), rows=(1,))))
    for _ in range(4):
        runner.run(decode=(0, 1))
    assert_greedy(neighbour, runner.tokens(0))
    assert_greedy(short, runner.tokens(1)[:2])


def test_page_table_deltas(engine: JaxEngine) -> None:
    prompt = prompt_of(PAGE)
    engine.set_rows([row_state(0, prompt, (1,))])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompt, (1,), rows=(0,)),))
    runner.run(decode=(0,), table=(PageWrite(0, 1, 7),))
    for _ in range(3):
        runner.run(decode=(0,))
    assert_greedy(prompt, runner.tokens(0))


def test_reset_empties_pool_and_rows(engine: JaxEngine) -> None:
    prompt = prompt_of(20)
    engine.set_rows([row_state(0, prompt, (1, 2))])
    Runner(engine).run(prefill=(segment(prompt, (1, 2), rows=(0,)),))
    assert np.asarray(engine.gather((1, 2))).any()
    engine.reset()
    assert not np.asarray(engine.gather((1, 2))).any()
