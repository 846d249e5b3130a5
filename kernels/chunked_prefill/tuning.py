"""Block sizes of the chunked prefill kernel: a frozen table for documented shapes, a heuristic for all others.

The figures behind the table are the compiler's (`python -m kernels.report`), not measurements.
"""

from typing import NamedTuple


class PrefillConfig(NamedTuple):
    """How the kernel cuts its work; every number is static.

    query_tokens: new tokens of one query block; a multiple of 16. With G query heads per kv head a block has
        `query_tokens * G` rows of scores for each kv head.
    key_tokens: keys of one block, which is the unit of DMA and of the walk over the context; a power of two of at
        least 128 and of the page size.
    kv_heads: kv heads that share a pass over the context and one trip of the loop; divides the kv heads.
    """

    query_tokens: int
    key_tokens: int
    kv_heads: int


class PrefillKey(NamedTuple):
    """What the table is keyed by: G query heads per kv head, kv heads of one device, head dim, bytes of an element."""

    group: int
    num_kv_heads: int
    head_dim: int
    element_bytes: int


TABLE: dict[PrefillKey, PrefillConfig] = {}
"""Filled with the winners of a sweep over the models of `kernels.shapes`, at 2,048 tokens and page 128."""

QUERY_TOKEN_MULTIPLE = 16
MAX_ROWS = 1536
MIN_KEY_TOKENS = 128
KEY_TOKENS_OF_A_TRIP = 1024


def heuristic(key: PrefillKey) -> PrefillConfig:
    """About 1,536 rows per kv head and 1,024 keys per trip, spread over two kv heads where there are two."""
    query_tokens = max(MAX_ROWS // key.group // QUERY_TOKEN_MULTIPLE, 1) * QUERY_TOKEN_MULTIPLE
    shrink = max(key.head_dim * key.element_bytes // 256, 1)
    query_tokens = max(query_tokens // shrink // QUERY_TOKEN_MULTIPLE, 1) * QUERY_TOKEN_MULTIPLE
    kv_heads = 2 if key.num_kv_heads % 2 == 0 else 1
    return PrefillConfig(query_tokens, KEY_TOKENS_OF_A_TRIP // kv_heads, kv_heads)


def choose(key: PrefillKey, num_tokens: int, page_size: int) -> PrefillConfig:
    """The config for a call with `num_tokens` flat tokens over pages of `page_size` tokens."""
    config = TABLE.get(key) or heuristic(key)
    needed = -(-num_tokens // QUERY_TOKEN_MULTIPLE) * QUERY_TOKEN_MULTIPLE
    return config._replace(
        query_tokens=min(config.query_tokens, needed), key_tokens=max(config.key_tokens, page_size, MIN_KEY_TOKENS)
    )
