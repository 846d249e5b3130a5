"""Slices of several devices compute what one device computes, and send nothing but activations to each other."""

import math
import re

import jax
import numpy as np
import pytest

from runtime.engine import Step
from runtime.jax_engine import MAX_PROGRAMS_IN_FLIGHT, JaxEngine
from runtime.kv_cache import pool_shape
from runtime.model_config import FAMILIES, ModelConfig, load_model_config
from runtime.models.layers import FEW_ROWS
from runtime.placement import Placement
from runtime.programs import Key
from runtime.sampling_params import SamplingParams
from runtime.step_sampling import SCORE_BLOCK
from runtime.weights import load_weights
from tests.golden.cases import HERE, cases_by_tp
from tests.paged_model import PagedModel
from tests.runtime.engines import (
    BFLOAT16,
    MODEL,
    SPEC,
    Runner,
    assert_greedy,
    dense_logprobs,
    make_engine,
    prompt_of,
    row_state,
    segment,
)

TOLERANCE = 1e-4
COLLECTIVE = re.compile(r"= \w+\[([\d,]*)\]\S* (all-gather|all-reduce|[\w-]*permute|all-to-all|reduce-scatter)\S*\(")


@pytest.mark.parametrize(("case", "tp"), [(case, tp) for case, tp in cases_by_tp() if tp > 1])
@pytest.mark.parametrize("how", [{"chunk": 64}, {"chunk": 1, "num_prefill": 0}], ids=str)
def test_logits_equal_the_golden_ones(case: str, tp: int, how: dict[str, int]) -> None:
    with np.load(HERE / case / "logits.npz") as golden:
        count = len(golden.files) // 2
        sequences = [golden[f"tokens_{i}"] for i in range(count)]
        want = [golden[f"logits_{i}"] for i in range(count)]
    config, placement = load_model_config(HERE / case), Placement(jax.devices()[:tp])
    model = PagedModel(
        load_weights(HERE / case, config, "float32", placement),
        config,
        num_sequences=count,
        max_tokens=max(map(len, sequences)),
        page_size=8,
        placement=placement,
    )
    got = model.logits(sequences, **how)
    assert max(np.abs(ours - theirs).max() for ours, theirs in zip(got, want, strict=True)) <= TOLERANCE


@pytest.fixture(scope="module", params=[2, 4], ids="tp{}".format)
def engine(request: pytest.FixtureRequest) -> JaxEngine:
    return make_engine(tp=request.param)


def _run(engine: JaxEngine) -> tuple[list[tuple[int, ...]], Runner]:
    prompts = [prompt_of(37), prompt_of(100), prompt_of(5)]
    pages = [range(1, 8), range(10, 24), range(30, 33)]
    engine.set_rows([row_state(i, prompts[i], pages[i]) for i in range(3)])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompts[0], pages[0], rows=(0,)), segment(prompts[1], pages[1], 0, 27)))
    runner.run(prefill=(segment(prompts[1], pages[1], 27, 80),), decode=(0,))
    runner.run(
        prefill=(segment(prompts[2], pages[2], rows=(2,)), segment(prompts[1], pages[1], 80, rows=(1,))), decode=(0,)
    )
    for _ in range(5):
        runner.run(decode=(2, 0, 1))
    return prompts, runner


def test_prefill_decode_and_mixed_steps_are_the_dense_model(engine: JaxEngine) -> None:
    prompts, runner = _run(engine)
    for row in range(3):
        assert_greedy(prompts[row], runner.tokens(row))


@pytest.mark.parametrize("tp", [2, 4])
def test_bfloat16_is_close_to_the_dense_model(tp: int) -> None:
    engine = make_engine(model=BFLOAT16, tp=tp)
    prompt = prompt_of(40)
    sampling = SamplingParams(seed=1, max_tokens=64, temperature=0.0, logprobs=3)
    engine.set_rows([row_state(0, prompt, range(1, 9), sampling=sampling)])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompt, range(1, 9), rows=(0,)),))
    for _ in range(5):
        runner.run(decode=(0,))
    dense = dense_logprobs([*prompt, *runner.tokens(0)], BFLOAT16)[len(prompt) - 1 :]
    wanted = [dense[step, one.token] for step, one in enumerate(runner.sampled[0])]
    np.testing.assert_allclose([one.logprob for one in runner.sampled[0]], wanted, atol=0.05)


def test_a_tail_page_is_copied_on_the_slice(engine: JaxEngine) -> None:
    prompt = prompt_of(11)
    engine.set_rows([row_state(row, prompt, (1, 2 + row, 5 + row)) for row in range(2)])
    runner = Runner(engine)
    runner.run(prefill=(segment(prompt, (1, 2), rows=(0, 1)),))
    engine.insert(engine.gather((2,)), (0,), (3,))
    for _ in range(6):
        runner.run(decode=(0, 1))
    assert runner.tokens(0) == runner.tokens(1)
    assert_greedy(prompt, runner.tokens(1))


def test_nothing_compiles_after_warm_up() -> None:
    engine = make_engine(tp=2, device=4)
    engine.warm_up()
    _run(engine)
    engine.insert(engine.gather((2, 5)), (0,), (3,))
    engine.wait()
    engine.reset()
    assert engine.compiles_since_warm_up() == 0


