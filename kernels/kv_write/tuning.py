"""Block sizes of the write, by what a step looks like."""

from typing import NamedTuple


class Blocks(NamedTuple):
    """How the kernel cuts a step's tokens and the pages.

    group_rows: rows of a page that are read, changed and written back where tokens fill only some of them. They hold
        whole 32-bit words: two rows of a 16-bit pool are the least.
    span_rows: rows of a page that are written by one copy, unread, where consecutive tokens fill all of them.
    block_tokens: tokens whose keys and values are in VMEM at a time (twice, for the next block).
    reads_ahead: groups that are being read before their turn.
    writes_behind: groups whose writing has not been waited for.
    """

    group_rows: int
    span_rows: int
    block_tokens: int
    reads_ahead: int
    writes_behind: int


FEW_TOKENS = 512
"""Up to here a step is mostly decode rows, each alone in its page."""


def pick_blocks(num_tokens: int, page_size: int, itemsize: int) -> Blocks:
    """Blocks for a step of `num_tokens` tokens, a pool of `page_size` pages and elements of `itemsize` bytes."""
    least = 4 // itemsize
    block_tokens = min(512, -(-num_tokens // 8) * 8)
    span_rows = max(rows for rows in (16, 32, 64) if page_size % rows == 0)
    group_rows = least if num_tokens <= FEW_TOKENS else 8 * least
    return Blocks(group_rows, span_rows, block_tokens, reads_ahead=16, writes_behind=16)
