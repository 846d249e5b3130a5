"""What a planted bug is, and how it is looked for."""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec
import pytest

from tests.simulation.harness import SimulationFailure, run_seed

SEEDS = 500
"""A planted bug is to be found within so many."""


class Planted(msgspec.Struct, frozen=True):
    """A mutation of the real actors, made by patching methods, and where it shows.

    `seeds` tells whether undisturbed runs find it or runs with planned faults. `found_at` is the first seed that found
    it when that was last looked at, so that it is tried first.
    """

    mutate: Callable[[pytest.MonkeyPatch], None]
    found_at: int
    seeds: Literal["undisturbed", "faulty"] = "undisturbed"

    @property
    def name(self) -> str:
        """The bug in words."""
        return self.mutate.__name__

    def first_failure(self, seeds: Iterable[int]) -> tuple[int, str] | None:
        """The first of these seeds that fails, with the reason, for the code as it is now."""
        return next(self._failures(seeds), None)

    def _failures(self, seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
        for seed in seeds:
            try:
                run_seed(seed, fault=self.seeds == "faulty")
            except SimulationFailure as failure:
                yield seed, failure.reason
