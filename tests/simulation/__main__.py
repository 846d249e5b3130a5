"""Replays runs: `python -m tests.simulation [SEED [LAST_SEED]] [--fault] [--scenario NAME] [--strike FAULT]`."""

import argparse
import sys
from collections.abc import Iterator

import msgspec

from tests.simulation.faults import parse_fault
from tests.simulation.harness import SimulationFailure, run_workload
from tests.simulation.scenarios import SCENARIOS, scenario
from tests.simulation.workload import Workload, draw_faulty_workload, draw_workload


def main() -> int:
    """Runs one seed, all from SEED to LAST_SEED, or a scenario; returns 1 when one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("last_seed", type=int, nargs="?")
    parser.add_argument("--fault", action="store_true", help="let one to three faults strike that the seed draws")
    parser.add_argument("--scenario", choices=SCENARIOS, help="run a fixed workload instead of a drawn one")
    parser.add_argument("--strike", type=parse_fault, action="append", default=[], help="let this fault strike, too")
    parser.add_argument("--trace", action="store_true", help="print every event as it happens")
    arguments = parser.parse_args()
    failed = []
    workloads = list(_workloads(arguments))
    for workload in workloads:
        try:
            outcome = run_workload(workload, arguments.trace)
        except SimulationFailure as failure:
            failed.append(workload.replay)
            print(failure if len(workloads) == 1 else f"{failure.reason.splitlines()[0]} ({workload.replay})")
        else:
            if len(workloads) == 1:
                print(outcome)
    print(f"{len(workloads) - len(failed)} runs passed, failed: {failed}")
    return 1 if failed else 0


def _workloads(arguments: argparse.Namespace) -> Iterator[Workload]:
    strikes = tuple(arguments.strike)
    suffix = "".join(f" --strike {fault}" for fault in strikes)
    if arguments.scenario is not None:
        drawn = [scenario(arguments.scenario)]
    else:
        last = arguments.last_seed if arguments.last_seed is not None else arguments.seed
        draw = draw_faulty_workload if arguments.fault else draw_workload
        drawn = [draw(seed) for seed in range(arguments.seed, last + 1)]
    for workload in drawn:
        faults = workload.faults + strikes
        yield msgspec.structs.replace(workload, faults=faults, replay=f"{workload.replay}{suffix}")


if __name__ == "__main__":
    sys.exit(main())
