"""The layer pool's layout and storage type: what every op of this package reads and writes.

One layer's pool is `kv_pages [P, K, 2, page, H]` (pages, kv heads, key or value, page size, head dim),
head-major. Page 0 is the sentinel: padding is written there and nobody reads it.

The TPU kernels keep a head dim of 64 *side by side*, `[P, K, page, 2 * H]`, the key in the lower half of the 128 lanes
and the value in the upper: an array that ends in 64 would be padded to 128 lanes, and the whole pool copied into that
form in every call. The number of axes tells the two layouts apart.

XLA's CPU backend has no bfloat16 scatter, gather or dynamic slice: it converts the *whole operand* to
float32 and back around each of them (64 MiB of pool and 16 new tokens: 40 ms and 128 MiB of scratch instead
of 8 us). So a CPU keeps a bfloat16 pool as its bits, uint16, and the ops reinterpret the few rows that they
touch. Everywhere else the storage type is the model's own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

SENTINEL_PAGE = 0
BITS = jnp.dtype(jnp.uint16)
SIDE_BY_SIDE_HEAD_DIM = 64
"""The head dim whose keys and values the TPU kernels want side by side."""


class PoolDims(NamedTuple):
    """What a layer's pool is made of; `side_by_side` says which of the two layouts it has."""

    num_pages: int
    num_kv_heads: int
    page_size: int
    head_dim: int
    side_by_side: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layer's array."""
        start = (self.num_pages, self.num_kv_heads)
        if self.side_by_side:
            return (*start, self.page_size, 2 * self.head_dim)
        return (*start, 2, self.page_size, self.head_dim)


def pool_dims(shape: tuple[int, ...]) -> PoolDims:
    """The sizes of a layer's pool of this shape, in either layout."""
    if len(shape) == 4:
        num_pages, num_kv_heads, page_size, width = shape
        return PoolDims(num_pages, num_kv_heads, page_size, width // 2, True)
    num_pages, num_kv_heads, _, page_size, head_dim = shape
    return PoolDims(num_pages, num_kv_heads, page_size, head_dim, False)


def split_kv(pages: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values, each `[n, K, page, H]`, of n pages of either layout."""
    if pages.ndim == 4:
        head_dim = pages.shape[3] // 2
        return pages[..., :head_dim], pages[..., head_dim:]
    return pages[:, :, 0], pages[:, :, 1]


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
    """Pages `page_ids int32[n]` of a pool as stored and laid out there, `[n, K, ...]`; safe inside a loop.

    The barrier keeps XLA:CPU from hoisting a conversion of a whole bfloat16 pool out of the loop.
    """
    barrier: Any = lax.optimization_barrier
    pool, ids = barrier((kv_pages, page_ids))
    taken: jax.Array = pool.at[ids].get(mode="promise_in_bounds")
    return taken
