"""Gathering and scattering pages in plain JAX: the contract, and what a CPU runs."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def gather_pages(pools: Sequence[jax.Array], page_ids: jax.Array) -> jax.Array:
    """See `kernels.kv_pack.gather_pages`."""
    return jnp.stack([pool.at[page_ids].get(mode="promise_in_bounds") for pool in pools])


def scatter_pages(
    pools: Sequence[jax.Array], chunk: jax.Array, source: jax.Array, page_ids: jax.Array
) -> list[jax.Array]:
    """See `kernels.kv_pack.scatter_pages`."""
    return [
        pool.at[page_ids].set(chunk[layer].at[source].get(mode="promise_in_bounds"), mode="promise_in_bounds")
        for layer, pool in enumerate(pools)
    ]
