"""The chunked prefill kernel in the strict TPU interpreter. Programs are few (each takes seconds to build)."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from kernels.chunked_prefill import chunked_prefill, tpu
from kernels.chunked_prefill.tuning import MIN_KEY_TOKENS, TABLE, PrefillConfig, PrefillKey, choose
from kernels.kv_pool import from_storage, storage_dtype, to_storage
from tests.kernels.interpreter import races_found, strict_interpreter
from tests.kernels.paged_case import PagedCase, dense_attention, paged_case, soft_capped_attention

MAX_TOKENS = 64
MAX_SEQUENCES = 6
TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2}


@dataclass(frozen=True)
class Program:
    """One compiled call: cases of any lengths up to `max_context` run in it."""

    group: int = 2
    num_kv_heads: int = 2
    head_dim: int = 128
    page_size: int = 64
    dtype: str = "float32"
    max_context: int = 512
    window: int | None = None
    soft_cap: float | None = None
    config: PrefillConfig = PrefillConfig(query_tokens=16, key_tokens=128, kv_heads=2)
    dma: Any = "on_wait"

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def case(self, q_lens: list[int], context_lens: list[int], seed: int = 0) -> PagedCase:
        """Padded to the program's pool, table and sequences; all of the padding is NaN or points there."""
        lowest = None
        if self.window is not None:
            lowest = min(n - q for n, q in zip(context_lens, q_lens, strict=True) if q)
        made = paged_case(
            [*context_lens, *[0] * (MAX_SEQUENCES - len(context_lens))],
            page_size=self.page_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            window=self.window,
            lowest_position=lowest,
            side_by_side=self.head_dim == 64,
            seed=seed,
        )
        pool = from_storage(made.kv_pages)
        columns = self.max_context // self.page_size + 4
        num_pages = MAX_SEQUENCES * columns
        more = jnp.full((num_pages - len(pool), *pool.shape[1:]), jnp.nan, pool.dtype)
        table = np.full((MAX_SEQUENCES, columns), num_pages - 1, np.int32)
        table[:, : made.page_table.shape[1]] = made.page_table
        return PagedCase(jnp.concatenate([pool, more]), jnp.asarray(table), made.context_lens, made.keys, made.values)

    def queries(self, seed: int = 7) -> np.ndarray:
        shape = (MAX_TOKENS, self.group * self.num_kv_heads, self.head_dim)
        q = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return np.array(jnp.asarray(q, self.dtype).astype(jnp.float32))

    def run(self, case: PagedCase, q: np.ndarray, q_lens: list[int]) -> np.ndarray:
        ends = np.cumsum([0, *q_lens, *[0] * (MAX_SEQUENCES - len(q_lens))])
        args = (
            jnp.asarray(q, self.dtype),
            case.kv_pages,
            case.page_table,
            jnp.asarray(ends, jnp.int32),
            jnp.asarray(case.context_lens),
        )
        out = program(self)(*args)
        assert out.dtype == self.dtype
        return np.asarray(out.astype(jnp.float32))

    def expected(self, case: PagedCase, q: np.ndarray, q_lens: list[int]) -> np.ndarray:
        ends = np.cumsum([*q_lens, *[0] * (MAX_SEQUENCES - len(q_lens))])
        rows = np.split(q[: ends[-1]], ends[:-1])
        if self.soft_cap is None:
            dense = dense_attention(case, rows, scale=self.scale, window=self.window)
        else:
            dense = [
                soft_capped_attention(x, case.keys[r, :n], case.values[r, :n], scale=self.scale, soft_cap=self.soft_cap)
                for r, (x, n) in enumerate(zip(rows, case.context_lens, strict=True))
                if len(x)
            ]
        return np.concatenate([*dense, np.zeros_like(q[ends[-1] :])])

    def check(self, q_lens: list[int], context_lens: list[int], seed: int = 0) -> None:
        case, q = self.case(q_lens, context_lens, seed), self.queries()
        want = self.expected(case, q, q_lens)
        q[sum(q_lens) :] = np.nan
        np.testing.assert_allclose(self.run(case, q, q_lens), want, atol=TOLERANCE[self.dtype], rtol=1e-5)
        assert not races_found()


@cache
def program(shape: Program) -> Any:
    def call(*args: jax.Array) -> jax.Array:
        return tpu.chunked_prefill(
            *args,
            scale=shape.scale,
            sliding_window=shape.window,
            soft_cap=shape.soft_cap,
            config=shape.config,
        )

    def run(*args: jax.Array) -> jax.Array:
        with strict_interpreter(shape.dma):
            return jax.block_until_ready(jitted(*args))

    jitted = jax.jit(call)
    return run


