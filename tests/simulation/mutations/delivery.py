"""Planted bugs in what clients are told."""

from collections.abc import Iterator
from typing import Any

import pytest

from actors.gateway import GatewayActor
from actors.ledger import ChoiceRecord
from actors.messages import Key, SampledToken
from tests.simulation.mutations.planted import Planted


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


DELIVERY = (
    Planted(ledger_accepts_stale_attempts, found_at=11),
    Planted(ledger_fills_gaps_out_of_order, found_at=6),
    Planted(second_terminal_record, found_at=0),
    Planted(stop_string_does_not_abort, found_at=7),
)
