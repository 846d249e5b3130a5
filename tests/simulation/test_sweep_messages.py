"""The boundary sweep, struck at messages: drop, delay, duplicate, reorder and corrupt."""

import pytest

from tests.simulation.coverage import Coverage
from tests.simulation.faults import Kind
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.sweep import sweep

MESSAGE_KINDS: tuple[Kind, ...] = ("drop", "delay", "duplicate", "reorder", "corrupt")


@pytest.mark.parametrize("kind", MESSAGE_KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_stream_notices_a_message_that_is_lost_late_doubled_or_garbled(name: str, kind: Kind) -> None:
    swept = sweep(name, (kind,))
    assert not swept.failures, "\n".join([f"{len(swept.failures)} of {swept.runs} runs failed", *swept.failures])


def test_every_message_was_struck_in_every_way_that_can_be() -> None:
    coverage = Coverage()
    for name in SCENARIOS:
        for kind in MESSAGE_KINDS:
            coverage.add(sweep(name, (kind,)).struck)
    print(f"\n{coverage.table(MESSAGE_KINDS)}")  # noqa: T201
    assert not coverage.empty_cells(MESSAGE_KINDS)
    assert not coverage.misplaced_excuses()
