"""Changes one bit of gathered KV: by way of the host, so that nothing is compiled for it."""

from collections.abc import Callable
from typing import cast

import jax
import numpy as np

from runtime import compat
from runtime.engine import KvChunk


def corrupt(chunk: KvChunk, draw_below: Callable[[int], int]) -> KvChunk:
    """The chunk with one bit changed in its first page, which holds tokens whatever the bucket is padded with."""
    arrays = list(cast(tuple[jax.Array, ...], chunk))
    which = draw_below(len(arrays))
    values = np.array(arrays[which])
    raw = values.view(np.uint8)
    first = raw[:, 0]
    place = np.unravel_index(draw_below(first.size), first.shape)
    first[place] ^= 1 << draw_below(8)
    arrays[which] = jax.device_put(values, arrays[which].sharding)
    return cast(KvChunk, compat.block_until_ready(tuple(arrays)))
