"""Moving gathered KV between slices of one process: device to device, never through the host.

In a request's life: after a prefill chunk's pages are gathered and before the decode slice inserts them. The transfer
actor calls it from threads of its own, so the slices' threads never wait for a copy.

It must not donate: `jax.device_put(donate=True)` across meshes crashes on the next touch of the source. Between slices
of unequal TP `device_put` of a whole array silently goes through host memory; there single shards are copied, each to
the device that holds its heads, and put together under the target's sharding (`runtime.kv_reshard`).
"""

import functools
from collections.abc import Mapping
from typing import cast

import jax
from jax.sharding import NamedSharding

from runtime import compat
from runtime.engine import KvChunk
from runtime.kv_heads import KvHeads
from runtime.kv_reshard import ReshardPlan, fragment_heads, plan_reshard


class DevicePutMover:
    """`KvMover` between slices. Thread safe."""

    def __init__(self, shardings: Mapping[str, NamedSharding], num_kv_heads: int | None = None) -> None:
        """`shardings` are each slice's `placement.chunk`; `num_kv_heads` is the model's, not needed for equal TP.

        The engines must have been made with `chunk_heads_of` the same widths. Raises ValueError for unequal TP without
        the number of heads.
        """
        widths = {name: sharding.num_devices for name, sharding in shardings.items()}
        if num_kv_heads is None and len(set(widths.values())) > 1:
            raise ValueError(f"slices must have equally many devices, got {widths}; or say num_kv_heads")
        self._shardings = dict(shardings)
        self._num_kv_heads = num_kv_heads
        self._widths = frozenset(widths.values())

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        """The chunk on slice `target`, after the copy is done. The source chunk is left alone.

        Raises what the device raised if the chunk's gather or the copy failed.
        """
        arrays, sharding = cast(tuple[jax.Array, ...], chunk), self._shardings[target]
        num_sources = len(arrays[0].sharding.device_set)
        if num_sources == sharding.num_devices:
            moved = jax.device_put(arrays, sharding)
        else:
            assert self._num_kv_heads is not None
            moved = _copy(arrays, sharding, _plan(self._num_kv_heads, num_sources, sharding.num_devices, self._widths))
        return cast(KvChunk, compat.block_until_ready(moved))


def chunk_heads_of(num_kv_heads: int, widths: frozenset[int]) -> int:
    """Heads that travel together when slices of these TPs exchange chunks; each engine needs to know."""
    return fragment_heads(KvHeads(num_kv_heads, tp) for tp in widths)


@functools.cache
def _plan(num_kv_heads: int, source: int, target: int, widths: frozenset[int]) -> ReshardPlan:
    heads = chunk_heads_of(num_kv_heads, widths)
    return plan_reshard(KvHeads(num_kv_heads, source), KvHeads(num_kv_heads, target), heads)


def _copy(arrays: tuple[jax.Array, ...], sharding: NamedSharding, plan: ReshardPlan) -> tuple[jax.Array, ...]:
    """The chunk's shards as the plan places them, one array per fragment of the target; returns before they arrived."""
    shards = [_by_device(array) for array in arrays]
    devices = list(sharding.mesh.devices.flat)
    num_layers, num_pages, num_heads, *rest = shards[0][0].shape
    shape = (num_layers, num_pages, num_heads * len(devices), *rest)
    moved = []
    for row in plan.sources:
        parts = [shards[source.fragment][source.device] for source in row]
        copies = [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)]
        moved.append(jax.make_array_from_single_device_arrays(shape, sharding, copies))
    return tuple(moved)


def _by_device(array: jax.Array) -> list[jax.Array]:
    """An array's shards in the order of the heads that they hold, which is that of the slice's devices."""
    return [shard.data for shard in sorted(array.addressable_shards, key=lambda shard: shard.index[2].start or 0)]
