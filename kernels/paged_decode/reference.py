"""Paged decode attention in plain JAX: the contract, and what a CPU runs.

The pages of all sequences form one list of (row, column) pairs. A loop takes a fixed number of pairs at a
time, attends to each page on its own and merges the partial softmaxes into the rows, so the cost follows the
pages that are really there: neither the table's width nor the longest sequence of the batch matters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.kv_pool import SENTINEL_PAGE, from_storage, pool_dims, split_kv, take_pages
from kernels.softmax import MASKED, cap, normalized, product

MIN_BLOCK_TOKENS = 512
MAX_BLOCK_TOKENS = 2048
BLOCK_TOKENS_PER_ROW = 256


class PageList(NamedTuple):
    """The live pages of all rows, row after row: `starts int32[B]` in the list, `first` table column,
    `total`.
    """

    ends: jax.Array
    starts: jax.Array
    first: jax.Array
    total: jax.Array


class PageBlock(NamedTuple):
    """Some entries of the list: `rows int32[n]`, `ids int32[n]` page numbers, `live bool[n, page]`."""

    rows: jax.Array
    ids: jax.Array
    live: jax.Array


def list_pages(context_lens: jax.Array, page_size: int, sliding_window: int | None) -> PageList:
    """Lays the live pages of every row end to end."""
    first = jnp.zeros_like(context_lens)
    if sliding_window is not None:
        first = jnp.maximum(context_lens - sliding_window, 0) // page_size
    counts = -(-context_lens // page_size) - first
    ends = jnp.cumsum(counts)
    return PageList(ends, ends - counts, first, ends[-1])


def page_block(
    pages: PageList,
    page_table: jax.Array,
    context_lens: jax.Array,
    index: jax.Array,
    size: int,
    page_size: int,
    sliding_window: int | None,
) -> PageBlock:
    """Entries index*size..(index+1)*size-1; those past the list's end point at the sentinel and are dead."""
    entries = index * size + jnp.arange(size, dtype=jnp.int32)
    exists = entries < pages.total
    rows = jnp.searchsorted(pages.ends, entries, side="right", method="compare_all").astype(jnp.int32)
    rows = jnp.where(exists, rows, 0)
    columns = jnp.where(exists, pages.first[rows] + entries - pages.starts[rows], 0)
    positions = columns[:, None] * page_size + jnp.arange(page_size, dtype=jnp.int32)
    lens = context_lens[rows][:, None]
    live = exists[:, None] & (positions < lens)
    if sliding_window is not None:
        live &= positions >= lens - sliding_window
    return PageBlock(rows, jnp.where(exists, page_table[rows, columns], SENTINEL_PAGE), live)


def paged_decode(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> jax.Array:
    """See `kernels.paged_decode.paged_decode`."""
    num_rows, num_heads, head_dim = q.shape
    pool = pool_dims(kv_pages.shape)
    num_kv_heads, page_size = pool.num_kv_heads, pool.page_size
    q_bkgh = q.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    block_tokens = min(max(BLOCK_TOKENS_PER_ROW * num_rows, MIN_BLOCK_TOKENS), MAX_BLOCK_TOKENS)
    size = max(1, block_tokens // page_size)
    pages = list_pages(context_lens, page_size, sliding_window)

    def merge_block(index: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        peak, total, weighted = state  # [B, K, G], [B, K, G], [B, K, G, H]
        block = page_block(pages, page_table, context_lens, index, size, page_size, sliding_window)
        k, v = split_kv(from_storage(take_pages(kv_pages, block.ids)))
        live = block.live[:, None, None]
        scores = cap(product("nkgh,nksh->nkgs", q_bkgh[block.rows], k) * scale, soft_cap)
        scores = jnp.where(live, scores, MASKED)
        new_peak = peak.at[block.rows].max(scores.max(axis=3))
        weights = jnp.where(live, jnp.exp(scores - new_peak[block.rows][..., None]), 0)
        values = jnp.where(block.live[:, None, :, None], v, 0)
        decay = jnp.exp(peak - new_peak)
        total = (total * decay).at[block.rows].add(weights.sum(axis=3))
        partial = product("nkgs,nksh->nkgh", weights, values)
        weighted = (weighted * decay[..., None]).at[block.rows].add(partial)
        return new_peak, total, weighted

    state = (
        jnp.full(q_bkgh.shape[:3], MASKED, jnp.float32),
        jnp.zeros(q_bkgh.shape[:3], jnp.float32),
        jnp.zeros(q_bkgh.shape, jnp.float32),
    )
    _, total, weighted = lax.fori_loop(0, -(-pages.total // size), merge_block, state)
    return normalized(weighted, total).astype(q.dtype).reshape(q.shape)
