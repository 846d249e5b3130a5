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


TABLE: dict[PrefillKey, PrefillConfig] = {
    # deepseek-r1-distill-qwen-1.5b on 1, 2 and 4 devices
    PrefillKey(6, 2, 128, 2): PrefillConfig(256, 512, 2),
    PrefillKey(6, 1, 128, 2): PrefillConfig(512, 512, 1),
    PrefillKey(3, 1, 128, 2): PrefillConfig(512, 1024, 1),
    # qwen3-8b and llama-3.1-8b on 1, 2 and 4 devices
    PrefillKey(4, 8, 128, 2): PrefillConfig(512, 512, 2),
    PrefillKey(4, 4, 128, 2): PrefillConfig(512, 512, 2),
    PrefillKey(4, 2, 128, 2): PrefillConfig(512, 512, 2),
    # qwen3-32b on 1, 2 and 4 devices
    PrefillKey(8, 8, 128, 2): PrefillConfig(256, 512, 2),
    PrefillKey(8, 4, 128, 2): PrefillConfig(256, 512, 2),
    PrefillKey(8, 2, 128, 2): PrefillConfig(256, 512, 2),
}
"""The models of `kernels.shapes`. Winners for v6e among query_tokens {128..1024}, key_tokens {256, 512, 1024} and
kv_heads {1, 2} by estimated time of 2,048 new tokens at contexts of 2,048 and 8,192, page 128.

Large blocks keep the matrix unit busy: a trip of the unmasked loop has about 300 bundles of filling and draining,
whatever its size. Against them speak the diagonal, half of which is wasted, and the last block of a sequence, which
costs as much as a full one. Blocks that divide a chunk of 2 ** n tokens beat those that do not.
"""

QUERY_TOKEN_MULTIPLE = 16
MAX_QUERY_TOKENS = 512
ROWS_OF_A_TRIP = 4096
MIN_KEY_TOKENS = 128
KEY_TOKENS = 512


def heuristic(key: PrefillKey) -> PrefillConfig:
    """Up to 4,096 rows in all (fewer where a row is longer than 256 bytes) by 512 keys; 1,024 for half the rows."""
    kv_heads = 2 if key.num_kv_heads % 2 == 0 else 1
    max_rows = ROWS_OF_A_TRIP // max(key.head_dim * key.element_bytes // 256, 1)
    query_tokens = QUERY_TOKEN_MULTIPLE
    while query_tokens < MAX_QUERY_TOKENS and 2 * query_tokens * key.group * kv_heads <= max_rows:
        query_tokens *= 2
    is_small = 2 * query_tokens * key.group * kv_heads <= max_rows
    return PrefillConfig(query_tokens, KEY_TOKENS * (2 if is_small else 1), kv_heads)


def choose(key: PrefillKey, num_tokens: int, page_size: int, num_columns: int) -> PrefillConfig:
    """The config for a call with `num_tokens` flat tokens and page tables of `num_columns` pages of `page_size` tokens.

    Blocks are no larger than the call needs.
    """
    config = TABLE.get(key) or heuristic(key)
    num_pieces = -(-num_tokens // QUERY_TOKEN_MULTIPLE)
    longest = 1 << (num_columns * page_size - 1).bit_length()
    return config._replace(
        query_tokens=min(config.query_tokens, num_pieces * QUERY_TOKEN_MULTIPLE),
        key_tokens=max(min(config.key_tokens, longest), page_size, MIN_KEY_TOKENS),
    )
