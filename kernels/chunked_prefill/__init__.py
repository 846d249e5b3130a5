"""Prefill attention: the new tokens of several sequences, laid end to end, against their paged KV.

In a request's life: every layer of every prefill chunk. The reference is the contract; later implementations
must agree with it for every argument that passes the checks here.
"""

import jax

from kernels.checks import check_int32, check_limits, check_queries, require
from kernels.chunked_prefill import reference, tpu
from kernels.implementations import interpret_mode, resolve
from kernels.kv_pool import SIDE_BY_SIDE_HEAD_DIM, from_storage, pool_dims

KERNEL_HEAD_DIMS = (64, 128, 256)
KERNEL_PAGE_SIZES = {"bfloat16": (16, 32, 64, 128, 256), "float32": (8, 16, 32, 64, 128, 256)}
KERNEL_MAX_GROUP = 16


def check_kernel_limits(q: jax.Array, kv_pages: jax.Array) -> None:
    """Refuses what the reference computes but the TPU kernel does not."""
    pool = pool_dims(kv_pages.shape)
    pages = KERNEL_PAGE_SIZES[q.dtype.name]
    got = f"chunked_prefill's kernel got q {q.dtype}{list(q.shape)} and kv_pages {list(kv_pages.shape)}"
    require(pool.head_dim in KERNEL_HEAD_DIMS, f"{got}: head dim {pool.head_dim} is not one of {KERNEL_HEAD_DIMS}")
    require(
        pool.side_by_side == (pool.head_dim == SIDE_BY_SIDE_HEAD_DIM),
        f"{got}: keys and values must lie side by side for head dim {SIDE_BY_SIDE_HEAD_DIM} and no other",
    )
    require(pool.page_size in pages, f"{got}: page size {pool.page_size} is not one of {pages}")
    group = q.shape[1] // pool.num_kv_heads
    require(1 <= group <= KERNEL_MAX_GROUP, f"{got}: {group} query heads per kv head, at most {KERNEL_MAX_GROUP}")
    require(q.shape[0] >= 1, f"{got}: no tokens")


def chunked_prefill(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    cu_q_lens: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Causal attention of each sequence's last tokens over its context.

    Args:
        q: float32 or bfloat16 `[T, N, H]`. Tokens cu_q_lens[r]..cu_q_lens[r+1]-1 belong to sequence r and
            are its last positions; tokens from cu_q_lens[R] on are padding.
        kv_pages: `[P, K, 2, page, H]` or side by side (see `kernels.kv_pool`); not donated. The tokens' own KV is
            already in it.
        page_table: `int32[R, W]`; column j of row r is the page of positions j*page..(j+1)*page-1. Columns
            past the context may hold any valid page number.
        cu_q_lens: `int32[R + 1]`, starts at 0, never falls, ends at most at T. Unused sequences are empty.
        context_lens: `int32[R]`, tokens of each sequence including its new ones, at most W*page.
        scale: factor on the scores, usually H**-0.5.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None sees all.
        soft_cap: scores become soft_cap * tanh(score / soft_cap) after scaling; None leaves them.
        implementation: see `kernels.implementations`; None lets the op choose.

    Returns:
        `[T, N, H]` of q's type, zero for padding. Pages outside a context are never looked at.

    Raises:
        ValueError: an argument's shape, type or limit is wrong; the text names it.
    """
    check_queries(q, kv_pages)
    check_limits(sliding_window, soft_cap)
    check_int32("page_table", page_table, 2)
    check_int32("cu_q_lens", cu_q_lens, 1)
    check_int32("context_lens", context_lens, 1)
    require(
        page_table.shape[0] == context_lens.shape[0] == cu_q_lens.shape[0] - 1,
        f"page_table has {page_table.shape[0]} sequences, context_lens {context_lens.shape[0]}, "
        f"cu_q_lens {cu_q_lens.shape[0] - 1} (one entry more)",
    )
    chosen = resolve("chunked_prefill", implementation)
    if chosen == "xla":
        return reference.chunked_prefill(
            q,
            kv_pages,
            page_table,
            cu_q_lens,
            context_lens,
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
        )
    check_kernel_limits(q, kv_pages)
    return tpu.chunked_prefill(
        q,
        from_storage(kv_pages),
        page_table,
        cu_q_lens,
        context_lens,
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        interpret=interpret_mode(chosen),
    )
