"""The decode kernel in the TPU interpreter, against dense attention; what a TPU would do is left to the compiler."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from kernels.kv_pool import PoolDims, from_storage
from kernels.paged_decode import paged_decode, tpu
from kernels.paged_decode.tuning import DecodeConfig, choose_config
from tests.kernels.interpreter import races_found, strict_interpreter
from tests.kernels.paged_case import PagedCase, dense_attention, paged_case, soft_capped_attention

TOLERANCE = {"float32": 3e-6, "bfloat16": 2e-2}
ROWS = 8


def queries(case: PagedCase, num_heads: int, dtype: str = "float32") -> np.ndarray:
    """Numbers that `dtype` holds exactly; NaN in the rows of empty sequences, which nobody may read."""
    shape = (len(case.context_lens), num_heads, case.keys.shape[3])
    q = np.random.default_rng(7).standard_normal(shape, np.float32)
    q[case.context_lens == 0] = np.nan
    return np.array(jnp.asarray(q, dtype).astype(jnp.float32))


def expected(case: PagedCase, q: np.ndarray, window: int | None = None) -> np.ndarray:
    dense = dense_attention(case, [np.nan_to_num(row)[None] for row in q], scale=q.shape[2] ** -0.5, window=window)
    return np.concatenate(dense) * (case.context_lens > 0)[:, None, None]


def kernel(pages_per_block: int, rows_per_step: int = 4, scale: float = 128**-0.5, **options: Any) -> Any:
    config = DecodeConfig(pages_per_block, rows_per_step)
    return jax.jit(lambda *args: tpu.paged_decode(*args, scale=scale, config=config, **options))


def run(step: Any, case: PagedCase, q: np.ndarray, dtype: str = "float32") -> np.ndarray:
    lens = jnp.asarray(case.context_lens)
    out = step(jnp.asarray(q, dtype), from_storage(case.kv_pages), case.page_table, lens)
    assert out.dtype == dtype
    return np.asarray(out.astype(jnp.float32))


def strictly(step: Any, case: PagedCase, q: np.ndarray, dtype: str = "float32") -> np.ndarray:
    with strict_interpreter():
        out = run(step, case, q, dtype)
    assert not races_found()
    return out


@pytest.mark.parametrize(
    ("page_size", "heads", "head_dim", "dtype", "pages_per_block", "lengths"),
    [
        (8, (2, 2), 128, "float32", 4, [7, 0, 8, 9, 1, 101]),
        (16, (6, 1), 64, "float32", 2, [1, 15, 16, 17, 0, 37, 70]),
        (16, (16, 1), 128, "bfloat16", 4, [0, 0, 1, 0, 15, 16, 17, 131, 0]),
        (64, (4, 2), 256, "bfloat16", 1, [1, 63, 64, 65, 127, 0, 0, 193]),
        (256, (4, 2), 64, "bfloat16", 2, [255, 256, 257, 1]),
    ],
)
def test_equals_dense_attention(
    page_size: int, heads: tuple[int, int], head_dim: int, dtype: str, pages_per_block: int, lengths: list[int]
) -> None:
    case = paged_case(
        lengths,
        page_size=page_size,
        num_kv_heads=heads[1],
        head_dim=head_dim,
        dtype=dtype,
        side_by_side=head_dim == 64,
    )
    q = queries(case, heads[0], dtype)
    out = strictly(kernel(pages_per_block, scale=head_dim**-0.5), case, q, dtype)
    np.testing.assert_allclose(out, expected(case, q), atol=TOLERANCE[dtype])


def test_two_thousand_tokens_beside_short_contexts() -> None:
    case = paged_case([127, 128, 129, 2048, 1, 1021], page_size=128, head_dim=128, dtype="bfloat16")
    q = queries(case, 12, "bfloat16")
    out = strictly(kernel(8), case, q, "bfloat16")
    np.testing.assert_allclose(out, expected(case, q), atol=TOLERANCE["bfloat16"])


@pytest.mark.parametrize(("window", "lengths"), [(1, [1, 16, 17, 100]), (37, [5, 37, 38, 64, 0, 131, 69])])
def test_sliding_window(window: int, lengths: list[int]) -> None:
    """What lies before the window is NaN, and so are the pages wholly before it."""
    case = paged_case(lengths, page_size=16, head_dim=128, window=window)
    q = queries(case, 4)
    out = strictly(kernel(2, sliding_window=window), case, q)
    np.testing.assert_allclose(out, expected(case, q, window), atol=TOLERANCE["float32"])


def test_soft_cap() -> None:
    case = paged_case([1, 53], page_size=16, head_dim=128)
    q = queries(case, 4) * 8
    out = strictly(kernel(2, soft_cap=3.0), case, q)
    for row, length in enumerate(case.context_lens):
        keys, values = case.keys[row, :length], case.values[row, :length]
        want = soft_capped_attention(q[row : row + 1], keys, values, scale=128**-0.5, soft_cap=3.0)
        np.testing.assert_allclose(out[row], want[0], atol=TOLERANCE["float32"])


def same_shapes(lengths: list[int], seed: int) -> PagedCase:
    """A case whose arrays have the same shapes for all lengths up to 70, so that one compiled kernel serves many."""
    case = paged_case(lengths, page_size=16, head_dim=128, extra_columns=0, seed=seed)
    num_pages, columns = 5 * ROWS + 4, 5
    rng = np.random.default_rng(seed)
    pages = np.full((num_pages, *case.kv_pages.shape[1:]), np.nan, np.float32)
    pages[: case.kv_pages.shape[0]] = case.kv_pages
    table = rng.integers(0, num_pages, (ROWS, columns), dtype=np.int32)
    table[:, : case.page_table.shape[1]] = case.page_table
    return replace(case, kv_pages=jnp.asarray(pages), page_table=jnp.asarray(table))


@pytest.fixture(scope="module")
def small_kernel() -> Any:
    return kernel(2, rows_per_step=3)


@given(lengths=st.lists(st.integers(0, 70) | st.sampled_from([0, 15, 16, 17, 32]), min_size=ROWS, max_size=ROWS))
@example(lengths=[0] * ROWS)
@example(lengths=[0, 0, 0, 0, 0, 0, 0, 70])
@example(lengths=[70, 0, 0, 0, 0, 0, 0, 0])
@settings(max_examples=4, derandomize=True, deadline=None)
def test_any_lengths(small_kernel: Any, lengths: list[int]) -> None:
    case = same_shapes(lengths, seed=sum(lengths))
    q = queries(case, 4)
    out = strictly(small_kernel, case, q)
    np.testing.assert_allclose(out, expected(case, q), atol=TOLERANCE["float32"])


class NoWait:
    """A copy that is started but not waited for."""

    def __init__(self, copy: Any) -> None:
        self.start = copy.start

    def wait(self) -> None:
        """Does nothing."""


@pytest.fixture
def no_page_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants a bug: nobody waits for pages. Their waits are of a buffer for itself."""
    make = pltpu.make_async_copy

    def make_async_copy(source: Any, target: Any, semaphore: Any) -> Any:
        copy = make(source, target, semaphore)
        return NoWait(copy) if source is target else copy

    monkeypatch.setattr(pltpu, "make_async_copy", make_async_copy)


