"""Writing new keys and values into their pages.

In a request's life: every layer of every step, before attention. The caller donates the pool to the
enclosing jit; then the write is an in-place scatter and nothing of the pool is copied.
"""

import jax

from kernels.checks import check_int32, check_pool, pick, require
from kernels.kv_pool import value_dtype
from kernels.kv_write import reference

IMPLEMENTATIONS = {"xla": reference.write_kv}


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
        kv_pages: `[P, K, 2, page, H]` (see `kernels.kv_pool`); donate it to the enclosing jit.
        k: `[T, K, H]` of the pool's value type.
        v: `[T, K, H]` of the pool's value type.
        slots: `int32[T]`, page * page_size + offset, all inside the pool. Slots must differ, except on the
            sentinel page 0, where padding may pile up.
        implementation: "xla", or None to let the op choose.

    Returns:
        `[P, K, 2, page, H]`, same type and layout as `kv_pages`.

    Raises:
        ValueError: an argument's shape or type is wrong; the text names it.
    """
    check_pool(kv_pages)
    check_int32("slots", slots, 1)
    shape = (slots.shape[0], kv_pages.shape[1], kv_pages.shape[4])
    for name, array in (("k", k), ("v", v)):
        require(array.shape == shape, f"{name} must be {list(shape)}, got {list(array.shape)}")
        require(
            array.dtype == value_dtype(kv_pages.dtype),
            f"{name} is {array.dtype} but kv_pages holds {value_dtype(kv_pages.dtype)}",
        )
    return pick("write_kv", implementation, IMPLEMENTATIONS)(kv_pages, k, v, slots)
