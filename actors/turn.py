"""One turn of a worker: what a single call on the slice's thread enqueues, and the step that it leaves in flight."""

import msgspec

from actors.decode import Insert, Sequence
from actors.messages import Key
from actors.prefill import PlannedChunk, PrefillJob
from runtime.engine import Engine, KvChunk, RowState, Step, StepHandle


class Slot(msgspec.Struct, frozen=True):
    """Whose token one sampled entry of a step is, in the engine's order; `job` when a prefill samples it remotely."""

    key: Key
    index: int
    job: PrefillJob | None


class Turn(msgspec.Struct, kw_only=True):
    """What one call on the slice does, in this order: inserts, rows, step, gathers and local tail copies.

    The step is the first one of the sequences in `begun`; those in `deferred` are constrained, so it is sampled later.
    """

    inserts: list[Insert]
    rows: list[RowState]
    chunks: tuple[PlannedChunk, ...]
    step: Step | None
    slots: tuple[Slot, ...]
    begun: list[Sequence]
    deferred: tuple[Sequence, ...] = ()
    gathers: list[tuple[PlannedChunk, tuple[int, ...]]]
    copies: list[tuple[int, tuple[int, ...]]]


class Flight(msgspec.Struct, frozen=True):
    """A dispatched step that the host has not read. All device work up to turn `retires` is done when it is fetched.

    `cached` tells what prefills that it ends had found cached; `size` is the class of steps that take as long. The
    sample is yet to be enqueued while there are sequences in `deferred`. Logprobs of the chunks in `scored` are read
    from the handle `scores`.
    """

    handle: StepHandle
    slots: tuple[Slot, ...]
    finished_jobs: tuple[PrefillJob, ...]
    retires: int
    cached: tuple[tuple[Key, int], ...]
    size: tuple[int, ...]
    deferred: tuple[Sequence, ...]
    scored: tuple[PlannedChunk, ...]
    scores: StepHandle


def enqueue(engine: Engine, turn: Turn, arrived: list[KvChunk]) -> tuple[StepHandle | None, list[KvChunk]]:
    """Enqueues the turn; `arrived` are the chunks of its inserts. Returns the step and what was gathered."""
    for chunk, insert in zip(arrived, turn.inserts, strict=True):
        engine.insert(chunk, insert.source, insert.pages)
    if turn.rows:
        engine.set_rows(turn.rows)
    handle = engine.dispatch(turn.step) if turn.step is not None else None
    gathered = [engine.gather(pages) for _, pages in turn.gathers]
    for page, targets in turn.copies:
        engine.insert(engine.gather((page,)), (0,) * len(targets), targets)
    return handle, gathered
