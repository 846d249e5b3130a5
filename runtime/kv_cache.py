"""The paged KV pool: its shape, what a page costs, and how many pages a device can have. Pure functions.

The pool is a list of L arrays `[num_pages, K, 2, page_size, H]`, K before V in the axis of two, or side by side where
the TPU kernels want it so, in the storage type that `kernels.kv_pool` names for the model's dtype and the platform.
On a slice of several devices it is split over the heads, which are repeated where there are more devices than heads.
Page 0 is the sentinel. Which page belongs to whom is decided elsewhere, on the host.
"""

import jax
import jax.numpy as jnp
import msgspec

from kernels.kv_pool import SIDE_BY_SIDE_HEAD_DIM, PoolDims, storage_dtype
from runtime.errors import UsageError
from runtime.kv_heads import KvHeads
from runtime.model_config import ModelConfig

DEFAULT_MEM_FRACTION = 0.88
"""Of an accelerator's memory, for weights and pool together."""

CPU_POOL_BYTES = 1 << 30
"""Most that a pool takes by default where the memory is the host's and shared by all slices."""

CPU_TOKENS_PER_ROW = 4096
"""Tokens that each row gets by default on a CPU, if the context is that long and the bytes suffice."""

SMALLEST_POOL_PAGES = 2
"""The sentinel and one page."""


class PoolShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of one slice's pool, over all its devices; `dtype` is the name of the storage type.

    `side_by_side` is the layout of `kernels.kv_pool`.
    """

    num_layers: int
    num_kv_heads: int
    page_size: int
    head_dim: int
    dtype: str
    side_by_side: bool = False

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        values = self.num_layers * self.num_kv_heads * 2 * self.page_size * self.head_dim
        return values * jnp.dtype(self.dtype).itemsize

    def layer(self, num_pages: int) -> tuple[int, ...]:
        """Shape of one layer's array."""
        return PoolDims(num_pages, self.num_kv_heads, self.page_size, self.head_dim, self.side_by_side).shape

    def chunk(self, num_pages: int, fragments: int = 1) -> tuple[int, ...]:
        """Shape of that many gathered pages of all layers, in one of `fragments` equal parts of each device's heads."""
        pages, num_heads, *rest = self.layer(num_pages)
        return (self.num_layers, pages, num_heads // fragments, *rest)


def pool_shape(model: ModelConfig, page_size: int, platform: str, tp: int = 1, *, kernels: bool = False) -> PoolShape:
    """The pool of a model on a slice of `tp` devices of a platform ("cpu", "tpu", "gpu").

    With `kernels` it is what the Pallas kernels take, interpreted ones on a CPU as well.
    """
    return PoolShape(
        num_layers=model.num_layers,
        num_kv_heads=KvHeads(model.num_kv_heads, tp).pool_heads,
        page_size=page_size,
        head_dim=model.head_dim,
        dtype=storage_dtype(model.dtype, "tpu" if kernels else platform).name,
        side_by_side=kernels and model.head_dim == SIDE_BY_SIDE_HEAD_DIM,
    )


def empty_pool(shape: PoolShape, num_pages: int) -> list[jax.Array]:
    """A pool of zeros, one array per layer. Zeros and not garbage: attention multiplies dead values by 0."""
    return [jnp.zeros(shape.layer(num_pages), shape.dtype) for _ in range(shape.num_layers)]


def pages_that_fit(
    shape: PoolShape,
    device: jax.Device,
    *,
    num_rows: int,
    max_context_tokens: int,
    mem_fraction: float = DEFAULT_MEM_FRACTION,
    max_pool_bytes: int | None = None,
    num_devices: int = 1,
) -> int:
    """Pages of a pool on `device`, which holds the weights already; the sentinel is counted.

    `device` is one of the slice's `num_devices`, which hold equal parts of the pool and of everything else. Never more
    than what `num_rows` sequences of full context can fill, nor more than `max_pool_bytes`. A device that does not tell
    its memory is taken for a CPU. Raises UsageError if not even one page fits.
    """
    if not 0.0 < mem_fraction < 1.0:
        raise UsageError(f"--mem-fraction-static {mem_fraction}: must lie between 0 and 1")
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats is None or "bytes_limit" not in stats:
        budget = CPU_POOL_BYTES if max_pool_bytes is None else max_pool_bytes
        return cpu_pages(shape, num_rows=num_rows, max_context_tokens=max_context_tokens, pool_bytes=budget)
    free = int(stats["bytes_limit"] * mem_fraction) - stats.get("bytes_in_use", 0)
    most = free * num_devices
    pages = accelerator_pages(
        shape,
        num_rows=num_rows,
        max_context_tokens=max_context_tokens,
        pool_bytes=min(most, most if max_pool_bytes is None else max_pool_bytes),
    )
    if pages < SMALLEST_POOL_PAGES:
        raise UsageError(
            f"--mem-fraction-static {mem_fraction}: leaves {max(free, 0) >> 20} MiB for KV on {device}, "
            f"where two pages of --page-size {shape.page_size} take {2 * shape.page_bytes // num_devices >> 10} KiB"
        )
    return pages


def accelerator_pages(shape: PoolShape, *, num_rows: int, max_context_tokens: int, pool_bytes: int) -> int:
    """Pages that `pool_bytes` over all devices of a slice hold, but no more than the rows can ever fill.

    The sentinel is counted. Below `SMALLEST_POOL_PAGES` there is no room for a pool.
    """
    return min(num_rows * -(-max_context_tokens // shape.page_size) + 1, pool_bytes // shape.page_bytes)


def cpu_pages(shape: PoolShape, *, num_rows: int, max_context_tokens: int, pool_bytes: int) -> int:
    """Default pages on a CPU: each row its context up to `CPU_TOKENS_PER_ROW`, all within `pool_bytes`.

    One sequence of that length always fits, whatever it takes. The sentinel is counted.
    """
    per_row = -(-min(max_context_tokens, CPU_TOKENS_PER_ROW) // shape.page_size)
    budget = pool_bytes // shape.page_bytes
    return max(min(num_rows * per_row, budget), per_row) + 1
