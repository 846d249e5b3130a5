"""Figures of the kernels that move pages and tokens without computing."""

from typing import NamedTuple

import msgspec

from kernels.report.chip import Chip
from kernels.schedule import Schedule


class MoveProgram(NamedTuple):
    """How to read the schedule of a kernel that moves."""

    kernel: str
    shape: str
    piece: str
    pieces_per_trip: int
    piece_bytes: int


class MoveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What moving one piece, a token of one layer or a page of all layers, costs."""

    kernel: str
    shape: str
    piece: str
    bundles: float
    """Per piece, in the loop that starts the moves."""
    issue_s: float
    memory_s: float
    """Per piece: the bytes read and written."""
    dma_starts: float
    """Per piece."""
    spills: int
    scalar_spills: int


def move_figures(schedule: Schedule, program: MoveProgram, chip: Chip) -> MoveFigures:
    """Figures of the loop that starts most DMAs outside of loops nested in it."""
    if not schedule.loops:
        raise ValueError(f"{program.kernel}: the schedule has no loop")
    loop = max(schedule.loops, key=lambda loop: loop.own.dma_starts)
    bundles = loop.whole.bundles / program.pieces_per_trip
    return MoveFigures(
        kernel=program.kernel,
        shape=program.shape,
        piece=program.piece,
        bundles=bundles,
        issue_s=chip.issue_s(bundles),
        memory_s=chip.memory_s(2 * program.piece_bytes),
        dma_starts=loop.whole.dma_starts / program.pieces_per_trip,
        spills=loop.whole.spills + loop.whole.fills,
        scalar_spills=loop.whole.scalar_spills,
    )
