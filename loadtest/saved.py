"""Results as a report reads them from files: runs, sweeps and comparisons, and no more of each than the page shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadtest.compare_result import FORMAT as COMPARE_FORMAT
from loadtest.comparison import is_same
from loadtest.errors import UsageError
from loadtest.record import Record
from loadtest.results import FORMAT as RUN_FORMAT
from loadtest.search import Goal, Judged
from loadtest.server import EMULATED
from loadtest.slo import Verdict
from loadtest.sweep import FORMAT as SWEEP_FORMAT


class SavedRun(msgspec.Struct, frozen=True, tag_field="format", tag=RUN_FORMAT):
    """What is read of a run's file."""

    server: dict[str, Any]
    environment: dict[str, Any]
    slo: tuple[Verdict, ...]
    request_goodput: float
    requests: tuple[Record, ...]
    invalid: str | None = None
    stopped: str | None = None
    warnings: tuple[str, ...] = ()


class SavedTrial(msgspec.Struct, frozen=True):
    """What is read of a sweep's trial."""

    rate: float
    request_goodput: float


class SavedSweep(msgspec.Struct, frozen=True, tag_field="format", tag=SWEEP_FORMAT):
    """What is read of a sweep's file."""

    server: dict[str, Any]
    environment: dict[str, Any]
    conclusion: str
    goal: Goal
    slo: tuple[str, ...]
    rates: tuple[Judged, ...]
    trials: tuple[SavedTrial, ...]


class ComparedServer(msgspec.Struct, frozen=True):
    """One of the servers of a comparison, by the name that the user gave it."""

    name: str
    url: str
    version: str | None = None
    engine: str | None = None

    @property
    def is_emulated(self) -> bool:
        """Whether its steps only take as long as a table says."""
        return (self.engine or "").startswith(EMULATED)

    @property
    def title(self) -> str:
        """The name, marked where the server is emulated."""
        return f"{self.name} (emulated)" if self.is_emulated else self.name


class ComparedRun(msgspec.Struct, frozen=True):
    """One load on one server. `goodput` (per second) and `inside` have an entry per SLO."""

    server: str
    rate: float
    round: int
    duration_s: float
    goodput: tuple[float, ...]
    inside: tuple[int, ...]
    total: int
    requests: tuple[Record, ...]
    invalid: str | None = None
    stopped: str | None = None


class Comparison(msgspec.Struct, frozen=True):
    """Server `a` against `b` at a rate under an SLO: goodput, and its ratio with a 95 % interval.

    Ratio and ends are None where they are infinite: a server without any goodput is divided by.
    """

    slo: int
    rate: float
    a: str
    b: str
    verdict: Literal["a", "b", "open"]
    goodput_a: float | None = None
    goodput_b: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def is_same(self) -> bool:
        """Whether both had goodput and no difference that matters is left open."""
        return bool(self.goodput_a and self.goodput_b) and is_same(self.low, self.high)


class Capacity(msgspec.Struct, frozen=True):
    """The highest rate that a server holds under an SLO; None where it holds none of those tried."""

    slo: int
    server: str
    rate: float | None = None


class StageTime(msgspec.Struct, frozen=True):
    """One stage of a server's requests at a rate."""

    server: str
    rate: float
    stage: str
    mean_s: float | None = None
    p50_s: float | None = None
    p99_s: float | None = None


class SavedCompare(msgspec.Struct, frozen=True, tag_field="format", tag=COMPARE_FORMAT):
    """What is read of a comparison's file."""

    environment: dict[str, Any]
    setup: dict[str, Any]
    conclusion: tuple[str, ...]
    attainment: float
    slos: tuple[tuple[str, ...], ...]
    servers: tuple[ComparedServer, ...]
    runs: tuple[ComparedRun, ...]
    comparisons: tuple[Comparison, ...]
    capacity: tuple[Capacity, ...]
    stages: tuple[StageTime, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def good_runs(self) -> Sequence[ComparedRun]:
        """Those that were measured properly and to their end."""
        return [run for run in self.runs if run.invalid is None and run.stopped is None]

    @property
    def rates(self) -> Sequence[float]:
        """All that were tried, ascending."""
        return sorted({run.rate for run in self.runs})


Saved = SavedRun | SavedSweep | SavedCompare


def read(path: Path) -> Saved:
    """A saved result. Raises UsageError for anything else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SavedRun | SavedSweep | SavedCompare)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}; allowed: what `run`, `sweep` or `compare` saved") from None
