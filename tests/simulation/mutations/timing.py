"""Planted bugs in the stage times that a request is told."""

from typing import Any

import pytest

from actors.decode import DecodePhase
from actors.stage_clock import StageClock
from tests.simulation.mutations.planted import Planted


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


TIMING = (
    Planted(time_of_failed_attempts_is_lost, found_at=1),
    Planted(transfer_ends_with_its_first_chunk, found_at=5),
)
