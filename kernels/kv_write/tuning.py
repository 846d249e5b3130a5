"""Block sizes of the write, by what a step looks like.

What the schedules for v6e say of a bfloat16 pool with pages of 128 (bundles, libtpu 0.0.52, 2 and 8 kv heads): a group
of 2 rows takes 29 and 39, one of 8 rows 24 and 35; a span of 32 rows 29 and 52, of 64 rows 36 and 84, of 128 rows
52 and 148. Groups of 2 move a quarter of the bytes of groups of 8, but a segment's ends take four times as many. Longer
spans leave more rows at a segment's ends to groups: 64 is best up to some seven segments in 2,048 tokens.
"""

from typing import NamedTuple


class Blocks(NamedTuple):
    """How the kernel cuts a step's tokens and the pages.

    group_rows: rows of a page that are read, changed and written back where tokens fill only some of them. They hold
        whole 32-bit words: two rows of a 16-bit pool are the least.
    span_rows: rows of a page that are written by one copy, unread, where consecutive tokens fill all of them.
    batch_runs: groups that are read, changed and written together; three batches are in VMEM. A batch should take
        longer than a copy, some 500 bundles, or the next one waits.
    call_tokens: most tokens of one call of the kernel; their keys and values are in VMEM.
    """

    group_rows: int
    span_rows: int
    batch_runs: int
    call_tokens: int


FEW_TOKENS = 512
"""Up to here a step is mostly decode rows, each alone in its page."""
MAX_CALL_TOKENS = 4096
MAX_WORD_BYTES = 16 << 20
MAX_BATCH_BYTES = 2 << 20


def pick_blocks(num_tokens: int, page_size: int, itemsize: int, token_bytes: int) -> Blocks:
    """Blocks for a step of `num_tokens` tokens of `token_bytes` and pages of elements of `itemsize` bytes."""
    group_rows = 4 // itemsize if num_tokens <= FEW_TOKENS else 8
    span_rows = max(rows for rows in (16, 32, 64) if page_size % rows == 0)
    batch_runs = min(64, max(MAX_BATCH_BYTES // (group_rows * token_bytes), 8))
    return Blocks(group_rows, span_rows, batch_runs, min(MAX_CALL_TOKENS, MAX_WORD_BYTES // token_bytes))
