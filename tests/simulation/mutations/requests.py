"""Planted bugs in a request's way through the workers."""

from typing import Any

import pytest

from actors.decode import DecodePhase, Lease
from actors.messages import Key
from actors.prefill import PrefillPhase, Staged
from actors.scheduler import SchedulerActor
from actors.tombstones import Tombstones
from tests.simulation.mutations.planted import Planted


def decode_starts_before_coverage(patch: pytest.MonkeyPatch) -> None:
    """A sequence begins once prefill is done with it, wherever its KV is."""
    patch.setattr(Lease, "complete", lambda self: True)


def chunk_counts_before_it_arrives(patch: pytest.MonkeyPatch) -> None:
    """Coverage is complete with the last chunk, although an earlier one may be on its way."""
    patch.setattr(Lease, "complete", lambda self: any(end == self.reserve.num_tokens for _, end in self.covered))


def credit_lost_when_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """A staged chunk is forgotten, but its credit is not given back."""

    def mutant(self: PrefillPhase, key: Key, sequence: int) -> Staged | None:
        return self.staged.pop((key, sequence), None)

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


def grant_kept_after_release(patch: pytest.MonkeyPatch) -> None:
    """The scheduler never hears that a group has ended."""
    patch.setattr(SchedulerActor, "_end", lambda self, ctx, key, choices: None)


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


REQUESTS = (
    Planted(decode_starts_before_coverage, found_at=0),
    Planted(chunk_counts_before_it_arrives, found_at=5),
    Planted(credit_lost_when_acknowledged, found_at=0),
    Planted(cancel_forgets_leases, found_at=0),
    Planted(tombstones_are_ignored, found_at=2),
    Planted(grant_kept_after_release, found_at=0),
    Planted(older_prefill_blocks_younger_holders, found_at=82),
)
