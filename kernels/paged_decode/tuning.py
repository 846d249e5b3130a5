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
        Key(12, 2, 128, 128, "bfloat16"): DecodeConfig(pages_per_block=8),  # 0.49 0.41, with 16 pages 0.77 0.35
        Key(12, 2, 128, 64, "bfloat16"): DecodeConfig(pages_per_block=16),  # 0.53 0.44
        Key(12, 2, 128, 16, "bfloat16"): DecodeConfig(pages_per_block=64),  # 0.76 0.67: starting the copies
        Key(16, 2, 128, 128, "bfloat16"): DecodeConfig(pages_per_block=8),  # 0.50 0.42
        Key(32, 8, 128, 128, "bfloat16"): DecodeConfig(pages_per_block=8),  # 0.31 0.29, with 4 pages 0.40 0.38
        Key(16, 8, 256, 128, "bfloat16"): DecodeConfig(pages_per_block=4),  # 0.36 0.34, with 8 pages spills
    }
)
"""Behind each entry: issue time over memory time at contexts of 1,024 and 8,192 tokens on v6e, estimates of libtpu
0.0.52's compiler. Below 1 the memory is what a step waits for."""


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
