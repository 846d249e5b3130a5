"""A campaign: the boundary sweep and many drawn workloads with faults, over several processes.

`python -m tests.simulation.campaign --seeds 2000 --processes 2`, or `make simulate SEEDS=2000`. It prints how far it
is, which faults have struck which messages, and for every failure the command that replays it with what happened
around the fault.
"""

import argparse
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec

from tests.simulation.coverage import Coverage, excuses_text
from tests.simulation.harness import SimulationFailure, run_workload
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.sweep import cases, struck_by
from tests.simulation.workload import Workload, draw_faulty_workload, draw_workload

_BLOCK = 20
"""Runs that a process is given at a time."""

_UNDISTURBED = 5
"""Every so many seeds, one runs without faults."""

_SHOWN = 20
"""Most failures that are shown with their events."""

_say = partial(print, flush=True)


class Failure(msgspec.Struct, frozen=True):
    """One run that broke an invariant."""

    reason: str
    replay: str
    around: str


class Report(msgspec.Struct):
    """What some runs did. `counts` are the strikes by kind and message."""

    runs: int = 0
    steps: int = 0
    strikes: int = 0
    counts: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)
    failures: list[Failure] = msgspec.field(default_factory=list)

    def merge(self, other: "Report") -> None:
        """Adds another report's numbers to these."""
        self.runs += other.runs
        self.steps += other.steps
        self.strikes += other.strikes
        self.counts += other.counts
        self.failures += other.failures


def draw(seed: int) -> Workload:
    """The campaign's run of this seed."""
    return draw_workload(seed) if seed % _UNDISTURBED == 0 else draw_faulty_workload(seed)


def run_block(workloads: Sequence[Workload]) -> Report:
    """Runs all of these, whatever breaks."""
    logging.disable(logging.CRITICAL)  # the deaths are planned: their tracebacks say nothing
    report = Report()
    coverage = Coverage()
    for workload in workloads:
        report.runs += 1
        try:
            outcome = run_workload(workload)
        except SimulationFailure as failure:
            report.failures.append(Failure(failure.reason.splitlines()[0], failure.replay, failure.around))
            coverage.add(failure.struck)
        else:
            report.steps += outcome.steps
            coverage.add(outcome.struck)
    report.counts = coverage.counts
    report.strikes = coverage.counts.total()
    return report


def main() -> int:
    """Returns 1 when a run has failed or a cell of the table that could be filled is empty."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.campaign", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many drawn workloads")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--no-sweep", action="store_true", help="leave the boundary sweep out")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    workloads = list(map(draw, range(arguments.first, arguments.first + arguments.seeds)))
    if not arguments.no_sweep:
        workloads += [struck_by(name, fault) for name in SCENARIOS for fault in cases(name)]
    total = _run_all(workloads, arguments.processes)
    lasted_s = time.monotonic() - began_s
    coverage = Coverage()
    coverage.counts = total.counts
    empty = coverage.empty_cells() if not arguments.no_sweep else []
    _show(total, coverage, lasted_s, empty)
    return 1 if total.failures or empty else 0


def _run_all(workloads: Sequence[Workload], processes: int) -> Report:
    total, shown = Report(), 0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for report in pool.imap_unordered(run_block, _blocks(workloads)):
            total.merge(report)
            if total.runs * 20 // len(workloads) > shown:
                shown = total.runs * 20 // len(workloads)
                _say(f"{total.runs:6} of {len(workloads)} runs, {total.strikes} strikes, {len(total.failures)} failed")
    return total


def _blocks(workloads: Sequence[Workload]) -> Iterator[Sequence[Workload]]:
    for begin in range(0, len(workloads), _BLOCK):
        yield workloads[begin : begin + _BLOCK]


def _show(total: Report, coverage: Coverage, lasted_s: float, empty: list[tuple[str, str]]) -> None:
    for failure in total.failures[:_SHOWN]:
        _say(f"\n{failure.reason}\n  {failure.around.replace(chr(10), chr(10) + '  ')}")
        _say(f"replay: python -m tests.simulation {failure.replay}")
    for failure in total.failures[_SHOWN:]:
        _say(f"{failure.reason[:100]}: python -m tests.simulation {failure.replay}")
    _say(f"\n{coverage.table()}\n\nA dash marks what cannot occur:\n{excuses_text()}")
    if empty:
        _say(f"\nNever struck, though possible: {empty}")
    _say(
        f"\n{total.runs} runs in {lasted_s:.0f} s ({total.steps} steps, {total.strikes} strikes): "
        f"{len(total.failures)} failed"
    )


if __name__ == "__main__":
    sys.exit(main())