FLOAT32 = Program()
BFLOAT16 = Program(group=6, dtype="bfloat16", config=PrefillConfig(16, 128, 1))


@pytest.mark.parametrize(
    ("q_lens", "context_lens"),
    [
        ([0, 1, 15, 0, 16, 17], [0, 1, 63, 40, 64, 65]),
        ([17, 0, 0, 31, 3, 0], [333, 9, 0, 31, 131, 77]),
        ([0, 64, 0], [0, 512, 128]),
        ([1, 1, 1, 1, 1, 1], [128, 129, 127, 1, 401, 256]),
        ([0, 0, 0], [5, 0, 300]),
    ],
)
def test_ragged_chunks_and_contexts(q_lens: list[int], context_lens: list[int]) -> None:
    FLOAT32.check(q_lens, context_lens)


@pytest.mark.parametrize(
    ("shape", "q_lens", "context_lens"),
    [
        (BFLOAT16, [63, 0, 1], [449, 64, 65]),
        (Program(7, 1, 64, 16, "bfloat16", soft_cap=20.0, config=PrefillConfig(32, 256, 1)), [37, 19], [509, 47]),
        (Program(1, 1, 256, 8, window=200, config=PrefillConfig(32, 128, 1)), [37, 0, 20], [401, 0, 47]),
        (Program(16, 1, 128, 256, "bfloat16", 2048, config=PrefillConfig(32, 256, 1)), [41, 0, 23], [2048, 0, 257]),
        (Program(4, 1, 64, 32, window=3, config=PrefillConfig(32, 128, 1)), [17, 2], [331, 130]),
    ],
)
def test_groups_head_dims_page_sizes_and_types(shape: Program, q_lens: list[int], context_lens: list[int]) -> None:
    shape.check(q_lens, context_lens)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.data())
def test_any_split_of_a_batch(data: st.DataObject) -> None:
    q_lens = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=MAX_SEQUENCES).filter(lambda x: sum(x) <= 64))
    context_lens = [q + data.draw(st.integers(0, 300)) for q in q_lens]
    FLOAT32.check(q_lens, context_lens, seed=data.draw(st.integers(0, 99)))


@pytest.mark.parametrize("shape", [FLOAT32, BFLOAT16])
def test_scores_far_above_the_diagonal_ones(shape: Program) -> None:
    q_lens, context_lens = [40, 0, 17, 5], [430, 0, 300, 5]
    case, q = shape.case(q_lens, context_lens), shape.queries()
    for token, row in ((3, 0), (20, 0), (21, 0), (44, 2)):  # some rows' whole weight lies on an early, unmasked key
        key = np.repeat(case.keys[row, 5], shape.group, axis=0)
        q[token] = np.array(jnp.asarray(key * 30, shape.dtype).astype(jnp.float32))
    scores = np.einsum("nh,nh->n", q[3], np.repeat(case.keys[0, 5], shape.group, axis=0)) * shape.scale
    assert scores.min() * np.log2(np.e) > 128
    want = shape.expected(case, q, q_lens)
    np.testing.assert_allclose(shape.run(case, q, q_lens), want, atol=TOLERANCE[shape.dtype], rtol=1e-5)
    assert not races_found()


def test_a_poisoned_token_costs_no_other_token() -> None:
    q_lens, context_lens = [20, 5, 16], [212, 5, 300]
    case, q = FLOAT32.case(q_lens, context_lens), FLOAT32.queries()
    want = FLOAT32.expected(case, q, q_lens)
    poisoned = [3, 22, 25]
    q[poisoned] = np.nan
    out = FLOAT32.run(case, q, q_lens)
    assert np.isnan(out[poisoned]).all()
    np.testing.assert_allclose(np.delete(out, poisoned, 0), np.delete(want, poisoned, 0), atol=5e-6)


