import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.chunked_prefill import chunked_prefill
from tests.kernels.paged_case import PagedCase, dense_attention, paged_case, soft_capped_attention


def run(case: PagedCase, q: np.ndarray, q_lens: list[int], dtype: str = "float32", **options: object) -> np.ndarray:
    step = jax.jit(lambda *args: chunked_prefill(*args, scale=q.shape[-1] ** -0.5, **options))
    cu_q_lens = jnp.asarray(np.cumsum([0, *q_lens]), jnp.int32)
    out = step(jnp.asarray(q, dtype), case.kv_pages, case.page_table, cu_q_lens, jnp.asarray(case.context_lens))
    assert out.dtype == dtype
    assert out.shape == q.shape
    return np.asarray(out.astype(jnp.float32))


def queries(num_tokens: int, num_heads: int = 4, head_dim: int = 32, dtype: str = "float32") -> np.ndarray:
    q = np.random.default_rng(7).standard_normal((num_tokens, num_heads, head_dim), np.float32)
    return np.array(jnp.asarray(q, dtype).astype(jnp.float32))


def expected(case: PagedCase, q: np.ndarray, q_lens: list[int], window: int | None = None) -> np.ndarray:
    ends = np.cumsum(q_lens)
    rows = np.split(q[: ends[-1]], ends[:-1])
    dense = dense_attention(case, rows, scale=q.shape[-1] ** -0.5, window=window)
    return np.concatenate([*dense, np.zeros_like(q[ends[-1] :])])


@pytest.mark.parametrize("page_size", [4, 16, 64])
def test_ragged_chunks_around_the_page_size(page_size: int) -> None:
    q_lens = [1, page_size - 1, 0, page_size, page_size + 1, 37]
    lengths = [1, page_size - 1, 5, 2 * page_size, page_size + 1, 101]
    case = paged_case(lengths, page_size=page_size)
    q = queries(sum(q_lens) + 11)
    np.testing.assert_allclose(run(case, q, q_lens), expected(case, q, q_lens), atol=2e-6)


@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 32), (6, 64), (12, 128), (4, 128)])
def test_head_groups_and_head_dims(num_heads: int, head_dim: int) -> None:
    q_lens = [5, 8]
    case = paged_case([19, 8], head_dim=head_dim)
    q = queries(16, num_heads, head_dim)
    np.testing.assert_allclose(run(case, q, q_lens), expected(case, q, q_lens), atol=2e-6)


def test_many_query_and_context_blocks() -> None:
    q_lens, lengths = [300, 1, 257], [1301, 700, 257]
    case = paged_case(lengths, page_size=16)
    q = queries(sum(q_lens) + 30)
    np.testing.assert_allclose(run(case, q, q_lens), expected(case, q, q_lens), atol=2e-6)


def test_keys_and_values_side_by_side() -> None:
    q_lens, lengths = [5, 30], [19, 30]
    case = paged_case(lengths, page_size=16, head_dim=64, side_by_side=True)
    q = queries(40, 6, 64)
    np.testing.assert_allclose(run(case, q, q_lens), expected(case, q, q_lens), atol=2e-6)


def test_a_chunk_without_padding_and_one_with_nothing_else() -> None:
    case = paged_case([13, 9])
    q = queries(16)
    np.testing.assert_allclose(run(case, q, [7, 9]), expected(case, q, [7, 9]), atol=2e-6)
    assert not run(case, q, [0, 0]).any()


def test_bfloat16_within_its_rounding() -> None:
    q_lens, lengths = [33, 64], [331, 64]
    case = paged_case(lengths, page_size=16, head_dim=64, dtype="bfloat16")
    q = queries(100, 12, 64, "bfloat16")
    np.testing.assert_allclose(run(case, q, q_lens, "bfloat16"), expected(case, q, q_lens), atol=2e-2)


@pytest.mark.parametrize("window", [1, 5, 8, 30])
def test_sliding_window(window: int) -> None:
    case = paged_case([41], window=window, lowest_position=41 - 11)
    q = queries(12)
    np.testing.assert_allclose(run(case, q, [11], sliding_window=window), expected(case, q, [11], window), atol=2e-6)


def test_sliding_window_skips_whole_context_blocks() -> None:
    case = paged_case([1500, 9], page_size=16, window=40, lowest_position=1500 - 200)
    q = queries(209)
    want = expected(case, q, [200, 0], 40)
    np.testing.assert_allclose(run(case, q, [200, 0], sliding_window=40), want, atol=2e-6)


def test_soft_cap() -> None:
    case = paged_case([23])
    q = queries(9) * 8
    want = soft_capped_attention(q, case.keys[0], case.values[0], scale=32**-0.5, soft_cap=3.0)
    np.testing.assert_allclose(run(case, q, [9], soft_cap=3.0), want, atol=2e-6)


def test_nothing_leaks_from_padding_or_between_sequences() -> None:
    q_lens = [6, 5, 4]
    case = paged_case([12, 5, 30])
    q = queries(20)
    want = expected(case, q, q_lens)
    q[6:11] = np.nan
    q[15:] = np.nan
    out = run(case, q, q_lens)
    np.testing.assert_allclose(out[:6], want[:6], atol=2e-6)
    np.testing.assert_allclose(out[11:15], want[11:15], atol=2e-6)
    assert not out[15:].any()


@pytest.mark.parametrize("storage", ["float32", "uint16", "bfloat16"])
def test_scratch_memory_does_not_follow_the_pool_or_the_table(storage: str) -> None:
    pool = jax.ShapeDtypeStruct((4096, 2, 2, 16, 64), jnp.dtype(storage))
    q = jax.ShapeDtypeStruct((96, 4, 64), jnp.float32 if storage == "float32" else jnp.bfloat16)
    table, lens = jax.ShapeDtypeStruct((4, 8192), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.int32)
    cu_q_lens = jax.ShapeDtypeStruct((5,), jnp.int32)
    step = jax.jit(lambda *args: chunked_prefill(*args, scale=1.0))
    memory = step.lower(q, pool, table, cu_q_lens, lens).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 << 20  # the pool is 32 or 64 MiB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.zeros((6, 3, 32))}, "3 heads.*multiple of the 2 kv heads"),
        ({"cu_q_lens": jnp.zeros(2, jnp.int32)}, "page_table has 2 sequences, context_lens 2, cu_q_lens 1"),
        ({"cu_q_lens": jnp.zeros(3)}, "cu_q_lens must be int32"),
        ({"implementation": "mosaic"}, "'mosaic' is not one of xla, pallas"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "q": jnp.zeros((6, 4, 32)),
        "kv_pages": jnp.zeros((4, 2, 2, 8, 32)),
        "page_table": jnp.zeros((2, 2), jnp.int32),
        "cu_q_lens": jnp.zeros(3, jnp.int32),
        "context_lens": jnp.zeros(2, jnp.int32),
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        chunked_prefill(**(good | change))
