"""One simulated run from a seed to its verdict."""

import msgspec

from tests.simulation import checks
from tests.simulation.system import SimSystem
from tests.simulation.workload import Workload, draw_faulty_workload, draw_workload

MAX_STEPS = 200_000
MAX_TIME_S = 2000.0
RESTART_S = 30.0
"""By then every worker that failed has been started again."""

_CHECK_EVERY = 8


class SimulationFailure(AssertionError):
    """A run broke an invariant. The text says which, how to replay it and what happened last."""


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


def run_seed(seed: int, fault: bool = False, live_trace: bool = False) -> Outcome:
    """The mixed traffic of a seed, undisturbed or with a fault. Raises SimulationFailure."""
    return run_workload(draw_faulty_workload(seed) if fault else draw_workload(seed), live_trace)


def run_workload(workload: Workload, live_trace: bool = False) -> Outcome:
    """Runs to rest and checks every invariant. Raises SimulationFailure."""
    system = SimSystem(workload, live_trace)
    try:
        return _run(system)
    except Exception as error:
        text = f"{type(error).__name__}: {error}\n\n"
        text += f"replay: python -m tests.simulation {workload.replay}\n" if workload.replay else ""
        text += f"topology {workload.topology}, {workload.spec}\n\n{system.carrier.trace.text()}"
        raise SimulationFailure(text) from error
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
    if system.workload.faulty:
        settled_s = loop.now + RESTART_S
        loop.after(RESTART_S, lambda: None)
        loop.run_until(lambda: loop.now >= settled_s, MAX_TIME_S, MAX_STEPS)
    loop.run_until(loop.is_idle, MAX_TIME_S, MAX_STEPS)
    checks.check_pages(system.workers)
    for client in system.clients:
        checks.check_client(client, system.workload)
    checks.check_carrier_at_rest(system.carrier)
    checks.check_gateway_at_rest(system.gateway)
    for worker in system.workers:
        checks.check_worker_at_rest(worker, system.engines[worker.address])
    checks.check_scheduler_at_rest(system.scheduler, system.workers)
    return _outcome(system)


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
    )
