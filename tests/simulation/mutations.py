"""Planted bugs: each takes one safeguard away from the real actors, and the simulator must notice.

A mutation patches one method. It is undone by the test's monkeypatch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from actors.decode import DecodePhase, Lease
from actors.gateway import GatewayActor
from actors.ledger import ChoiceRecord
from actors.messages import Key, SampledToken
from actors.prefill import PrefillPhase
from actors.scheduler import SchedulerActor
from actors.stage_clock import StageClock
from actors.tombstones import Tombstones
from actors.turn import Turn, enqueue
from runtime.engine import Engine, KvChunk
from runtime.pages import PagePool
from runtime.prefix_cache import extend


def pages_freed_without_quarantine(patch: pytest.MonkeyPatch) -> None:
    """A page is free as soon as its last owner lets it go."""
    release = PagePool.release

    def mutant(self: PagePool, pages: Any, fence: int) -> None:
        release(self, pages, 0)

    patch.setattr(PagePool, "release", mutant)


def quarantine_ends_a_turn_early(patch: pytest.MonkeyPatch) -> None:
    """Pages are retired with the step before the one that names them."""
    retire = PagePool.retire
    patch.setattr(PagePool, "retire", lambda self, fence: retire(self, fence + 1))


def decode_starts_before_coverage(patch: pytest.MonkeyPatch) -> None:
    """A sequence begins once prefill is done with it, wherever its KV is."""
    patch.setattr(Lease, "complete", lambda self: True)


def chunk_counts_before_it_arrives(patch: pytest.MonkeyPatch) -> None:
    """Coverage is complete with the last chunk, although an earlier one may be on its way."""
    patch.setattr(Lease, "complete", lambda self: any(end == self.reserve.num_tokens for _, end in self.covered))


def ledger_accepts_stale_attempts(patch: pytest.MonkeyPatch) -> None:
    """Tokens of a given-up attempt are taken."""
    accept = ChoiceRecord.accept

    def mutant(self: ChoiceRecord, sampled: SampledToken) -> Iterator[SampledToken]:
        key = Key(sampled.key.request, sampled.key.choice, self.attempt)
        return accept(self, SampledToken(key, sampled.index, sampled.record, sampled.finish))

    patch.setattr(ChoiceRecord, "accept", mutant)


def ledger_fills_gaps_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """A token ahead of a gap is delivered at once."""
    accept = ChoiceRecord.accept

    def mutant(self: ChoiceRecord, sampled: SampledToken) -> Iterator[SampledToken]:
        index = max(sampled.index, 0) and len(self.accepted)
        return accept(self, SampledToken(sampled.key, index, sampled.record, sampled.finish))

    patch.setattr(ChoiceRecord, "accept", mutant)


def credit_lost_when_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """A staged chunk is forgotten, but its credit is not given back."""

    def mutant(self: PrefillPhase, key: Key, sequence: int) -> int | None:
        staged = self.staged.pop((key, sequence), None)
        return None if staged is None else staged.handle

    patch.setattr(PrefillPhase, "unstage", mutant)


def cancel_forgets_leases(patch: pytest.MonkeyPatch) -> None:
    """A cancel ends running sequences alone."""
    cancel = DecodePhase.cancel

    def mutant(self: DecodePhase, key: Key, choices: tuple[int, ...], fence: int) -> Any:
        lease = self.leases.pop(key, None)
        try:
            return cancel(self, key, choices, fence)
        finally:
            if lease is not None:
                self.leases[key] = lease

    patch.setattr(DecodePhase, "cancel", mutant)


def tombstones_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A start that comes after its cancel is obeyed."""
    patch.setattr(Tombstones, "alive", lambda self, key, choices: choices)


def second_terminal_record(patch: pytest.MonkeyPatch) -> None:
    """A complete request is told so twice."""
    complete = GatewayActor._complete

    def mutant(self: GatewayActor, ctx: Any, record: Any) -> None:
        complete(self, ctx, record)
        self.ledger.requests[record.submit.request] = record
        complete(self, ctx, record)

    patch.setattr(GatewayActor, "_complete", mutant)


def stop_string_does_not_abort(patch: pytest.MonkeyPatch) -> None:
    """A choice that a stop string ended goes on decoding, and its sequence is not taken back."""
    patch.setattr(GatewayActor, "_abort_group", lambda self, ctx, record, key, choices: None)


def grant_kept_after_release(patch: pytest.MonkeyPatch) -> None:
    """The scheduler never hears that a group has ended."""
    patch.setattr(SchedulerActor, "_end", lambda self, ctx, key, choices: None)


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


def older_prefill_blocks_younger_holders(patch: pytest.MonkeyPatch) -> None:
    """A job that waits for pages lets nobody behind it go on, also those that hold the pages."""
    plan = PrefillPhase.plan

    def mutant(self: PrefillPhase) -> Any:
        jobs = sorted(self.jobs.values(), key=lambda job: (job.start.order, job.key))
        waiting = [job for job in jobs if not job.pages and job.remaining]
        need = self._spec.pages_for(len(waiting[0].start.tokens)) if waiting else 0
        if need <= self._pool.available_pages:
            return plan(self)
        kept = jobs[: jobs.index(waiting[0])]
        mine, self.jobs = self.jobs, {job.key: job for job in kept}
        try:
            return plan(self)
        finally:
            self.jobs = mine

    patch.setattr(PrefillPhase, "plan", mutant)


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


def time_of_failed_attempts_is_lost(patch: pytest.MonkeyPatch) -> None:
    """Stage times tell of the last attempt alone."""
    patch.setattr(StageClock, "give_up", StageClock._begin)


def transfer_ends_with_its_first_chunk(patch: pytest.MonkeyPatch) -> None:
    """A lease keeps when its first chunk came, and its last one is waited for in no stage of its own."""
    place = DecodePhase.place

    def mutant(self: DecodePhase, ready: Any) -> Any:
        lease = self.leases.get(ready.key)
        before = lease.kv_at if lease is not None else 0.0
        insert = place(self, ready)
        if lease is not None and before:
            lease.kv_at = before
        return insert

    patch.setattr(DecodePhase, "place", mutant)


MUTATIONS: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    pages_freed_without_quarantine,
    quarantine_ends_a_turn_early,
    decode_starts_before_coverage,
    chunk_counts_before_it_arrives,
    ledger_accepts_stale_attempts,
    ledger_fills_gaps_out_of_order,
    credit_lost_when_acknowledged,
    cancel_forgets_leases,
    tombstones_are_ignored,
    second_terminal_record,
    stop_string_does_not_abort,
    grant_kept_after_release,
    tail_page_shared_by_choices,
    row_freed_before_its_step,
    older_prefill_blocks_younger_holders,
    digests_forget_what_came_before,
    pinned_pages_can_be_evicted,
    unfilled_pages_are_registered,
    evicted_prefixes_are_still_found,
    answers_are_cached_a_page_too_far,
    time_of_failed_attempts_is_lost,
    transfer_ends_with_its_first_chunk,
)
