"""Argument checks that the ops share: each names the argument, its shape or type, and what is allowed."""

import jax
import jax.numpy as jnp

from kernels.kv_pool import pool_dims, value_dtype

FLOATS = ("float32", "bfloat16")
LANES = 128
"""Elements of a TPU vector register's row."""
PAGE_ROWS = 16
"""Rows of a 16-bit register; pages of fewer would share tiles."""


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition`."""
    if not condition:
        raise ValueError(message)


def check_int32(name: str, array: jax.Array, ndim: int) -> None:
    """Refuses anything but an int32 array of `ndim` axes."""
    require(
        array.dtype == jnp.int32 and array.ndim == ndim,
        f"{name} must be int32 with {ndim} axes, got {array.dtype}{list(array.shape)}",
    )


def check_pool(kv_pages: jax.Array) -> None:
    """Refuses a pool that has neither layout of `kernels.kv_pool`, or is not float32, bfloat16 or uint16 (its bits)."""
    shape = kv_pages.shape
    side_by_side = len(shape) == 4 and shape[3] % 2 == 0
    require(
        (side_by_side or (len(shape) == 5 and shape[2] == 2)) and shape[0] >= 1,
        f"kv_pages must be [P, K, 2, page, H] or [P, K, page, 2H], got {list(shape)}",
    )
    require(
        value_dtype(kv_pages.dtype).name in FLOATS,
        f"kv_pages must hold float32, bfloat16 or uint16 (bfloat16 bits), got {kv_pages.dtype}",
    )


def check_pool_for_tpu(op: str, kv_pages: jax.Array) -> None:
    """Refuses pools that TPU kernels would have to pad: rows of whole 128-lane tiles, pages of whole 16-row tiles."""
    pool = pool_dims(kv_pages.shape)
    require(
        kv_pages.shape[-1] % LANES == 0 and pool.page_size % PAGE_ROWS == 0,
        f"{op}: kv_pages is {kv_pages.dtype}{list(kv_pages.shape)}; the TPU kernel needs a last axis that is a "
        f"multiple of {LANES} and a page size that is a multiple of {PAGE_ROWS}",
    )


def check_queries(q: jax.Array, kv_pages: jax.Array) -> None:
    """Refuses queries that do not fit the pool's type, head dim or number of kv heads."""
    check_pool(kv_pages)
    pool = pool_dims(kv_pages.shape)
    num_kv_heads, head_dim = pool.num_kv_heads, pool.head_dim
    require(q.ndim == 3, f"q must have 3 axes (tokens, heads, head dim), got {list(q.shape)}")
    require(
        q.dtype == value_dtype(kv_pages.dtype),
        f"q is {q.dtype} but kv_pages holds {value_dtype(kv_pages.dtype)}",
    )
    require(q.shape[2] == head_dim, f"q has head dim {q.shape[2]} but kv_pages has {head_dim}")
    require(
        q.shape[1] % num_kv_heads == 0,
        f"q has {q.shape[1]} heads, which is no multiple of the {num_kv_heads} kv heads of kv_pages",
    )


def check_limits(sliding_window: int | None, soft_cap: float | None) -> None:
    """Refuses a window below one token or a soft cap that is not positive."""
    require(sliding_window is None or sliding_window >= 1, f"{sliding_window=} must be at least 1")
    require(soft_cap is None or soft_cap > 0, f"{soft_cap=} must be positive")
