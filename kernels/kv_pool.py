"""The layer pool's layout and storage type: what every op of this package reads and writes.

One layer's pool is `kv_pages [P, K, 2, page, H]` (pages, kv heads, key or value, page size, head dim),
head-major. Page 0 is the sentinel: padding is written there and nobody reads it.

XLA's CPU backend has no bfloat16 scatter, gather or dynamic slice: it converts the *whole operand* to
float32 and back around each of them (64 MiB of pool and 16 new tokens: 40 ms and 128 MiB of scratch instead
of 8 us). So a CPU keeps a bfloat16 pool as its bits, uint16, and the ops reinterpret the few rows that they
touch. Everywhere else the storage type is the model's own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

SENTINEL_PAGE = 0
BITS = jnp.dtype(jnp.uint16)


def storage_dtype(dtype: DTypeLike, platform: str) -> jnp.dtype:
    """The element type of a pool of `dtype` keys and values on `platform` ("cpu", "tpu", "gpu")."""
    return BITS if platform == "cpu" and jnp.dtype(dtype) == jnp.bfloat16 else jnp.dtype(dtype)


def to_storage(values: jax.Array, storage: DTypeLike) -> jax.Array:
    """Values as the pool stores them: their bits for a uint16 pool, a cast otherwise."""
    if jnp.dtype(storage) == BITS:
        return lax.bitcast_convert_type(values.astype(jnp.bfloat16), BITS)
    return values.astype(storage)


def from_storage(stored: jax.Array) -> jax.Array:
    """Stored keys or values as numbers: the inverse of `to_storage`."""
    return lax.bitcast_convert_type(stored, jnp.bfloat16) if stored.dtype == BITS else stored


def value_dtype(storage: DTypeLike) -> jnp.dtype:
    """The type of the numbers in a pool stored as `storage`."""
    return jnp.dtype(jnp.bfloat16) if jnp.dtype(storage) == BITS else jnp.dtype(storage)


def take_pages(kv_pages: jax.Array, page_ids: jax.Array) -> jax.Array:
    """Pages `page_ids int32[n]` of a pool as stored, `[n, K, 2, page, H]`; safe inside a loop.

    The barrier keeps XLA:CPU from hoisting a conversion of a whole bfloat16 pool out of the loop.
    """
    barrier: Any = lax.optimization_barrier
    pool, ids = barrier((kv_pages, page_ids))
    taken: jax.Array = pool.at[ids].get(mode="promise_in_bounds")
    return taken
