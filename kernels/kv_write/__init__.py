"""Writing new keys and values into their pages.

In a request's life: every layer of every step, before attention. The caller donates the pool to the
enclosing jit; then the write is an in-place scatter and nothing of the pool is copied.
"""

import jax

from kernels.checks import check_int32, check_pool, check_pool_for_tpu, require
from kernels.implementations import resolve
from kernels.kv_pool import pool_dims, value_dtype
from kernels.kv_write import reference, tpu

MAX_PAGE_SIZE = 256
MAX_PAGES = 1 << 22
"""Limits of the TPU kernel, whose list of work has a page and a part of it in 32 bits."""


def write_kv(
    kv_pages: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """The pool with each token's key and value in its slot.

    Args:
        kv_pages: `[P, K, 2, page, H]` or side by side (see `kernels.kv_pool`); donate it to the enclosing jit.
        k: `[T, K, H]` of the pool's value type.
        v: `[T, K, H]` of the pool's value type.
        slots: `int32[T]`, page * page_size + offset, all inside the pool. Slots must differ, except on the
            sentinel page 0, where padding may pile up.
        implementation: see `kernels.implementations`; None lets the op choose.

    Returns:
        The pool, same shape, type and layout as `kv_pages`. What the sentinel holds is not specified.

    Raises:
        ValueError: an argument's shape or type is wrong; the text names it.
    """
    check_pool(kv_pages)
    check_int32("slots", slots, 1)
    pool = pool_dims(kv_pages.shape)
    shape = (slots.shape[0], pool.num_kv_heads, pool.head_dim)
    for name, array in (("k", k), ("v", v)):
        require(array.shape == shape, f"{name} must be {list(shape)}, got {list(array.shape)}")
        require(
            array.dtype == value_dtype(kv_pages.dtype),
            f"{name} is {array.dtype} but kv_pages holds {value_dtype(kv_pages.dtype)}",
        )
    chosen = resolve("write_kv", implementation)
    if chosen == "xla":
        return reference.write_kv(kv_pages, k, v, slots)
    check_pool_for_tpu("write_kv", kv_pages)
    require(
        pool.page_size <= MAX_PAGE_SIZE and pool.num_pages <= MAX_PAGES,
        f"write_kv: kv_pages has {pool.num_pages} pages of {pool.page_size} tokens; the TPU kernel takes at most "
        f"{MAX_PAGES} of {MAX_PAGE_SIZE}",
    )
    if not slots.shape[0]:
        return kv_pages
    return tpu.write_kv(kv_pages, k, v, slots, implementation=chosen)