class NeverWaits:
    """Stands for a copy whose wait was forgotten."""

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("dma", ["on_wait", "eager"])
def test_a_missing_wait_is_caught(dma: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pltpu.make_async_copy

    def forgets_pages(source: Any, target: Any, semaphore: Any) -> Any:
        return NeverWaits() if source is target else real(source, target, semaphore)

    monkeypatch.setattr(tpu.pltpu, "make_async_copy", forgets_pages)
    shape = Program(num_kv_heads=1, page_size=128, config=PrefillConfig(32, 128, 1), dma=dma)
    q_lens, context_lens = [20], [300]
    case, q = shape.case(q_lens, context_lens), shape.queries()
    out = shape.run(case, q, q_lens)
    if dma == "on_wait":
        assert np.isnan(out[:20]).any()
    else:
        assert races_found()
    pltpu.reset_tpu_interpret_mode_state()


def test_heads_of_several_devices_with_the_table_s_blocks() -> None:
    shape = Program(page_size=256, dtype="bfloat16")
    q_lens, context_lens = [20, 3], [300, 3]
    case, q = shape.case(q_lens, context_lens), shape.queries()
    mesh = Mesh(np.array(jax.devices()[:2]), ("tp",))
    heads, pool = PartitionSpec(None, "tp"), PartitionSpec(None, "tp")
    everywhere = PartitionSpec()

    def shard(*args: jax.Array) -> jax.Array:
        return chunked_prefill(*args, scale=shape.scale, implementation="pallas-interpret")

    specs = (heads, pool, everywhere, everywhere, everywhere)
    step = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False))
    ends = jnp.asarray(np.cumsum([0, *q_lens, 0, 0, 0, 0]), jnp.int32)
    stored = to_storage(case.kv_pages, storage_dtype("bfloat16", "cpu"))
    out = step(jnp.asarray(q, "bfloat16"), stored, case.page_table, ends, jnp.asarray(case.context_lens))
    want = shape.expected(case, q, q_lens)
    np.testing.assert_allclose(np.asarray(out.astype(jnp.float32)), want, atol=TOLERANCE["bfloat16"])


@pytest.mark.parametrize(
    ("q", "kv_pages", "message"),
    [
        ((6, 4, 32), (4, 2, 2, 8, 32), r"float32\[6, 4, 32\] .* head dim 32 is not one of \(64, 128, 256\)"),
        ((6, 4, 64), (4, 2, 2, 8, 64), "must lie side by side for head dim 64"),
        ((6, 4, 128), (4, 2, 8, 256), "must lie side by side for head dim 64 and no other"),
        ((6, 4, 128), (4, 2, 2, 24, 128), "page size 24 is not one of"),
        ((6, 4, 128), (4, 2, 2, 512, 128), "page size 512 is not one of"),
        ((6, 34, 128), (4, 2, 2, 16, 128), "17 query heads per kv head, at most 16"),
        ((0, 4, 128), (4, 2, 2, 16, 128), "no tokens"),
    ],
)
def test_limits_of_the_kernel_are_named(q: tuple[int, ...], kv_pages: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunked_prefill(
            jnp.zeros(q),
            jnp.zeros(kv_pages),
            jnp.zeros((2, 2), jnp.int32),
            jnp.zeros(3, jnp.int32),
            jnp.zeros(2, jnp.int32),
            scale=1.0,
            implementation="pallas-interpret",
        )


def test_bfloat16_pages_have_at_least_16_tokens() -> None:
    with pytest.raises(ValueError, match=r"bfloat16.*page size 8 is not one of \(16"):
        chunked_prefill(
            jnp.zeros((6, 4, 128), jnp.bfloat16),
            jnp.zeros((4, 2, 2, 8, 128), jnp.bfloat16),
            jnp.zeros((2, 2), jnp.int32),
            jnp.zeros(3, jnp.int32),
            jnp.zeros(2, jnp.int32),
            scale=1.0,
            implementation="pallas-interpret",
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PrefillConfig(24, 128, 1), "query_tokens that are a multiple of 16"),
        (PrefillConfig(1024, 128, 1), "times the 6 query heads of a kv head, at most 4096"),
        (PrefillConfig(16, 384, 1), r"key_tokens of 2 \*\* n, at least 128"),
        (PrefillConfig(16, 128, 3), "kv_heads that divide the 2 kv heads"),
    ],
)
def test_block_sizes_that_cannot_be_are_named(config: PrefillConfig, message: str) -> None:
    shape = Program(group=6, config=config)
    with pytest.raises(ValueError, match=message):
        shape.run(shape.case([1], [1]), shape.queries(), [1])


@pytest.mark.parametrize("page_size", [8, 16, 128, 256])
@pytest.mark.parametrize("num_tokens", [1, 16, 100, 8192])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_chosen_blocks_fit_the_call(page_size: int, num_tokens: int, element_bytes: int) -> None:
    made_up = [PrefillKey(g, k, h, element_bytes) for g in range(1, 17) for k in (1, 2, 3, 8) for h in (64, 128, 256)]
    for key in [*TABLE, *made_up]:
        for num_columns in (1, 3, 1024):
            config = choose(key, num_tokens, page_size, num_columns)
            assert config.query_tokens % 16 == 0
            assert config.query_tokens * key.group * config.kv_heads <= 4096
            assert config.query_tokens < num_tokens + 16
            assert key.num_kv_heads % config.kv_heads == 0
            assert config.key_tokens % max(page_size, MIN_KEY_TOKENS) == 0
            assert config.key_tokens < max(2 * num_columns * page_size, MIN_KEY_TOKENS + 1)
