"""Block sizes of the decode kernel: a table of documented shapes, and a rule for every other shape."""

from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from kernels.kv_pool import PoolDims

MAX_PAGES_PER_BLOCK = 128
BLOCK_TOKENS = 1024
MAX_BLOCK_BYTES = 8 << 20


class DecodeConfig(NamedTuple):
    """How the kernel cuts its work.

    pages_per_block: pages that one trip of the inner loop attends to; a power of two up to 128. More pages hide the
        softmax better behind the products, fewer waste less in the last block of a context.
    rows_per_step: sequences whose queries and results are in VMEM at a time.
    """

    pages_per_block: int
    rows_per_step: int = 32


class Key(NamedTuple):
    """What a documented shape is looked up by."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: str


TABLE = MappingProxyType(
    {
        Key(12, 2, 128, 128, "bfloat16"): DecodeConfig(pages_per_block=8),
        Key(32, 8, 128, 128, "bfloat16"): DecodeConfig(pages_per_block=8),
        Key(16, 2, 128, 128, "bfloat16"): DecodeConfig(pages_per_block=8),
    }
)


def page_bytes(pool: PoolDims, dtype: DTypeLike) -> int:
    """Keys and values of one page, all heads."""
    return 2 * pool.num_kv_heads * pool.page_size * pool.head_dim * jnp.dtype(dtype).itemsize


def choose_config(pool: PoolDims, num_heads: int, dtype: DTypeLike, table_width: int) -> DecodeConfig:
    """The table's entry, or blocks of about 1,024 tokens; never more pages than a context can have."""
    key = Key(num_heads, pool.num_kv_heads, pool.head_dim, pool.page_size, jnp.dtype(dtype).name)
    config = TABLE.get(key)
    if config is None:
        fitting = min(BLOCK_TOKENS // pool.page_size, MAX_BLOCK_BYTES // page_bytes(pool, dtype), MAX_PAGES_PER_BLOCK)
        config = DecodeConfig(1 << max(fitting, 1).bit_length() - 1)
    widest = 1 << (table_width - 1).bit_length()
    return config._replace(pages_per_block=min(config.pages_per_block, widest))
