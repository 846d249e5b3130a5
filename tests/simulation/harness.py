"""One simulated run from a seed to its verdict."""

from collections.abc import Sequence

import msgspec

from tests.simulation import checks
from tests.simulation.carrier import Observer
from tests.simulation.injector import Struck
from tests.simulation.system import SimSystem
from tests.simulation.workload import Workload, draw_faulty_workload, draw_workload

MAX_STEPS = 200_000
MAX_TIME_S = 2000.0
SETTLE_S = 30.0
"""This long after the last client and the last fault, everything is at rest again."""

RECOVERED_S = 30.0
"""By then after the last fault, every stream goes on or has ended."""

_QUIET_S = 3
"""Seconds for which everything has to stay at rest."""

_CHECK_EVERY = 29


class SimulationFailure(AssertionError):
    """A run broke an invariant. The text says which, how to replay it and what happened last.

    `reason` is which in one line, `replay` the arguments of `python -m tests.simulation`, `around` the events around
    each planned fault, `struck` the faults that came to pass.
    """

    def __init__(self, reason: str, system: SimSystem) -> None:
        workload, trace = system.workload, system.carrier.trace
        self.reason, self.replay, self.around = reason, workload.replay, trace.around_marks()
        self.struck = tuple(system.injector.struck)
        lines = [reason, ""]
        if self.replay:
            lines.append(f"replay: python -m tests.simulation {self.replay}")
        lines += [f"topology {workload.topology}, {workload.spec}", ""]
        if self.around:
            lines += ["around each fault:", self.around, "", "at the end:"]
        super().__init__("\n".join([*lines, trace.text()]))


class Outcome(msgspec.Struct, frozen=True):
    """What a run that held all invariants did."""

    trace_hash: int
    steps: int
    virtual_s: float
    messages: dict[str, int]
    completed: int
    failed: int
    left: int
    cached_tokens: int
    moved_tokens: int
    evicted_pages: int
    struck: tuple[Struck, ...] = ()


def run_seed(seed: int, fault: bool = False, live_trace: bool = False) -> Outcome:
    """The mixed traffic of a seed, undisturbed or with a fault. Raises SimulationFailure."""
    return run_workload(draw_faulty_workload(seed) if fault else draw_workload(seed), live_trace)


def run_workload(workload: Workload, live_trace: bool = False, observers: Sequence[Observer] = ()) -> Outcome:
    """Runs to rest and checks every invariant; `observers` see every message. Raises SimulationFailure."""
    system = SimSystem(workload, live_trace)
    system.carrier.observers += observers
    try:
        return _run(system)
    except Exception as error:
        raise SimulationFailure(f"{type(error).__name__}: {error}", system) from error
    finally:
        for address in list(system.carrier.inboxes):
            system.carrier.kill(address)


def _run(system: SimSystem) -> Outcome:
    loop = system.carrier.loop

    def check_step() -> None:
        checks.check_engines(system.engines.values())
        if loop.steps % _CHECK_EVERY == 0:
            checks.check_pages(system.workers)

    loop.on_step = check_step
    loop.run_until(system.clients_done, MAX_TIME_S, MAX_STEPS)
    for client in system.clients:
        checks.check_client(client, system.workload)
    if system.workload.disturbed:
        calm_s = max(system.quiet_at, *(plan.arrival_s for plan in system.workload.requests))
        checks.check_promptness(system.clients, calm_s + RECOVERED_S)
        _settle(system)
    loop.run_until(loop.is_idle, MAX_TIME_S, MAX_STEPS)
    for client in system.clients:
        checks.check_client(client, system.workload)
    _check_rest(system)
    return _outcome(system)


def _settle(system: SimSystem) -> None:
    """Runs on second by second until all is at rest, and a while longer: what was put right stays right."""
    loop = system.carrier.loop
    limit_s = max(loop.now, system.quiet_at) + SETTLE_S
    quiet = 0
    while quiet < _QUIET_S and loop.now < limit_s:
        _run_for(system, 1.0)
        quiet = quiet + 1 if loop.now > system.quiet_at and _is_at_rest(system) else 0


def _run_for(system: SimSystem, duration_s: float) -> None:
    loop = system.carrier.loop
    until_s = loop.now + duration_s
    loop.after(duration_s, lambda: None, background=True)
    loop.run_until(lambda: loop.now >= until_s, MAX_TIME_S, MAX_STEPS)


def _is_at_rest(system: SimSystem) -> bool:
    try:
        _check_rest(system)
    except AssertionError:
        return False
    return True


def _check_rest(system: SimSystem) -> None:
    checks.check_pages(system.workers)
    checks.check_carrier_at_rest(system.carrier)
    checks.check_gateway_at_rest(system.gateway)
    for worker in system.workers:
        checks.check_worker_at_rest(worker, system.engines[worker.address])
    checks.check_scheduler_at_rest(system.scheduler, system.workers)


def _outcome(system: SimSystem) -> Outcome:
    terminals = [type(terminal).__name__ for client in system.clients for terminal in client.terminals]
    return Outcome(
        trace_hash=system.carrier.trace.hash,
        steps=system.carrier.loop.steps,
        virtual_s=system.carrier.loop.now,
        messages=dict(system.carrier.sent),
        completed=terminals.count("Completed"),
        failed=terminals.count("Failed"),
        left=sum(client.left for client in system.clients),
        cached_tokens=system.reuse.cached_tokens,
        moved_tokens=system.reuse.moved_tokens,
        evicted_pages=system.reuse.evicted_pages,
        struck=tuple(system.injector.struck),
    )
