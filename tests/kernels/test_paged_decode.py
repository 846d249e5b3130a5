import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.paged_decode import paged_decode
from tests.kernels.paged_case import PagedCase, dense_attention, paged_case, soft_capped_attention


def run(case: PagedCase, q: np.ndarray, dtype: str = "float32", **options: object) -> np.ndarray:
    step = jax.jit(lambda *args: paged_decode(*args, scale=q.shape[-1] ** -0.5, **options))
    out = step(jnp.asarray(q, dtype), case.kv_pages, case.page_table, jnp.asarray(case.context_lens))
    assert out.dtype == dtype
    assert out.shape == q.shape
    return np.asarray(out.astype(jnp.float32))


def queries(num_rows: int, num_heads: int, head_dim: int, dtype: str = "float32") -> np.ndarray:
    q = np.random.default_rng(7).standard_normal((num_rows, num_heads, head_dim), np.float32)
    return np.array(jnp.asarray(q, dtype).astype(jnp.float32))


def expected(case: PagedCase, q: np.ndarray, window: int | None = None) -> np.ndarray:
    dense = dense_attention(case, [row[None] for row in q], scale=q.shape[-1] ** -0.5, window=window)
    return np.concatenate(dense) * (case.context_lens > 0)[:, None, None]


@pytest.mark.parametrize("page_size", [4, 16, 64])
def test_ragged_lengths_around_the_page_size(page_size: int) -> None:
    lengths = [1, page_size - 1, page_size, page_size + 1, 37, 0, 101, 2 * page_size]
    case = paged_case(lengths, page_size=page_size)
    q = queries(len(lengths), 4, 32)
    np.testing.assert_allclose(run(case, q), expected(case, q), atol=2e-6)


@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 32), (6, 64), (12, 128), (4, 128)])
def test_head_groups_and_head_dims(num_heads: int, head_dim: int) -> None:
    case = paged_case([19, 8, 3], head_dim=head_dim)
    q = queries(3, num_heads, head_dim)
    np.testing.assert_allclose(run(case, q), expected(case, q), atol=2e-6)


def test_keys_and_values_side_by_side() -> None:
    lengths = [1, 15, 16, 17, 0, 40]
    case = paged_case(lengths, page_size=16, head_dim=64, side_by_side=True)
    q = queries(len(lengths), 6, 64)
    np.testing.assert_allclose(run(case, q), expected(case, q), atol=2e-6)


def test_more_pages_than_one_block_takes() -> None:
    lengths = [1999, 1, 700, 0, 1301]
    case = paged_case(lengths, page_size=16)
    q = queries(len(lengths), 4, 32)
    np.testing.assert_allclose(run(case, q), expected(case, q), atol=2e-6)


def test_bfloat16_within_its_rounding() -> None:
    lengths = [1, 63, 64, 65, 331]
    case = paged_case(lengths, page_size=16, head_dim=64, dtype="bfloat16")
    q = queries(len(lengths), 12, 64, "bfloat16")
    np.testing.assert_allclose(run(case, q, "bfloat16"), expected(case, q), atol=2e-2)


@pytest.mark.parametrize("window", [1, 5, 8, 30])
def test_sliding_window(window: int) -> None:
    lengths = [1, 7, 8, 9, 41]
    case = paged_case(lengths, window=window)
    q = queries(len(lengths), 4, 32)
    np.testing.assert_allclose(run(case, q, sliding_window=window), expected(case, q, window), atol=2e-6)


def test_soft_cap() -> None:
    lengths = [1, 23]
    case = paged_case(lengths)
    q = queries(2, 4, 32) * 8
    out = run(case, q, soft_cap=3.0)
    for row, length in enumerate(lengths):
        keys, values = case.keys[row, :length], case.values[row, :length]
        want = soft_capped_attention(q[row : row + 1], keys, values, scale=32**-0.5, soft_cap=3.0)
        np.testing.assert_allclose(out[row], want[0], atol=2e-6)


def test_nothing_leaks_from_dead_rows() -> None:
    case = paged_case([0, 12, 0, 5])
    q = queries(4, 4, 32)
    want = expected(case, q)
    q[[0, 2]] = np.nan
    out = run(case, q)
    np.testing.assert_allclose(out, want, atol=2e-6)
    assert not out[[0, 2]].any()


def test_a_poisoned_row_costs_no_other_row() -> None:
    case = paged_case([9, 12, 30])
    q = queries(3, 4, 32)
    want = expected(case, q)
    q[1] = np.nan
    out = run(case, q)
    np.testing.assert_allclose(out[[0, 2]], want[[0, 2]], atol=2e-6)
    assert np.isnan(out[1]).all()


def test_all_rows_empty() -> None:
    case = paged_case([0, 0])
    assert not run(case, queries(2, 4, 32)).any()


@pytest.mark.parametrize("storage", ["float32", "uint16", "bfloat16"])
def test_scratch_memory_does_not_follow_the_pool_or_the_table(storage: str) -> None:
    pool = jax.ShapeDtypeStruct((4096, 2, 2, 16, 64), jnp.dtype(storage))
    q = jax.ShapeDtypeStruct((4, 4, 64), jnp.float32 if storage == "float32" else jnp.bfloat16)
    table, lens = jax.ShapeDtypeStruct((4, 8192), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.int32)
    step = jax.jit(lambda *args: paged_decode(*args, scale=1.0))
    memory = step.lower(q, pool, table, lens).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 << 20  # the pool is 32 or 64 MiB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.zeros((2, 3, 32))}, "3 heads.*multiple of the 2 kv heads"),
        ({"q": jnp.zeros((2, 4, 16))}, "head dim 16 but kv_pages has 32"),
        ({"q": jnp.zeros((2, 4, 32), jnp.bfloat16)}, "q is bfloat16 but kv_pages holds float32"),
        ({"page_table": jnp.zeros((3, 2), jnp.int32)}, "q has 2 rows, page_table 3"),
        ({"context_lens": jnp.zeros(2, jnp.uint32)}, "context_lens must be int32 with 1 axes, got uint32"),
        ({"kv_pages": jnp.zeros((4, 2, 8, 33))}, r"kv_pages must be .* got \[4, 2, 8, 33\]"),
        ({"kv_pages": jnp.zeros((4, 2, 2, 8, 32), jnp.int8)}, "got int8"),
        ({"sliding_window": 0}, "sliding_window=0"),
        ({"soft_cap": 0.0}, "soft_cap=0.0"),
        ({"implementation": "cuda"}, "'cuda' is not one of xla, pallas"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "q": jnp.zeros((2, 4, 32)),
        "kv_pages": jnp.zeros((4, 2, 2, 8, 32)),
        "page_table": jnp.zeros((2, 2), jnp.int32),
        "context_lens": jnp.zeros(2, jnp.int32),
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        paged_decode(**(good | change))
