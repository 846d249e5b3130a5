"""Writing keys and values in plain JAX: the contract, and what a CPU runs."""

import jax
import jax.numpy as jnp

from kernels.kv_pool import to_storage


def write_kv(kv_pages: jax.Array, k: jax.Array, v: jax.Array, slots: jax.Array) -> jax.Array:
    """See `kernels.kv_write.write_kv`."""
    page_size = kv_pages.shape[3]
    kv = to_storage(jnp.stack([k, v], axis=2), kv_pages.dtype)  # [T, K, 2, H]
    return kv_pages.at[slots // page_size, :, :, slots % page_size].set(kv, mode="promise_in_bounds")
