"""Figures of attention kernels, from the compiler's schedules.

Issue time is the number of bundles, all branches of a loop's trip counted, over the clock; memory time is the bytes
that have to move over the bandwidth of HBM. Where issue time is the smaller one, the memory is the limit. Neither
knows of waits. A loop nested in a trip counts once, for the kernels have such loops for rare work only; where one has
more trips, its program says so.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from kernels.report.chip import Chip
from kernels.schedule import Loop, Schedule

CHUNK_TOKENS = 2048
"""New tokens of the chunk that prefill's figures are about."""
SCORE_TILE = 8 * 128
"""Scores of one vector register."""

MANY_STORES = 16
"""Vector stores of a loop that lays out queries or results; a loop with fewer clears single rows, if ever."""


class LoopFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One trip of a loop over blocks of keys and values."""

    bundles: int
    least_bundles: int
    """Without what some branch can jump over."""
    pages: int
    """Pages of the block."""
    occupancy: dict[str, float]
    """Share of the slots' cycles that are occupied, 0..1."""
    vmatmuls: int
    spills: int
    fills: int
    scalar_spills: int
    dma_starts: int
    dma_bytes: int

    @property
    def bundles_per_page(self) -> float:
        """Bundles of a trip for each page of its block."""
        return self.bundles / self.pages

    @property
    def spill_share(self) -> float:
        """Vector spills and fills per bundle."""
        return (self.spills + self.fills) / self.bundles


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What a step costs at one context."""

    context_tokens: int
    bundles: float
    issue_s: float
    memory_s: float

    @property
    def ratio(self) -> float:
        """Issue time over memory time."""
        return self.issue_s / self.memory_s


class DecodeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Decode attention of one layer; the rows are per sequence."""

    kernel: str
    heads: str
    page_size: int
    config: str
    """The kernel's block sizes: query tokens (q), pages (p), kv heads of a pass (h)."""
    block: LoopFigures
    sequence_bundles: float
    """Per sequence, outside the loop over blocks."""
    rows: tuple[Row, ...]


class PrefillRow(Row, frozen=True, kw_only=True):
    """What a chunk costs at one context."""

    unmasked_trips: int
    masked_trips: int
    masked_share: float
    """Share of the bundles that goes to the loop over masked blocks."""


class PrefillFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Prefill attention of one layer; the rows are per chunk of `CHUNK_TOKENS` new tokens of one sequence."""

    kernel: str
    heads: str
    page_size: int
    config: str
    """The kernel's block sizes: query tokens (q), pages (p), kv heads of a pass (h)."""
    unmasked: LoopFigures
    """The loop over blocks of which every key is seen by every query; in a kernel without one, the one loop."""
    masked: LoopFigures | None
    """The loop over the other blocks; its bundles hold one step of a loop over parts of a block, if there is one."""
    masked_step_bundles: int
    """One step of the loop inside the masked one; 0 without it."""
    bundles_per_score_tile: float
    """Of the unmasked loop, per 8x128 scores."""
    flop_per_s: float
    """Useful operations of the unmasked loop over its issue time."""
    outside_bundles: float
    """Per block of queries, outside both loops."""
    rows: tuple[PrefillRow, ...]


class DecodeProgram(NamedTuple):
    """How to read a decode kernel's schedule."""

    kernel: str
    heads: str
    page_size: int
    config: str
    block_pages: int
    page_bytes: int
    rows_per_trip: int
    """Sequences of one trip of the outermost loop; the loops further in take one at a time."""


class PrefillWork(NamedTuple):
    """Trips for one chunk."""

    query_blocks: int
    unmasked: int
    masked: int = 0
    masked_steps: int = 0
    """Trips of the loop inside the masked one, if there is one."""


class PrefillProgram(NamedTuple):
    """How to read a prefill kernel's schedule."""

    kernel: str
    heads: str
    page_size: int
    config: str
    block_pages: int
    block_bytes: int
    """Bytes of keys and values that a trip attends to."""
    scores: int
    """Scores of a trip of the unmasked loop: rows x keys, over all heads of the trip."""
    head_dim: int
    masks_apart: bool
    """Whether blocks that need a mask have a loop of their own."""
    work: Callable[[int], PrefillWork]
    """The trips of a chunk that ends a context of so many tokens."""
    pieces: int = 1
    """Trips of the loops outside the block loops that lay out queries and results."""


def loop_figures(schedule: Schedule, loop: Loop, pages: int) -> LoopFigures:
    """Figures of a loop whose trip attends to a block of `pages` pages."""
    whole = loop.whole
    return LoopFigures(
        bundles=whole.bundles,
        least_bundles=loop.own.bundles - loop.skippable,
        pages=pages,
        occupancy=schedule.occupancy(whole),
        vmatmuls=whole.vmatmuls,
        spills=whole.spills,
        fills=whole.fills,
        scalar_spills=whole.scalar_spills,
        dma_starts=whole.dma_starts,
        dma_bytes=whole.dma_bytes,
    )


def multiplying_loops(schedule: Schedule) -> list[Loop]:
    """The loops that multiply matrices outside of loops nested in them: those over blocks of keys and values."""
    loops = [loop for loop in schedule.loops if loop.own.vmatmuls]
    if not loops:
        raise ValueError("no loop of the schedule multiplies matrices")
    return loops


