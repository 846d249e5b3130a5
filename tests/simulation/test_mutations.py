"""Planted bugs in the real actors, each of which the simulator must find within a number of seeds."""

from collections.abc import Callable

import pytest

from tests.simulation.harness import SimulationFailure, run_seed
from tests.simulation.mutations import MUTATIONS

MUTANT_SEEDS = 500


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_planted_bug_is_found(mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    assert any(_fails(seed) for seed in range(MUTANT_SEEDS)), f"{MUTANT_SEEDS} seeds do not notice it"


def _fails(seed: int) -> bool:
    try:
        run_seed(seed)
    except SimulationFailure:
        return True
    return False
