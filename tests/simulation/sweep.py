"""The boundary sweep: a fixed workload, struck once by every fault at the first, a middle and the last of each message.

What occurs is found by a run without the fault, which is the same run up to the moment that it strikes.
"""

from collections import Counter
from functools import cache

import msgspec

from actors.messages import Address, Message
from tests.simulation.faults import Boundary, Fault, Kind, is_struck, plan_sweep
from tests.simulation.harness import SimulationFailure, run_workload
from tests.simulation.injector import Struck
from tests.simulation.scenarios import SCENARIOS, scenario
from tests.simulation.workload import Workload


@cache
def count_boundaries(name: str) -> Counter[Boundary]:
    """How many messages cross each boundary of a scenario that no fault strikes."""
    counts: Counter[Boundary] = Counter()

    def observe(source: Address, target: Address, message: Message) -> None:
        boundary = Boundary.of(source, target, message)
        if is_struck(boundary):
            counts[boundary] += 1

    run_workload(scenario(name), observers=(observe,))
    return counts


def cases(name: str) -> list[Fault]:
    """What the sweep does to this scenario."""
    only = SCENARIOS[name].only
    counts = count_boundaries(name)
    return plan_sweep({boundary: counts[boundary] for boundary in counts if only is None or boundary.message in only})


def struck_by(name: str, fault: Fault) -> Workload:
    """The scenario with the fault."""
    workload = scenario(name)
    faults = (*workload.faults, fault)
    return msgspec.structs.replace(workload, faults=faults, replay=f"{workload.replay} --strike {fault}")


class Swept(msgspec.Struct, frozen=True):
    """What a part of the sweep came to: the faults that struck, and the reasons and replays of what failed."""

    runs: int
    struck: tuple[Struck, ...]
    failures: tuple[str, ...]


@cache
def sweep(name: str, kinds: tuple[Kind, ...]) -> Swept:
    """Runs the scenario's cases of these kinds, each with all invariants and every answer checked."""
    struck, failures, chosen = list[Struck](), list[str](), [case for case in cases(name) if case.kind in kinds]
    for fault in chosen:
        try:
            struck += run_workload(struck_by(name, fault)).struck
        except SimulationFailure as failure:
            struck += failure.struck
            failures.append(f"{failure.reason.splitlines()[0]}\n    python -m tests.simulation {failure.replay}")
    return Swept(len(chosen), tuple(struck), tuple(failures))
