"""Chunked prefill attention in plain JAX: the contract, and what a CPU runs.

The ragged token axis is cut into query blocks that each belong to one sequence. An outer loop takes the
blocks in order, an inner loop walks that block's own context with a running softmax: the cost follows the
actual contexts, not the table's width, and scratch memory is one block of scores.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.kv_pool import SENTINEL_PAGE, from_storage, pool_dims, split_kv, take_pages
from kernels.softmax import MASKED, cap, normalized, product

MAX_QUERY_BLOCK = 128
CONTEXT_BLOCK_TOKENS = 256


class QueryBlocks(NamedTuple):
    """Blocks of all sequences, sequence after sequence: `ends int32[R]` and `starts int32[R]` in the list."""

    ends: jax.Array
    starts: jax.Array


class QueryBlock(NamedTuple):
    """One block: its sequence, first flat token, number of tokens and the position of its first token."""

    sequence: jax.Array
    token: jax.Array
    num_tokens: jax.Array
    position: jax.Array


def list_blocks(cu_q_lens: jax.Array, block_tokens: int) -> QueryBlocks:
    """Cuts every sequence's new tokens into blocks of at most `block_tokens`."""
    counts = -(-(cu_q_lens[1:] - cu_q_lens[:-1]) // block_tokens)
    ends = jnp.cumsum(counts)
    return QueryBlocks(ends, ends - counts)


def query_block(
    blocks: QueryBlocks,
    cu_q_lens: jax.Array,
    context_lens: jax.Array,
    index: jax.Array,
    block_tokens: int,
) -> QueryBlock:
    """Block `index` of the list."""
    sequence = jnp.searchsorted(blocks.ends, index, side="right", method="compare_all").astype(jnp.int32)
    token = cu_q_lens[sequence] + (index - blocks.starts[sequence]) * block_tokens
    left = cu_q_lens[sequence + 1] - token
    return QueryBlock(sequence, token, jnp.minimum(left, block_tokens), context_lens[sequence] - left)


def attend_block(
    q: jax.Array,
    kv_pages: jax.Array,
    table_row: jax.Array,
    block: QueryBlock,
    *,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> jax.Array:
    """Attention of one block's queries `[T, K, G, H]` over their context, float32 `[K, G, T, H]`."""
    page_size = pool_dims(kv_pages.shape).page_size
    size = max(1, CONTEXT_BLOCK_TOKENS // page_size)
    q_kgth = q.transpose(1, 2, 0, 3)
    end = block.position + block.num_tokens
    begin = jnp.int32(0) if sliding_window is None else jnp.maximum(block.position - sliding_window + 1, 0)
    positions = (block.position + jnp.arange(q.shape[0], dtype=jnp.int32))[:, None]

    def merge_pages(index: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        peak, total, weighted = state  # [K, G, T], [K, G, T], [K, G, T, H]
        columns = index * size + jnp.arange(size, dtype=jnp.int32)
        exists = (columns * page_size < end) & ((columns + 1) * page_size > begin)
        ids = jnp.where(exists, table_row[jnp.minimum(columns, table_row.shape[0] - 1)], SENTINEL_PAGE)
        pages = split_kv(from_storage(take_pages(kv_pages, ids)))
        k, v = (x.transpose(1, 0, 2, 3).reshape(x.shape[1], size * page_size, x.shape[3]) for x in pages)
        keys = index * (size * page_size) + jnp.arange(size * page_size, dtype=jnp.int32)
        seen = keys <= positions
        if sliding_window is not None:
            seen &= keys > positions - sliding_window
        scores = cap(product("kgth,ksh->kgts", q_kgth, k) * scale, soft_cap)
        scores = jnp.where(seen, scores, MASKED)
        new_peak = jnp.maximum(peak, scores.max(axis=3))
        weights = jnp.where(seen, jnp.exp(scores - new_peak[..., None]), 0)
        values = jnp.where(((keys >= begin) & (keys < end))[:, None], v, 0)
        decay = jnp.exp(peak - new_peak)
        weighted = weighted * decay[..., None] + product("kgts,ksh->kgth", weights, values)
        return new_peak, total * decay + weights.sum(axis=3), weighted

    state = (
        jnp.full(q_kgth.shape[:3], MASKED, jnp.float32),
        jnp.zeros(q_kgth.shape[:3], jnp.float32),
        jnp.zeros(q_kgth.shape, jnp.float32),
    )
    block_tokens = size * page_size
    _, total, weighted = lax.fori_loop(begin // block_tokens, -(-end // block_tokens), merge_pages, state)
    return normalized(weighted, total)


def chunked_prefill(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    cu_q_lens: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    sliding_window: int | None,
    soft_cap: float | None,
) -> jax.Array:
    """See `kernels.chunked_prefill.chunked_prefill`."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = kv_pages.shape[1]
    block_tokens = min(MAX_QUERY_BLOCK, num_tokens)
    blocks = list_blocks(cu_q_lens, block_tokens)
    shape = (num_tokens + block_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    # A block reads and writes block_tokens rows from its first token on. Rows past its end are zeroed here
    # and belong to a later block, which overwrites them, or to the padding.
    q_padded = jnp.pad(q, ((0, block_tokens), (0, 0), (0, 0))).reshape(shape)

    def write_block(index: jax.Array, written: jax.Array) -> jax.Array:
        block = query_block(blocks, cu_q_lens, context_lens, index, block_tokens)
        attended = attend_block(
            lax.dynamic_slice_in_dim(q_padded, block.token, block_tokens),
            kv_pages,
            page_table[block.sequence],
            block,
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
        ).transpose(2, 0, 1, 3)
        inside = jnp.arange(block_tokens, dtype=jnp.int32) < block.num_tokens
        attended = jnp.where(inside[:, None, None, None], attended, 0)
        written = lax.dynamic_update_slice_in_dim(written, attended, block.token, 0)
        return written

    out: jax.Array = lax.fori_loop(0, blocks.ends[-1], write_block, jnp.zeros(shape, jnp.float32))
    return out[:num_tokens].astype(q.dtype).reshape(q.shape)
