"""Planted bugs in the real actors, each of which the simulator must find within a number of seeds."""

import pytest

from tests.simulation.mutations import MUTATIONS, SEEDS, Planted


@pytest.mark.parametrize("planted", MUTATIONS, ids=lambda planted: planted.name)
def test_a_planted_bug_is_found(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.mutate(monkeypatch)
    found = planted.first_failure([planted.found_at, *range(SEEDS)])
    assert found is not None, f"{SEEDS} seeds do not notice it"
    seed, _ = found
    monkeypatch.undo()
    assert planted.first_failure([seed]) is None, "the seed fails without the bug, too"
