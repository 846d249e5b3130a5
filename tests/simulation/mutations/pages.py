"""Planted bugs in pages, rows and the prefix cache."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from actors.decode import DecodePhase
from actors.prefill import PrefillPhase
from actors.turn import Flight, Turn, enqueue
from actors.worker import WorkerActor
from runtime.engine import Engine, KvChunk
from runtime.pages import PagePool
from runtime.prefix_cache import extend
from tests.simulation.mutations.planted import Planted


def pages_freed_without_quarantine(patch: pytest.MonkeyPatch) -> None:
    """A page is free as soon as its last owner lets it go."""
    release = PagePool.release

    def mutant(self: PagePool, pages: Any, fence: int) -> None:
        release(self, pages, 0)

    patch.setattr(PagePool, "release", mutant)


def pages_freed_twice(patch: pytest.MonkeyPatch) -> None:
    """A page that is given up is free for two to take."""
    give_up = PagePool._give_up

    def mutant(self: PagePool, page: int) -> None:
        give_up(self, page)
        self._free.append(page)

    patch.setattr(PagePool, "_give_up", mutant)


def pages_freed_while_a_copy_reads_them(patch: pytest.MonkeyPatch) -> None:
    """A step that was read retires its whole turn, also the gathers behind it."""
    execute = WorkerActor._execute

    async def mutant(self: WorkerActor, ctx: Any, turn: Turn) -> Flight | None:
        flight = await execute(self, ctx, turn)
        return None if flight is None else msgspec.structs.replace(flight, retires=self.state.turn)

    patch.setattr(WorkerActor, "_execute", mutant)


def quarantine_ends_a_turn_early(patch: pytest.MonkeyPatch) -> None:
    """Pages are retired with the step before the one that names them."""
    retire = PagePool.retire
    patch.setattr(PagePool, "retire", lambda self, fence: retire(self, fence + 1))


def tail_page_shared_by_choices(patch: pytest.MonkeyPatch) -> None:
    """A mixed worker's choices get no copies of the prompt's last page."""

    def mutant(engine: Engine, turn: Turn, arrived: list[KvChunk]) -> Any:
        turn.copies.clear()
        return enqueue(engine, turn, arrived)

    patch.setattr("actors.worker.enqueue", mutant)


def row_freed_before_its_step(patch: pytest.MonkeyPatch) -> None:
    """A sequence's row is given away twice."""
    end = DecodePhase.end

    def mutant(self: DecodePhase, sequence: Any, fence: int) -> None:
        end(self, sequence, fence)
        self._free_rows.append(sequence.row)

    patch.setattr(DecodePhase, "end", mutant)


def digests_forget_what_came_before(patch: pytest.MonkeyPatch) -> None:
    """A page is named by its own tokens alone, so it is found behind any beginning."""

    def mutant(parent: bytes, tokens: Sequence[int], page_size: int) -> list[bytes]:
        return [page for start in range(len(tokens) // page_size) for page in
                extend(b"", tokens[start * page_size : (start + 1) * page_size], page_size)]  # fmt: skip

    patch.setattr("runtime.prefix_cache.extend", mutant)


def pinned_pages_can_be_evicted(patch: pytest.MonkeyPatch) -> None:
    """A page that is in use again stays in the line of those to evict."""
    pin = PagePool.pin

    def mutant(self: PagePool, pages: Any, refs: int = 1) -> None:
        waiting = [page for page in pages if page in self._cached]
        pin(self, pages, refs)
        self._cached.update((page, None) for page in waiting)

    patch.setattr(PagePool, "pin", mutant)


def unfilled_pages_are_registered(patch: pytest.MonkeyPatch) -> None:
    """A prompt's pages are offered to others as soon as its first chunk is on its way."""
    dispatched = PrefillPhase.dispatched

    def mutant(self: PrefillPhase, chunk: Any) -> None:
        dispatched(self, chunk)
        prefix = chunk.job.start.prefix
        if prefix is not None:
            self._pool.register(chunk.job.pages[: len(prefix.digests)], prefix.digests)

    patch.setattr(PrefillPhase, "dispatched", mutant)


def evicted_prefixes_are_still_found(patch: pytest.MonkeyPatch) -> None:
    """A page keeps its name when it is given to somebody else."""

    def mutant(self: PagePool) -> None:
        page, _ = self._cached.popitem(last=False)
        self._give_up(page)

    patch.setattr(PagePool, "_evict", mutant)


def answers_are_cached_a_page_too_far(patch: pytest.MonkeyPatch) -> None:
    """The page that an ended answer has begun is offered as if it were full."""
    register = DecodePhase._register_answer

    def mutant(self: DecodePhase, sequence: Any) -> None:
        page = self._spec.page_size
        missing = -min(len(sequence.tokens), sequence.length) % page
        if missing and sequence.prefix is not None:
            sequence.tokens += [2] * missing
            sequence.length += missing
        register(self, sequence)

    patch.setattr(DecodePhase, "_register_answer", mutant)


PAGES = (
    Planted(pages_freed_without_quarantine, found_at=0),
    Planted(pages_freed_twice, found_at=0),
    Planted(pages_freed_while_a_copy_reads_them, found_at=1),
    Planted(quarantine_ends_a_turn_early, found_at=0),
    Planted(tail_page_shared_by_choices, found_at=2),
    Planted(row_freed_before_its_step, found_at=0),
    Planted(digests_forget_what_came_before, found_at=457),
    Planted(pinned_pages_can_be_evicted, found_at=0),
    Planted(unfilled_pages_are_registered, found_at=11),
    Planted(evicted_prefixes_are_still_found, found_at=1),
    Planted(answers_are_cached_a_page_too_far, found_at=66),
)
