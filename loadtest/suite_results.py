"""Results of the nightly suite: figures of a case, medians over its repeats, and what became worse since an earlier
suite.

A case is a load on a model and topology. Two cases are the same one if all that was asked for is the same; figures are
only compared between suites of the same machine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from loadtest.errors import UsageError

FORMAT = "loadtest-suite/1"

Figures = dict[str, float | None]
"""By name of `SHOWN`; None where nothing was measured."""

SHOWN = {
    "tokens/s": "output_throughput",
    "TTFT p50": "p50_ttft_ms",
    "TTFT p99": "p99_ttft_ms",
    "TPOT p50": "p50_tpot_ms",
    "TPOT p99": "p99_tpot_ms",
    "ITL p99": "p99_itl_ms",
}
"""Figures and their keys in a run's file: tokens of answers per second, else ms."""

HIGHER_IS_BETTER = ("tokens/s",)
WORSE = "WORSE"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A load and what was measured: of each good repeat, and medians.

    `problems` are repeats in which requests failed, `invalid` those in which the client was too late to measure.
    """

    model: str
    topology: str
    load: str
    asked: tuple[str, ...]
    repeats: tuple[Figures, ...]
    medians: Figures
    problems: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """What makes it the same case."""
        return self.model, self.topology, self.asked

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model} {self.topology} {self.load}"

    @property
    def is_measured(self) -> bool:
        """Whether most repeats were good; medians of fewer say nothing."""
        return len(self.repeats) > len(self.problems) + len(self.invalid)


class Machine(msgspec.Struct, frozen=True):
    """What figures depend on."""

    processor: str
    cores: int
    system: str


class Suite(msgspec.Struct, frozen=True, kw_only=True, tag_field="format", tag=FORMAT):
    """A suite's file. `environment` is the client's, `versions` those of the server's packages."""

    date: str
    commit: str
    machine: Machine
    versions: dict[str, str]
    environment: dict[str, Any]
    cases: tuple[Case, ...]


def figures_of(run: Mapping[str, Any]) -> Figures:
    """Of a run's file."""
    return {name: run.get(key) for name, key in SHOWN.items()}


def medians(repeats: Sequence[Figures]) -> Figures:
    """Of each figure over the repeats that have it."""
    known = {name: [value for one in repeats if (value := one.get(name)) is not None] for name in SHOWN}
    return {name: median(values) if values else None for name, values in known.items()}


def read(path: Path) -> Suite:
    """A suite's file. Raises UsageError for anything else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Suite)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}; allowed: what `python -m loadtest.suite` saved") from None


def newest(folder: Path, machine: Machine, models: Sequence[str]) -> Path | None:
    """The last file in the folder that was made on this machine with one of the models."""
    found = [(one.date, path) for path in folder.glob("*.json") if (one := read(path)).machine == machine]
    of_models = [pair for pair in found if any(case.model in models for case in read(pair[1]).cases)]
    return max(of_models, default=(None, None))[1]


def change(before: float | None, after: float | None) -> float | None:
    """By which fraction a figure grew; None if either is unknown or there was nothing before."""
    return (after - before) / before if before and after is not None else None


def is_worse(name: str, before: float | None, after: float | None, tolerance: float) -> bool:
    """Whether a figure became worse by more than the tolerance, a fraction; one that is gone did."""
    if before is not None and after is None:
        return True
    grown = change(before, after)
    return grown is not None and (-grown if name in HIGHER_IS_BETTER else grown) > tolerance


def regressions(before: Suite, after: Suite, tolerance: float) -> list[str]:
    """A line per figure that became worse, of the cases that both have measured."""
    lines, earlier = list[str](), {case.key: case for case in before.cases}
    for case in after.cases:
        old = earlier.get(case.key)
        if old is None or not old.is_measured or not case.is_measured:
            continue
        for name in SHOWN:
            was, now = old.medians.get(name), case.medians.get(name)
            if is_worse(name, was, now, tolerance):
                lines.append(f"{case.name}: {name} {_number(was)} -> {_number(now)}{_percent(change(was, now))}")
    return lines


def table(before: Suite | None, after: Suite, tolerance: float) -> list[list[str]]:
    """A row per case: each figure, by how much it changed, and a mark where it became worse."""
    rows = [["case", *(name if name in HIGHER_IS_BETTER else f"{name}, ms" for name in SHOWN)]]
    earlier = {case.key: case for case in before.cases} if before is not None else {}
    for case in after.cases:
        old = earlier.get(case.key)
        is_compared = case.is_measured and old is not None and old.is_measured
        cells = list[str]()
        for name in SHOWN:
            now = case.medians.get(name)
            was = old.medians.get(name) if is_compared and old is not None else None
            mark = f" {WORSE}" if is_worse(name, was, now, tolerance) else ""
            cells.append(f"{_number(now)}{_percent(change(was, now))}{mark}")
        rows.append([case.name, *cells])
    return rows


def widest_spread(suite: Suite) -> list[str]:
    """Per figure the largest distance between two repeats of a case, as a part of its median: the noise, measured."""
    spreads = list[str]()
    for name in SHOWN:
        shares = list[float]()
        for case in suite.cases:
            values = [value for one in case.repeats if (value := one.get(name)) is not None]
            middle = case.medians.get(name)
            if len(values) > 1 and middle:
                shares.append((max(values) - min(values)) / middle)
        spreads += [f"{name} {max(shares):.0%}"] if shares else []
    return spreads


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(grown: float | None) -> str:
    return "" if grown is None else f" ({grown:+.1%})"
