"""Drawn workloads under one to three drawn faults of any kind: every answer is exact, and all is at rest in the end."""

import pytest

from tests.simulation.faults import KINDS
from tests.simulation.harness import run_seed
from tests.simulation.workload import draw_faulty_workload

SEED_BLOCKS = [range(first, first + 20) for first in range(0, 200, 20)]


@pytest.mark.parametrize("seeds", SEED_BLOCKS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_mixed_traffic_survives_drawn_faults(seeds: range) -> None:
    outcomes = [run_seed(seed, fault=True) for seed in seeds]
    assert sum(outcome.completed for outcome in outcomes) > 0
    assert sum(len(outcome.struck) for outcome in outcomes) > len(seeds) / 3


def test_the_drawn_faults_are_of_every_kind_and_can_be_drawn_again() -> None:
    drawn = [draw_faulty_workload(seed) for seed in range(100)]
    assert drawn == [draw_faulty_workload(seed) for seed in range(100)]
    assert {fault.kind for workload in drawn for fault in workload.faults} == set(KINDS)
