"""Decode attention: one query token per sequence against its paged KV.

In a request's life: every layer of every decode step. The reference is the contract; later implementations
must agree with it for every argument that passes the checks here.
"""

import jax

from kernels.checks import check_int32, check_limits, check_queries, require
from kernels.implementations import interpret_mode, resolve
from kernels.kv_pool import SIDE_BY_SIDE_HEAD_DIM, from_storage, pool_dims
from kernels.paged_decode import reference, tpu
from kernels.paged_decode.tuning import page_bytes

MAX_PAGE_SIZE = 256
MAX_PAGE_BYTES = 8 << 20
"""A page of all kv heads; at least two are in VMEM."""
MAX_TABLE_WIDTH = 1 << 15
"""Columns of the page table; two rows are in scalar memory."""
MAX_ROWS = 1 << 16
"""Sequences; their lengths are in scalar memory."""


def check_kernel(q: jax.Array, kv_pages: jax.Array, page_table: jax.Array) -> None:
    """Refuses what passes as an argument of the op but is beyond the TPU kernel."""
    pool = pool_dims(kv_pages.shape)
    what = f"paged_decode's kernel: kv_pages {kv_pages.dtype}{list(kv_pages.shape)}"
    if pool.side_by_side:
        require(
            pool.head_dim == SIDE_BY_SIDE_HEAD_DIM,
            f"{what}: keys and values side by side have head dim {SIDE_BY_SIDE_HEAD_DIM}, not {pool.head_dim}",
        )
    else:
        require(pool.head_dim % tpu.LANES == 0, f"{what}: head dim {pool.head_dim} is no multiple of {tpu.LANES}")
    smallest = 32 // q.dtype.itemsize
    require(
        pool.page_size % smallest == 0 and pool.page_size <= MAX_PAGE_SIZE,
        f"{what}: page size {pool.page_size} is no multiple of {smallest} up to {MAX_PAGE_SIZE}",
    )
    size = page_bytes(pool, q.dtype)
    require(size <= MAX_PAGE_BYTES, f"{what}: a page takes {size} bytes, the limit is {MAX_PAGE_BYTES}")
    num_rows, width = page_table.shape
    require(num_rows <= MAX_ROWS, f"paged_decode's kernel: {num_rows} rows, the limit is {MAX_ROWS}")
    require(width <= MAX_TABLE_WIDTH, f"paged_decode's kernel: page_table {width} wide, the limit is {MAX_TABLE_WIDTH}")


def paged_decode(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of each sequence's newest token over its whole context.

    Args:
        q: float32 or bfloat16 `[B, N, H]`, one token per sequence.
        kv_pages: `[P, K, 2, page, H]` or side by side (see `kernels.kv_pool`); not donated. The token's own KV is
            already in it.
        page_table: `int32[B, W]`; column j of row b is the page of positions j*page..(j+1)*page-1. Columns
            past the context may hold any valid page number.
        context_lens: `int32[B]`, tokens of each sequence including the one being decoded, at most W*page. A
            row with 0 returns zeros.
        scale: factor on the scores, usually H**-0.5.
        sliding_window: a token sees itself and the `sliding_window - 1` tokens before it; None sees all.
        soft_cap: scores become soft_cap * tanh(score / soft_cap) after scaling; None leaves them.
        implementation: see `kernels.implementations`; None lets the op choose.

    Returns:
        `[B, N, H]` of q's type. Pages outside the context (or window) are never looked at, whatever they
        hold.

    Raises:
        ValueError: an argument's shape, type or limit is wrong, or beyond the kernel that was asked for; the text
            names it.
    """
    check_queries(q, kv_pages)
    check_limits(sliding_window, soft_cap)
    check_int32("page_table", page_table, 2)
    check_int32("context_lens", context_lens, 1)
    require(
        page_table.shape[0] == context_lens.shape[0] == q.shape[0],
        f"q has {q.shape[0]} rows, page_table {page_table.shape[0]}, context_lens {context_lens.shape[0]}",
    )
    chosen = resolve("paged_decode", implementation)
    if chosen == "xla":
        return reference.paged_decode(
            q, kv_pages, page_table, context_lens, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap
        )
    check_kernel(q, kv_pages, page_table)
    return tpu.paged_decode(
        q,
        from_storage(kv_pages),
        page_table,
        context_lens,
        scale=scale,
        sliding_window=sliding_window,
        soft_cap=soft_cap,
        interpret=interpret_mode(chosen),
    )
