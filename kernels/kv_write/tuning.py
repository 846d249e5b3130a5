"""Block sizes of the write, by what a step looks like."""

from typing import NamedTuple


class Blocks(NamedTuple):
    """How the kernel cuts a step's tokens and the pages.

    group_rows: rows of a page that are read, changed and written back where tokens fill only some of them. They hold
        whole 32-bit words: two rows of a 16-bit pool are the least.
    span_rows: rows of a page that are written by one copy, unread, where consecutive tokens fill all of them.
    batch_runs: groups that are read, changed and written together; three batches are in VMEM.
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


def pick_blocks(num_tokens: int, page_size: int, itemsize: int, token_bytes: int) -> Blocks:
    """Blocks for a step of `num_tokens` tokens of `token_bytes` and pages of elements of `itemsize` bytes."""
    least = 4 // itemsize
    span_rows = max(rows for rows in (16, 32, 64) if page_size % rows == 0)
    call_tokens = min(MAX_CALL_TOKENS, MAX_WORD_BYTES // token_bytes)
    if num_tokens <= FEW_TOKENS:
        return Blocks(least, span_rows, batch_runs=64, call_tokens=call_tokens)
    return Blocks(8 * least, span_rows, batch_runs=16, call_tokens=call_tokens)