def _collectives(engine: JaxEngine, key: Key) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and result shape of every collective of a program; the shape without its order of axes."""
    found = COLLECTIVE.findall(engine.programs.compiled(key).as_text())
    return [(kind, tuple(sorted(map(int, shape.split(","))))) for shape, kind in found]


def _sums(num_tokens: int, model: ModelConfig = MODEL) -> list[tuple[str, tuple[int, ...]]]:
    """One of the embedding, two of each layer."""
    return [("all-reduce", tuple(sorted((num_tokens, model.hidden_size))))] * (1 + 2 * model.num_layers)


def _logits(num_prefill: int, num_logits: int) -> list[tuple[str, tuple[int, ...]]]:
    """Of rows that are sampled, and of the block of a prompt's tokens that is scored at a time."""
    rows = [min(num_prefill, SCORE_BLOCK)] * (num_prefill > 0) + [num_logits] * (num_logits > 0)
    return [("all-gather", tuple(sorted((count, MODEL.vocab_size)))) for count in rows]


@pytest.mark.parametrize(
    ("key", "num_tokens", "num_logits"),
    [
        (Key("decode", 4), 4, 4),
        (Key("prefill", 32), 32, 0),
        (Key("prefill", 64), 64, 0),
        (Key("mixed", 32, 4), 36, 4),
        (Key("sample", 4), 0, 4),
        (Key("gather", 4), 0, 0),
        (Key("insert", 4), 0, 0),
        (Key("set_rows", 8), 0, 0),
    ],
)
@pytest.mark.parametrize("model", [MODEL, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tp", [2, 4])
def test_devices_exchange_activations_and_nothing_else(
    tp: int, model: ModelConfig, key: Key, num_tokens: int, num_logits: int
) -> None:
    """Sums of partial products, and the logits: never the pool, never weights."""
    want = _sums(num_tokens) if num_tokens else []
    want += _logits(num_tokens - num_logits, num_logits)
    assert sorted(_collectives(make_engine(tp=tp, model=model), key)) == sorted(want)


@pytest.mark.parametrize(
    ("key", "num_tokens", "num_logits"),
    [(Key("decode", 128), 128, 128), (Key("prefill", 128), 128, 0), (Key("mixed", 128, 128), 256, 128)],
)
def test_with_many_rows_too(key: Key, num_tokens: int, num_logits: int) -> None:
    """Products of many rows take another form on a CPU, the one that accelerators always take."""
    assert num_tokens > FEW_ROWS
    engine = make_engine(tp=4, num_rows=128, chunk_tokens=128, num_pages=200)
    want = _sums(num_tokens)
    want += _logits(num_tokens - num_logits, num_logits)
    assert sorted(_collectives(engine, key)) == sorted(want)


def test_an_exchange_of_the_pool_would_be_seen() -> None:
    """The planted violation: a pool that is asked for on every device."""
    engine = make_engine(tp=2)
    engine.wait()
    gather = jax.jit(lambda pool: pool * 2, out_shardings=engine.placement.replicated)
    pool = jax.device_put(np.zeros((8, 2, 2, 8, 16), np.float32), engine.placement.pool)
    found = COLLECTIVE.findall(gather.lower(pool).compile().as_text())
    assert [(shape, kind) for shape, kind in found] == [("8,2,2,8,16", "all-gather")]


@pytest.mark.parametrize("key", [Key("decode", 4), Key("prefill", 32), Key("mixed", 32, 4), Key("insert", 4)])
@pytest.mark.parametrize("model", [MODEL, BFLOAT16], ids=["float32", "bfloat16"])
def test_a_donated_pool_is_not_copied(model: ModelConfig, key: Key) -> None:
    """Bytes are those of one device, which holds half the heads."""
    engine = make_engine(tp=2, num_pages=4096, model=model)
    memory = engine.programs.compiled(key).memory_analysis()
    values = math.prod(engine._parts.pool.layer(4096)) * MODEL.num_layers // 2
    local_bytes = values * (4 if model is MODEL else 2)
    assert memory.alias_size_in_bytes >= local_bytes
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < local_bytes // 8
    assert memory.temp_size_in_bytes < local_bytes // 2


def test_programs_in_flight_are_bounded_where_devices_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, alone = make_engine(tp=2), make_engine()
    for each in (engine, alone):
        each.set_rows([row_state(0, prompt_of(8), (1, 2, 3), output=(5,))])
    waited: list[object] = []
    monkeypatch.setattr("runtime.compat.block_until_ready", waited.append)
    for _ in range(MAX_PROGRAMS_IN_FLIGHT):
        engine.dispatch(Step(decode=(0,)))
    assert waited == []
    for count in range(1, 4):
        engine.dispatch(Step(decode=(0,)))
        assert len(waited) == count
    for _ in range(5):
        alone.dispatch(Step(decode=(0,)))
    assert len(waited) == 3


def test_pages_cost_more_where_heads_are_repeated() -> None:
    assert pool_shape(MODEL, 8, "cpu", 2).page_bytes == SPEC.page_bytes
    assert pool_shape(MODEL, 8, "cpu", 4).page_bytes == 2 * SPEC.page_bytes


def test_every_family_is_split_over_two_and_over_four_devices() -> None:
    cases = cases_by_tp()
    for tp in (2, 4):
        families = {load_model_config(HERE / case).architecture for case, width in cases if width == tp}
        assert families == set(FAMILIES), tp
    assert ("tied", 4) not in cases
