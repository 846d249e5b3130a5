"""Replays seeds: `python -m tests.simulation SEED [LAST_SEED] [--fault] [--trace]`."""

import argparse
import sys

from tests.simulation.harness import SimulationFailure, run_seed


def main() -> int:
    """Runs one seed, or all from SEED to LAST_SEED; returns 1 when one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("last_seed", type=int, nargs="?")
    parser.add_argument("--fault", action="store_true", help="let one step of one slice fail")
    parser.add_argument("--trace", action="store_true", help="print every event as it happens")
    arguments = parser.parse_args()
    last = arguments.last_seed if arguments.last_seed is not None else arguments.seed
    failed = []
    for seed in range(arguments.seed, last + 1):
        try:
            outcome = run_seed(seed, fault=arguments.fault, live_trace=arguments.trace)
        except SimulationFailure as failure:
            failed.append(seed)
            print(str(failure).splitlines()[0] if last > arguments.seed else failure, f"(seed {seed})")
        else:
            if last == arguments.seed:
                print(outcome)
    print(f"{last + 1 - arguments.seed - len(failed)} seeds passed, failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
