"""Random paged KV with the same keys and values laid out densely, and dense attention by `jax.nn`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from kernels.kv_pool import storage_dtype, to_storage


@dataclass
class PagedCase:
    """`kv_pages` is NaN wherever no live position lies; `keys` and `values` are `[R, S, K, H]` float32."""

    kv_pages: jax.Array
    page_table: jax.Array
    context_lens: np.ndarray
    keys: np.ndarray
    values: np.ndarray


def paged_case(
    context_lens: list[int],
    *,
    page_size: int = 8,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    dtype: str = "float32",
    extra_columns: int = 3,
    window: int | None = None,
    lowest_position: int | None = None,
    side_by_side: bool = False,
    seed: int = 0,
) -> PagedCase:
    """Sequences of the given lengths in shuffled pages; columns past a context point at random (NaN) pages.

    With a window, positions that no query from `lowest_position` (default: the last) on can see are NaN too.
    """
    rng = np.random.default_rng(seed)
    counts = [-(-length // page_size) for length in context_lens]
    num_pages = sum(counts) + 4
    width = max(counts) + extra_columns
    kv_pages = np.full((num_pages, num_kv_heads, 2, page_size, head_dim), np.nan, np.float32)
    table = rng.integers(0, num_pages, (len(context_lens), width), dtype=np.int32)
    order = rng.permutation(np.arange(1, num_pages, dtype=np.int32))
    longest = max([*context_lens, 1])
    dense = rng.standard_normal((2, len(context_lens), longest, num_kv_heads, head_dim), np.float32)
    dense = dense.astype(dtype).astype(np.float32)
    for row, (length, count) in enumerate(zip(context_lens, counts, strict=True)):
        table[row, :count], order = order[:count], order[count:]
        lowest = length - 1 if lowest_position is None else lowest_position
        first = 0 if window is None else max(lowest - window + 1, 0)
        for position in range(first, length):
            page = table[row, position // page_size]
            kv_pages[page, :, :, position % page_size] = dense[:, row, position].swapaxes(0, 1)
    if side_by_side:
        kv_pages = np.concatenate([kv_pages[:, :, 0], kv_pages[:, :, 1]], axis=-1)
    stored = to_storage(jnp.asarray(kv_pages), storage_dtype(dtype, jax.default_backend()))
    return PagedCase(stored, jnp.asarray(table), np.array(context_lens, np.int32), dense[0], dense[1])


def dense_attention(
    case: PagedCase, queries: list[np.ndarray], *, scale: float, window: int | None = None
) -> list[np.ndarray]:
    """Row r's `queries[r] [T, N, H]` are its last positions; float32, by one `jax.nn.dot_product_attention`."""
    longest = max(len(q) for q in queries)
    padded = np.stack([np.pad(q, ((0, longest - len(q)), (0, 0), (0, 0))) for q in queries])
    starts = np.array([length - len(q) for length, q in zip(case.context_lens, queries, strict=True)])
    position = (starts[:, None] + np.arange(longest))[:, :, None]
    key = np.arange(case.keys.shape[1])
    mask = (key <= position) & (key > position - (window or case.keys.shape[1] + longest))
    with jax.default_matmul_precision("highest"):
        out = jax.nn.dot_product_attention(padded, case.keys, case.values, mask=mask[:, None], scale=scale)
    return [np.asarray(row[: len(q)]) for row, q in zip(out, queries, strict=True)]


def soft_capped_attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, *, scale: float, soft_cap: float
) -> np.ndarray:
    """The same with soft-capped scores, spelled out in float64."""
    group = q.shape[1] // keys.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (keys, values))
    scores = np.einsum("tnh,snh->nts", q.astype(np.float64), keys) * scale
    scores = soft_cap * np.tanh(scores / soft_cap)
    num_queries, num_keys = q.shape[0], keys.shape[0]
    future = np.arange(num_keys)[None, :] > np.arange(num_keys - num_queries, num_keys)[:, None]
    weights = np.exp(np.where(future, -np.inf, scores - scores.max(axis=-1, keepdims=True)))
    return np.einsum("nts,snh->tnh", weights / weights.sum(axis=-1, keepdims=True), values)
