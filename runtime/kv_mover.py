"""Moving gathered KV between slices of one process: device to device, never through the host.

In a request's life: after a prefill chunk's pages are gathered and before the decode slice inserts them. The transfer
actor calls it from threads of its own, so the slices' threads never wait for a copy.

It must not donate: `jax.device_put(donate=True)` across meshes crashes on the next touch of the source. Slices of
unequal width need another mover: between those `device_put` silently goes through host memory.
"""

from collections.abc import Mapping
from typing import cast

import jax
from jax.sharding import NamedSharding

from runtime.engine import KvChunk


class DevicePutMover:
    """`KvMover` between slices of equal width. Thread safe."""

    def __init__(self, shardings: Mapping[str, NamedSharding]) -> None:
        """`shardings` are each slice's `placement.chunk`. Raises ValueError for slices of unequal width."""
        widths = {name: sharding.num_devices for name, sharding in shardings.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"slices must have equally many devices, got {widths}")
        self._shardings = dict(shardings)

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        """The chunk on slice `target`, after the copy is done. The source chunk is left alone.

        Raises what the device raised if the chunk's gather or the copy failed.
        """
        moved = jax.device_put(cast(jax.Array, chunk), self._shardings[target])
        return cast(KvChunk, moved.block_until_ready())
