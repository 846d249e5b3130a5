"""How the loops of the project's attention kernels are to be read, by their configs.

`paged_decode`: a grid of steps of `rows_per_step` sequences, a loop over these, a loop over blocks of pages.
`chunked_prefill`: a loop over query blocks (passes over the kv heads one after the other), in it a loop over masked
blocks of keys, each in steps, and one over unmasked blocks.
"""

from collections.abc import Iterator

from kernels.chunked_prefill.tpu import KEY_STEP
from kernels.chunked_prefill.tuning import PrefillConfig, PrefillKey
from kernels.chunked_prefill.tuning import choose as choose_prefill
from kernels.compile.cases import CHUNK_TOKENS, CONTEXT_TOKENS, Case, Shape, gather_case, scatter_case
from kernels.paged_decode.tuning import choose_config as choose_decode
from kernels.report.figures import DecodeProgram, PrefillProgram, PrefillWork, ceil_div
from kernels.report.moves import MoveProgram
from kernels.shapes import MODELS


def decode_program(shape: Shape) -> DecodeProgram:
    """How to read the decode kernel's schedule at the config that it takes itself."""
    heads = shape.heads
    config = choose_decode(shape.pool, heads.num_heads, shape.dtype, CONTEXT_TOKENS // shape.page_size)
    return DecodeProgram(
        kernel="paged_decode",
        heads=f"{heads.num_heads}/{heads.num_kv_heads}",
        page_size=shape.page_size,
        config=f"{config.pages_per_block} pages",
        block_pages=config.pages_per_block,
        page_bytes=shape.page_bytes,
        rows_per_trip=config.rows_per_step,
    )


def prefill_program(shape: Shape) -> PrefillProgram:
    """How to read the prefill kernel's schedule at the config that it takes itself."""
    heads = shape.heads
    config = choose_prefill(
        PrefillKey(heads.group, heads.num_kv_heads, heads.head_dim, shape.itemsize), CHUNK_TOKENS, shape.page_size
    )
    num_parts = heads.num_kv_heads // config.kv_heads
    block_pages = config.key_tokens // shape.page_size

    def work(context: int) -> PrefillWork:
        return prefill_work(config, num_parts, context)

    return PrefillProgram(
        kernel="chunked_prefill",
        heads=f"{heads.num_heads}/{heads.num_kv_heads}",
        page_size=shape.page_size,
        config=f"{config.query_tokens} queries x {block_pages} pages x {config.kv_heads} kv heads",
        block_pages=block_pages,
        block_bytes=block_pages * shape.page_bytes // num_parts,
        scores=config.query_tokens * heads.group * config.kv_heads * config.key_tokens,
        head_dim=heads.head_dim,
        masks_apart=True,
        work=work,
    )


def prefill_work(config: PrefillConfig, num_parts: int, context: int) -> PrefillWork:
    """Trips for a chunk that ends a context: blocks before a query block need no mask, later ones up to its end do."""
    query_blocks = unmasked = masked = steps = 0
    key_step = min(KEY_STEP, config.key_tokens)
    for first in range(context - CHUNK_TOKENS, context, config.query_tokens):
        stop = min(first + config.query_tokens, context)
        full = first // config.key_tokens
        query_blocks += 1
        unmasked += full
        masked += ceil_div(stop, config.key_tokens) - full
        steps += ceil_div(stop - full * config.key_tokens, key_step)
    return PrefillWork(query_blocks * num_parts, unmasked * num_parts, masked * num_parts, steps * num_parts)


def move_programs() -> Iterator[tuple[MoveProgram, Case]]:
    """The kernels that move, at the shapes of the smallest named model."""
    for page_size in (16, 128):
        shape = Shape("", MODELS["deepseek-r1-distill-qwen-1.5b"], page_size)
        pages_bytes = shape.page_bytes * shape.heads.num_layers
        for case in (gather_case(shape), scatter_case(shape)):
            yield MoveProgram(case.op, case.shape, "page of all layers", 1, pages_bytes), case
