"""jax's own kernel, `jax.experimental.pallas.ops.tpu.ragged_paged_attention`, over a sweep of its block sizes.

Its pool is token-major, `[P, page, 2K, H]`, and one kernel does prefill and decode: the outer loop goes over blocks of
queries, the next over the sequences of such a block, the inner one over blocks of pages. It masks every block, and a
block of queries looks at its sequence's whole context.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

from kernels.compile.cases import Case, Shape, struct
from kernels.report.figures import CHUNK_TOKENS, DecodeProgram, PrefillProgram, PrefillWork, ceil_div
from kernels.shapes import Heads

KERNEL = "ragged_paged_attention_kernel"
NAME = "jax"
DECODE_QUERIES = (1, 8)
DECODE_PAGES = (4, 8, 16, 32)
PREFILL_QUERIES = (32, 64, 128)
PREFILL_PAGES = (8, 16, 32)

NUM_PAGES = 1024
DECODE_SEQUENCES = 64
PREFILL_SEQUENCES = 16
CONTEXT_TOKENS = 8192
"""Its page table lies in SMEM whole: larger ones do not fit. The loops do not depend on it."""


class Blocks(NamedTuple):
    """Block sizes of jax's kernel."""

    queries: int
    pages: int

    def __str__(self) -> str:
        return f"{self.queries}q x {self.pages}p"


def decode_sweep() -> Iterator[Blocks]:
    """The block sizes tried for decode."""
    return (Blocks(queries, pages) for queries in DECODE_QUERIES for pages in DECODE_PAGES)


def prefill_sweep() -> Iterator[Blocks]:
    """The block sizes tried for prefill."""
    return (Blocks(queries, pages) for queries in PREFILL_QUERIES for pages in PREFILL_PAGES)


def decode_program(heads: Heads, page_size: int, blocks: Blocks) -> DecodeProgram:
    """How to read its schedule for decode."""
    return DecodeProgram(
        kernel=NAME,
        heads=f"{heads.num_heads}/{heads.num_kv_heads}",
        page_size=page_size,
        config=str(blocks),
        block_pages=blocks.pages,
        page_bytes=_page_bytes(heads, page_size),
        rows_per_trip=blocks.queries,
    )


def prefill_program(heads: Heads, page_size: int, blocks: Blocks) -> PrefillProgram:
    """How to read its schedule for prefill."""
    block_tokens = blocks.pages * page_size

    def work(context: int) -> PrefillWork:
        query_blocks = CHUNK_TOKENS // blocks.queries
        return PrefillWork(query_blocks, query_blocks * ceil_div(context, block_tokens))

    return PrefillProgram(
        kernel=NAME,
        heads=f"{heads.num_heads}/{heads.num_kv_heads}",
        page_size=page_size,
        config=str(blocks),
        block_pages=blocks.pages,
        block_bytes=blocks.pages * _page_bytes(heads, page_size),
        scores=blocks.queries * heads.num_heads * block_tokens,
        head_dim=heads.head_dim,
        masks_apart=False,
        work=work,
    )


def _page_bytes(heads: Heads, page_size: int) -> int:
    return Shape("", heads, page_size).page_bytes


def decode_case(heads: Heads, page_size: int, blocks: Blocks, vmem_bytes: int) -> Case:
    """The kernel with these blocks for a decode step."""
    return _case(heads, page_size, blocks, vmem_bytes, DECODE_SEQUENCES, DECODE_SEQUENCES)


def prefill_case(heads: Heads, page_size: int, blocks: Blocks, vmem_bytes: int) -> Case:
    """The kernel with these blocks for a chunk."""
    return _case(heads, page_size, blocks, vmem_bytes, CHUNK_TOKENS, PREFILL_SEQUENCES)


def _case(heads: Heads, page_size: int, blocks: Blocks, vmem_bytes: int, num_tokens: int, num_sequences: int) -> Case:
    function = functools.partial(
        ragged_paged_attention,
        sm_scale=heads.head_dim**-0.5,
        num_queries_per_block=blocks.queries,
        num_kv_pages_per_block=blocks.pages,
        vmem_limit_bytes=vmem_bytes * 9 // 10,
    )
    args = (
        struct(num_tokens, heads.num_heads, heads.head_dim, dtype="bfloat16"),
        struct(NUM_PAGES, page_size, 2 * heads.num_kv_heads, heads.head_dim, dtype="bfloat16"),
        struct(num_sequences),
        struct(num_sequences, CONTEXT_TOKENS // page_size),
        struct(num_sequences + 1),
        struct(1),
    )
    return Case(NAME, str(Shape("", heads, page_size)), "", function, args, (), 0, "nothing")