@pytest.mark.usefixtures("no_page_wait")
def test_a_missing_wait_reads_memory_that_was_never_written() -> None:
    case = same_shapes([40, 70, 0, 0, 0, 0, 0, 0], seed=0)
    with strict_interpreter("on_wait"):
        out = run(kernel(2), case, queries(case, 4))
    assert np.isnan(out[:2]).any()


@pytest.mark.usefixtures("no_page_wait")
def test_a_missing_wait_is_a_race() -> None:
    case = same_shapes([40, 70, 0, 0, 0, 0, 0, 0], seed=0)
    with strict_interpreter("eager"):
        run(kernel(2), case, queries(case, 4))
    assert races_found()


def test_each_device_runs_the_kernel_on_its_kv_heads() -> None:
    """Through the op, and on uint16: a CPU keeps bfloat16 pools as their bits."""
    case = paged_case([5, 0, 40], page_size=16, head_dim=128, dtype="bfloat16")
    assert case.kv_pages.dtype == jnp.uint16
    q = queries(case, 6, "bfloat16")
    heads, whole = PartitionSpec(None, "tp"), PartitionSpec()
    step = jax.jit(
        jax.shard_map(
            lambda *args: paged_decode(*args, scale=128**-0.5, implementation="pallas-interpret"),
            mesh=Mesh(np.array(jax.devices()[:2]), ("tp",)),
            in_specs=(heads, heads, whole, whole),
            out_specs=heads,
            check_vma=False,
        )
    )
    out = step(jnp.asarray(q, jnp.bfloat16), case.kv_pages, case.page_table, jnp.asarray(case.context_lens))
    np.testing.assert_allclose(np.asarray(out.astype(jnp.float32)), expected(case, q), atol=TOLERANCE["bfloat16"])


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((4, 2, 2, 16, 96), "float32", r"float32\[4, 2, 2, 16, 96\]: head dim 96 is no multiple of 128"),
        ((4, 2, 2, 16, 64), "float32", "head dim 64 is no multiple of 128"),
        ((4, 2, 16, 64), "float32", "side by side have head dim 64, not 32"),
        ((4, 2, 2, 8, 128), "bfloat16", "page size 8 is no multiple of 16 up to 256"),
        ((4, 2, 2, 4, 128), "float32", "page size 4 is no multiple of 8 up to 256"),
        ((4, 2, 2, 512, 128), "float32", "page size 512 is no multiple of 8 up to 256"),
        ((1, 64, 2, 256, 128), "float32", "a page takes 16777216 bytes, the limit is 8388608"),
    ],
)
def test_limits_of_the_kernel_are_named(shape: tuple[int, ...], dtype: str, message: str) -> None:
    head_dim = shape[-1] // 2 if len(shape) == 4 else shape[-1]
    arguments = (
        jnp.zeros((2, shape[1], head_dim), dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros((2, 1), jnp.int32),
        jnp.zeros(2, jnp.int32),
    )
    with pytest.raises(ValueError, match=message):
        paged_decode(*arguments, scale=1.0, implementation="pallas-interpret")
    assert paged_decode(*arguments, scale=1.0, implementation="xla").shape == arguments[0].shape


def test_block_sizes_follow_the_table_and_the_rule() -> None:
    documented = PoolDims(100, 2, 128, 128, side_by_side=False)
    assert choose_config(documented, 12, "bfloat16", 1024).pages_per_block == 8
    assert choose_config(documented, 12, "bfloat16", 3).pages_per_block == 4
    other = documented._replace(page_size=48)
    assert choose_config(other, 2, "bfloat16", 1024).pages_per_block == 16
    large = PoolDims(100, 32, 256, 256, side_by_side=False)
    assert choose_config(large, 32, "float32", 1024).pages_per_block == 1
