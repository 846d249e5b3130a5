"""The boundary sweep, struck at actors and slices: kill, hang and slow."""

import pytest

from tests.simulation.coverage import Coverage
from tests.simulation.faults import Kind
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.sweep import sweep

ACTOR_KINDS: tuple[Kind, ...] = ("kill", "hang", "slow")


@pytest.mark.parametrize("kind", ACTOR_KINDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_stream_notices_an_actor_that_dies_or_a_slice_that_stops(name: str, kind: Kind) -> None:
    swept = sweep(name, (kind,))
    assert not swept.failures, "\n".join([f"{len(swept.failures)} of {swept.runs} runs failed", *swept.failures])


def test_every_message_was_struck_in_every_way_that_can_be() -> None:
    coverage = Coverage()
    for name in SCENARIOS:
        for kind in ACTOR_KINDS:
            coverage.add(sweep(name, (kind,)).struck)
    print(f"\n{coverage.table(ACTOR_KINDS)}")  # noqa: T201
    assert not coverage.empty_cells(ACTOR_KINDS)
    assert not coverage.misplaced_excuses()
