"""Figures of the kernels that move tokens and pages without computing."""

from typing import Literal, NamedTuple

import msgspec

from kernels.report.chip import Chip
from kernels.schedule import Schedule


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
    most: Literal["starts", "bytes"] = "starts"
    """What the loop that moves the pieces has most of: DMA starts, or their bytes."""


def move_figures(schedule: Schedule, program: MoveProgram, chip: Chip) -> MoveFigures:
    """Figures of the loop that has most DMAs outside of loops nested in it."""
    if not schedule.loops:
        raise ValueError(f"{program.kernel}: the schedule has no loop")
    in_starts = program.most == "starts"
    loop = max(schedule.loops, key=lambda loop: loop.own.dma_starts if in_starts else loop.own.dma_bytes)
    bundles = loop.whole.bundles / program.pieces_per_trip
    return MoveFigures(
        kernel=program.kernel,
        shape=program.shape,
        piece=program.piece,
        pieces=program.pieces,
        bundles=bundles,
        dma_starts=loop.whole.dma_starts / program.pieces_per_trip,
        issue_s=chip.issue_s(bundles),
        memory_s=chip.memory_s(program.piece_bytes),
        spills=loop.whole.spills + loop.whole.fills,
        scalar_spills=loop.whole.scalar_spills,
    )
