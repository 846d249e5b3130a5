"""What a planted bug is, and how it is looked for."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec
import pytest

from tests.simulation.faults import parse_fault
from tests.simulation.harness import SimulationFailure, run_seed, run_workload
from tests.simulation.sweep import struck_by

SEEDS = 500
"""A planted bug is to be found within so many."""


class Planted(msgspec.Struct, frozen=True):
    """A mutation of the real actors, made by patching methods, and where it shows.

    `seeds` tells whether undisturbed runs find it or runs with planned faults. `found_at` is the first seed that found
    it when that was last looked at, so that it is tried first. Where the message that matters is too rare to be struck
    by a few hundred seeds, `case` names the scenario and the fault of the boundary sweep that find it.
    """

    mutate: Callable[[pytest.MonkeyPatch], None]
    found_at: int = 0
    seeds: Literal["undisturbed", "faulty"] = "undisturbed"
    case: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """The bug in words."""
        return self.mutate.__name__

    def first_failure(self, seeds: Iterable[int]) -> tuple[int, str] | None:
        """The first of these seeds that fails, with the reason, for the code as it is now."""
        return next(self._failures(seeds), None)

    def _failures(self, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        for seed in seeds if self.case is None else (0,):
            try:
                self._run(seed)
            except SimulationFailure as failure:
                yield seed, failure.reason

    def _run(self, seed: int) -> None:
        if self.case is None:
            run_seed(seed, fault=self.seeds == "faulty")
        else:
            name, fault = self.case
            run_workload(struck_by(name, parse_fault(fault)))
