"""Figures of the kernels that move tokens and pages without computing."""

from typing import Literal, NamedTuple

import msgspec

from kernels.report.chip import Chip
from kernels.schedule import Loop, Schedule


class MoveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What moving one piece costs."""

    kernel: str
    shape: str
    piece: str
    """A token of one layer, or a page of all layers."""
    pieces: int
    """Moved by one call."""
    bundles: float
    """Per piece, in the loop that starts the moves."""
    dma_starts: float
    """Per piece, of all branches."""
    issue_s: float
    memory_s: float
    spills: int
    """Vector spills and fills of a trip."""
    scalar_spills: int


class MoveProgram(NamedTuple):
    """How to read the schedule of a kernel that moves."""

    kernel: str
    shape: str
    piece: str
    pieces: int
    """Moved by one call."""
    pieces_per_trip: int
    piece_bytes: int
    """Read and written for a piece."""
    loop: Literal["outermost", "only child", "batches"]
    """Where the moves are started: in an outermost loop, in a loop that is alone inside another, or in several loops
    inside a loop over batches.
    """
    unrolled: int = 1
    """Pieces that a trip of the loops inside a batch takes."""


def move_figures(schedule: Schedule, program: MoveProgram, chip: Chip) -> MoveFigures:
    """Figures of the loop that moves the pieces. Raises ValueError if there is no such loop."""
    moving = [loop for loop in schedule.loops if loop.own.dma_starts]
    if not moving:
        raise ValueError(f"{program.kernel}: no loop starts DMAs")
    if program.loop == "batches":
        loop, bundles, dma_starts = _batch(schedule, moving, program)
    else:
        alone = {child for parent in schedule.loops for child in _only(schedule.children(parent))}
        found = [loop for loop in moving if (loop.depth == 1 if program.loop == "outermost" else loop.first in alone)]
        if not found:
            raise ValueError(f"{program.kernel}: no {program.loop} loop starts DMAs")
        loop = max(found, key=lambda loop: loop.own.dma_starts)
        bundles = loop.whole.bundles / program.pieces_per_trip
        dma_starts = loop.whole.dma_starts / program.pieces_per_trip
    return MoveFigures(
        kernel=program.kernel,
        shape=program.shape,
        piece=program.piece,
        pieces=program.pieces,
        bundles=bundles,
        dma_starts=dma_starts,
        issue_s=chip.issue_s(bundles),
        memory_s=chip.memory_s(program.piece_bytes),
        spills=loop.whole.spills + loop.whole.fills,
        scalar_spills=loop.whole.scalar_spills,
    )


def _only(loops: list[Loop]) -> list[int]:
    return [loops[0].first] if len(loops) == 1 else []


def _batch(schedule: Schedule, moving: list[Loop], program: MoveProgram) -> tuple[Loop, float, float]:
    """The loop over batches, and bundles and DMA starts for a piece of a full batch.

    Of the loops inside it those count that are unrolled; the others are for what does not fill a batch.
    """

    def unrolled_in(batch: Loop) -> list[Loop]:
        return [loop for loop in moving if batch.contains(loop) and loop.own.dma_starts == program.unrolled]

    batch = max(schedule.loops, key=lambda loop: len(unrolled_in(loop)))
    inner = unrolled_in(batch)
    if not inner:
        raise ValueError(f"{program.kernel}: no loop over batches has loops that take {program.unrolled} pieces")
    bundles = batch.own.bundles / program.pieces_per_trip + sum(loop.whole.bundles for loop in inner) / program.unrolled
    return batch, bundles, float(len(inner))
