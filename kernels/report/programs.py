"""How the loops of the project's attention kernels are to be read, by their configs.

`paged_decode`: a grid of steps of `rows_per_step` sequences, a loop over these, a loop over blocks of pages.
`chunked_prefill`: a loop over query blocks (passes over the kv heads one after the other), in it a loop over masked
blocks of keys, each in steps, and one over unmasked blocks; beside them loops that lay out queries and results.
`kv_write`: a loop over spans of pages that are filled whole, and one over batches of groups of rows that are not; a
full batch is read and changed in loops that are unrolled.
`gather_pages`, `scatter_pages`: a loop over pages that starts the copies of all layers.
"""

from collections.abc import Iterator

from kernels.chunked_prefill.tpu import KEY_STEP, piece_tokens
from kernels.chunked_prefill.tuning import PrefillConfig, PrefillKey
from kernels.chunked_prefill.tuning import choose as choose_prefill
from kernels.compile.cases import (
    CHUNK_TOKENS,
    CONTEXT_TOKENS,
    DECODE_BATCH,
    Case,
    Shape,
    gather_case,
    scatter_case,
    write_case,
)
from kernels.kv_write.tpu import UNROLL
from kernels.kv_write.tuning import Blocks, pick_blocks
from kernels.paged_decode.tuning import choose_config as choose_decode
from kernels.report.figures import DecodeProgram, PrefillProgram, PrefillWork, ceil_div
from kernels.report.moves import MoveProgram
from kernels.shapes import MODELS

MOVE_PAGE_SIZES = (16, 128)


def decode_program(shape: Shape) -> DecodeProgram:
    """How to read the decode kernel's schedule at the config that it takes itself."""
    heads = shape.heads
    config = choose_decode(shape.pool, heads.num_heads, shape.dtype, CONTEXT_TOKENS // shape.page_size)
    return DecodeProgram(
        kernel="paged_decode",
        heads=f"{heads.num_heads}/{heads.num_kv_heads}",
        page_size=shape.page_size,
        config=f"{config.pages_per_block}p",
        block_pages=config.pages_per_block,
        page_bytes=shape.page_bytes,
        rows_per_trip=config.rows_per_step,
    )


def prefill_program(shape: Shape) -> PrefillProgram:
    """How to read the prefill kernel's schedule at the config that it takes itself."""
    heads, config = shape.heads, prefill_config(shape)
    num_parts = heads.num_kv_heads // config.kv_heads
    block_pages = config.key_tokens // shape.page_size

    def work(context: int) -> PrefillWork:
        return prefill_work(config, num_parts, context)

    return PrefillProgram(
        kernel="chunked_prefill",
        heads=f"{heads.num_heads}/{heads.num_kv_heads}",
        page_size=shape.page_size,
        config=f"{config.query_tokens}q x {block_pages}p x {config.kv_heads}h",
        block_pages=block_pages,
        block_bytes=block_pages * shape.page_bytes // num_parts,
        scores=config.query_tokens * heads.group * config.kv_heads * config.key_tokens,
        head_dim=heads.head_dim,
        masks_apart=True,
        work=work,
        pieces=config.query_tokens // piece_tokens(config.query_tokens, heads.group),
    )


def prefill_config(shape: Shape) -> PrefillConfig:
    """The config that the prefill kernel takes for a chunk of `CHUNK_TOKENS`."""
    heads = shape.heads
    key = PrefillKey(heads.group, heads.num_kv_heads, heads.head_dim, shape.itemsize)
    return choose_prefill(key, CHUNK_TOKENS, shape.page_size, CONTEXT_TOKENS // shape.page_size)


def prefill_work(config: PrefillConfig, num_parts: int, context: int, num_tokens: int = CHUNK_TOKENS) -> PrefillWork:
    """Trips for a chunk that ends a context: blocks before a query block need no mask, later ones up to its end do."""
    query_blocks = unmasked = masked = steps = 0
    key_step = min(KEY_STEP, config.key_tokens)
    for first in range(context - num_tokens, context, config.query_tokens):
        stop = min(first + config.query_tokens, context)
        full = first // config.key_tokens
        query_blocks += 1
        unmasked += full
        masked += ceil_div(stop, config.key_tokens) - full
        steps += ceil_div(stop - full * config.key_tokens, key_step)
    return PrefillWork(query_blocks * num_parts, unmasked * num_parts, masked * num_parts, steps * num_parts)


def move_programs() -> Iterator[tuple[MoveProgram, Case]]:
    """The kernels that move, at the heads of the smallest named model."""
    for page_size in MOVE_PAGE_SIZES:
        yield from moves_of(Shape("", MODELS["deepseek-r1-distill-qwen-1.5b"], page_size))


def moves_of(shape: Shape) -> Iterator[tuple[MoveProgram, Case]]:
    """The kernels that move: the write of tokens apart and of tokens in a row, gather and scatter."""
    yield _decode_write(shape)
    yield _prefill_write(shape)
    for case in (gather_case(shape), scatter_case(shape)):
        num_pages = CHUNK_TOKENS // shape.page_size
        moved_bytes = 2 * shape.page_bytes * shape.heads.num_layers
        yield MoveProgram(case.op, case.shape, "page, all layers", num_pages, 1, moved_bytes, "outermost"), case


def _decode_write(shape: Shape) -> tuple[MoveProgram, Case]:
    """Tokens that lie apart: for each the rows that share its 32-bit words are read, changed and written."""
    case, blocks, row_bytes = _write(shape, DECODE_BATCH)
    moved_bytes = 2 * blocks.group_rows * row_bytes
    return MoveProgram(
        case.op, case.shape, "token apart", DECODE_BATCH, blocks.batch_runs, moved_bytes, "batches", UNROLL
    ), case


def _prefill_write(shape: Shape) -> tuple[MoveProgram, Case]:
    """Tokens in a row: a trip writes a whole span of a page."""
    case, blocks, row_bytes = _write(shape, CHUNK_TOKENS)
    return MoveProgram(
        case.op, case.shape, "token in a row", CHUNK_TOKENS, blocks.span_rows, 2 * row_bytes, "only child"
    ), case


def _write(shape: Shape, num_tokens: int) -> tuple[Case, Blocks, int]:
    """A write, its blocks, and bytes of a token's key and value."""
    row_bytes = shape.page_bytes // shape.page_size
    return write_case(shape, num_tokens), pick_blocks(num_tokens, shape.page_size, shape.itemsize, row_bytes), row_bytes
