"""Checksums of gathered KV: a number for each page and each kv head, whatever devices the heads lie on.

In a request's life: taken of a chunk on the prefill slice and again where it has arrived, with `--verify-kv`. The sum
is of the stored bits as unsigned integers, each times an odd factor that its place gives it, modulo 2^32. An odd factor
lets no changed bit cancel out; factors that differ by place notice values that have changed places. What lies on a
device is summed there: a head is never split, so nothing crosses between devices.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from runtime import compat
from runtime.kv_heads import KvHeads
from runtime.placement import CHUNK_SPEC, POOL_SPEC, Placement

DIFFERENT_COPIES = -1
"""In the place of the checksum of a head whose copies on several devices differ: no checksum equals it."""


def checksum_program(placement: Placement) -> Callable[..., tuple[jax.Array, ...]]:
    """Arrays of a chunk, `[L, n, K, ...]` each -> uint32[n, K] each."""

    def checksums(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(_of_array(array) for array in chunk)

    if placement.shared_mesh is None:
        return checksums
    return compat.over_shards(checksums, placement.mesh, (CHUNK_SPEC,), POOL_SPEC)


def _of_array(array: jax.Array) -> jax.Array:
    """Sums over layers and over what is inside a page's head, in whatever layout the slices have agreed on."""
    layers, _, _, *inner = array.shape
    places = jnp.arange(int(np.prod([layers, *inner])), dtype=jnp.uint32).reshape(layers, 1, 1, *inner)
    axes = (0, *range(3, array.ndim))
    return jnp.sum(_bits(array) * (2 * places + 1), axis=axes, dtype=jnp.uint32)


def _bits(array: jax.Array) -> jax.Array:
    """The stored bits; a bfloat16 pool on a CPU holds them as they are."""
    if not jnp.issubdtype(array.dtype, jnp.unsignedinteger):
        array = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
    return array.astype(jnp.uint32)


def by_model_head(sums: Sequence[np.ndarray], heads: KvHeads) -> tuple[int, ...]:
    """One number per page and kv head of the model, page by page, from `uint32[n, K]` of each array of a chunk.

    Array f holds the f-th of equal parts of every device's heads (`runtime.kv_reshard`).
    """
    per_device = [part.reshape(len(part), heads.tp, -1) for part in sums]
    held = np.concatenate(per_device, axis=2).astype(np.int64)
    whole = np.full((len(held), heads.num_heads), DIFFERENT_COPIES)
    for device in range(heads.tp):
        first = heads.first_on(device)
        place = whole[:, first : first + heads.local]
        if device % heads.replicas:
            place[place != held[:, device]] = DIFFERENT_COPIES
        else:
            place[:] = held[:, device]
    return tuple(whole.ravel().tolist())
