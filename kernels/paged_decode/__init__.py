"""Decode attention: one query token per sequence against its paged KV.

In a request's life: every layer of every decode step. The reference is the contract; later implementations
must agree with it for every argument that passes the checks here.
"""

import jax

from kernels.checks import check_int32, check_limits, check_queries, require
from kernels.implementations import resolve
from kernels.paged_decode import reference


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
        ValueError: an argument's shape, type or limit is wrong; the text names it.
    """
    check_queries(q, kv_pages)
    check_limits(sliding_window, soft_cap)
    check_int32("page_table", page_table, 2)
    check_int32("context_lens", context_lens, 1)
    require(
        page_table.shape[0] == context_lens.shape[0] == q.shape[0],
        f"q has {q.shape[0]} rows, page_table {page_table.shape[0]}, context_lens {context_lens.shape[0]}",
    )
    if resolve("paged_decode", implementation) != "xla":
        raise ValueError("paged_decode: there is no kernel yet; allowed: implementation='xla'")
    return reference.paged_decode(
        q, kv_pages, page_table, context_lens, scale=scale, sliding_window=sliding_window, soft_cap=soft_cap
    )