def outside_bundles(schedule: Schedule, blocks: Sequence[Loop], visits: int) -> float:
    """Bundles around the block loops for one of `visits` pieces of work of a trip of the outermost loop.

    Loops beside the block loops count once. The outermost loop's own bundles are shared by its pieces of work.
    """
    around = [loop for loop in schedule.loops if all(loop.contains(block) for block in blocks)]
    if not around:
        return 0.0
    outermost, rest = around[0], around[1:]
    total = outermost.whole.bundles - sum(block.whole.bundles for block in blocks)
    if not rest:
        return total / visits
    shared = outermost.whole.bundles - rest[0].whole.bundles
    return shared / visits + total - shared


def layout_bundles(schedule: Schedule, blocks: Sequence[Loop]) -> int:
    """Bundles of one trip of the loops around the block loops, and beside them, that store many vectors."""
    outermost = next(loop for loop in schedule.loops if all(loop.contains(block) for block in blocks))
    return sum(
        loop.whole.bundles
        for loop in schedule.loops
        if outermost.contains(loop)
        and not any(loop == block or loop.contains(block) or block.contains(loop) for block in blocks)
        and loop.own.slot_cycles.get("VSTORE", 0) >= MANY_STORES
    )


def decode_figures(schedule: Schedule, program: DecodeProgram, chip: Chip, contexts: Sequence[int]) -> DecodeFigures:
    """Figures of a decode kernel, per sequence."""
    block_loop = max(multiplying_loops(schedule), key=lambda loop: loop.own.vmatmuls)
    block = loop_figures(schedule, block_loop, program.block_pages)
    sequence_bundles = outside_bundles(schedule, [block_loop], program.rows_per_trip)
    rows = []
    for context in contexts:
        bundles = sequence_bundles + block.bundles * ceil_div(context, program.block_pages * program.page_size)
        memory_s = chip.memory_s(context * program.page_bytes / program.page_size)
        rows.append(Row(context_tokens=context, bundles=bundles, issue_s=chip.issue_s(bundles), memory_s=memory_s))
    return DecodeFigures(
        kernel=program.kernel,
        heads=program.heads,
        page_size=program.page_size,
        config=program.config,
        block=block,
        sequence_bundles=sequence_bundles,
        rows=tuple(rows),
    )


def prefill_figures(schedule: Schedule, program: PrefillProgram, chip: Chip, contexts: Sequence[int]) -> PrefillFigures:
    """Figures of a prefill kernel."""
    unmasked_loop, masked_loop, step = find_prefill_loops(schedule, program.masks_apart)
    unmasked = loop_figures(schedule, unmasked_loop, program.block_pages)
    step_bundles = step.whole.bundles if step else 0
    blocks = [unmasked_loop, *([masked_loop] if masked_loop else [])]
    figures = PrefillFigures(
        kernel=program.kernel,
        heads=program.heads,
        page_size=program.page_size,
        config=program.config,
        unmasked=unmasked,
        masked=loop_figures(schedule, masked_loop, program.block_pages) if masked_loop else None,
        masked_step_bundles=step_bundles,
        bundles_per_score_tile=unmasked.bundles * SCORE_TILE / program.scores,
        flop_per_s=4 * program.scores * program.head_dim / chip.issue_s(unmasked.bundles),
        outside_bundles=outside_bundles(schedule, blocks, 1) + (program.pieces - 1) * layout_bundles(schedule, blocks),
        rows=(),
    )
    rows = tuple(_prefill_row(figures, program, chip, context) for context in contexts)
    return msgspec.structs.replace(figures, rows=rows)


def find_prefill_loops(schedule: Schedule, masks_apart: bool) -> tuple[Loop, Loop | None, Loop | None]:
    """The loop over unmasked blocks, the one over masked blocks, and the loop over steps inside that.

    The unmasked loop multiplies most, since it unrolls what the masked one may loop over.
    """
    loops = sorted(multiplying_loops(schedule), key=lambda loop: (-loop.own.vmatmuls, loop.own.bundles))
    if len(loops) != 1 + masks_apart:
        raise ValueError(f"{len(loops)} loops multiply matrices, expected {1 + masks_apart}")
    unmasked = loops[0]
    if not masks_apart:
        return unmasked, None, None
    step = loops[1]
    around = [loop for loop in schedule.loops if loop.contains(step) and not loop.contains(unmasked)]
    return (unmasked, around[-1], step) if around else (unmasked, step, None)


def _prefill_row(figures: PrefillFigures, program: PrefillProgram, chip: Chip, context: int) -> PrefillRow:
    work = program.work(context)
    masked_bundles = work.masked_steps * figures.masked_step_bundles
    if figures.masked:
        masked_bundles += work.masked * (figures.masked.bundles - figures.masked_step_bundles)
    around = work.query_blocks * figures.outside_bundles
    bundles = around + work.unmasked * figures.unmasked.bundles + masked_bundles
    return PrefillRow(
        context_tokens=context,
        bundles=bundles,
        issue_s=chip.issue_s(bundles),
        memory_s=chip.memory_s((work.unmasked + work.masked) * program.block_bytes),
        unmasked_trips=work.unmasked,
        masked_trips=work.masked,
        masked_share=masked_bundles / bundles,
    )


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
