"""Writing keys and values in plain JAX: the contract, and what a CPU runs."""

import jax
import jax.numpy as jnp

from kernels.kv_pool import pool_dims, to_storage


def write_kv(kv_pages: jax.Array, k: jax.Array, v: jax.Array, slots: jax.Array) -> jax.Array:
    """See `kernels.kv_write.write_kv`."""
    pool = pool_dims(kv_pages.shape)
    page, offset = slots // pool.page_size, slots % pool.page_size
    if pool.side_by_side:
        kv = to_storage(jnp.concatenate([k, v], axis=2), kv_pages.dtype)  # [T, K, 2H]
        return kv_pages.at[page, :, offset].set(kv, mode="promise_in_bounds")
    kv = to_storage(jnp.stack([k, v], axis=2), kv_pages.dtype)  # [T, K, 2, H]
    return kv_pages.at[page, :, :, offset].set(kv, mode="promise_in_bounds")
