"""Workers that an operator has taken out: they get nothing new, and what is left on them in the end is moved.

Belongs to the scheduler. The order itself is kept by the gateway, which repeats it to a scheduler that lacks it.
"""

from collections.abc import Iterable, Mapping

from actors.grants import Grant
from actors.messages import Address, Key
from actors.placement import WorkerView


class _Drain:
    """One worker's drain. What is left at `deadline` is moved; at `busy_at` the worker was last known to have work."""

    def __init__(self, deadline: float, now: float) -> None:
        self.deadline = deadline
        self.busy_at = now


class Drains:
    """See the module. Sends nothing; the scheduler acts on the outcome."""

    def __init__(self) -> None:
        self._drains: dict[Address, _Drain] = {}
        self.drained: set[Address] = set()

    def order(self, worker: Address, deadline: float, now: float) -> None:
        """Begins a drain, or changes its deadline."""
        if worker in self._drains:
            self._drains[worker].deadline = deadline
        else:
            self._drains[worker] = _Drain(deadline, now)

    def resume(self, worker: Address) -> None:
        """Takes it back."""
        self._drains.pop(worker, None)
        self.drained.discard(worker)

    @property
    def workers(self) -> tuple[Address, ...]:
        """Those that get nothing new."""
        return tuple(self._drains)

    def open(self, views: Iterable[WorkerView]) -> list[WorkerView]:
        """Those that may get work."""
        return [view for view in views if view.address not in self._drains]

    def look(self, grants: Iterable[Grant], workers: Mapping[Address, WorkerView], now: float) -> list[Grant]:
        """Notes who is drained by now; returns grants whose time on a draining worker is over."""
        grants, overdue = list(grants), dict[Key, Grant]()
        for worker, drain in self._drains.items():
            left = [grant for grant in grants if _needs(grant, worker, workers)]
            if left:
                drain.busy_at = now
                overdue.update((grant.key, grant) for grant in left if drain.deadline <= now)
            view = workers.get(worker)
            if not left and (view is None or not view.alive or (_is_empty(view) and view.heard > drain.busy_at)):
                self.drained.add(worker)
            else:
                self.drained.discard(worker)
        return list(overdue.values())


def _needs(grant: Grant, worker: Address, workers: Mapping[Address, WorkerView]) -> bool:
    """Whether something of the group is still to be done by the worker: a prefill ends when all its choices decode."""
    if grant.decode == worker:
        return True
    if grant.prefill != worker:
        return False
    decode, prefill = workers.get(grant.decode), workers.get(worker)
    if decode is None or (prefill is not None and grant.key in prefill.prefills):
        return True
    return grant.key in decode.leases or any(grant.key.sibling(choice) not in decode.held for choice in grant.open)


def _is_empty(view: WorkerView) -> bool:
    """Whether the worker says that it holds nothing."""
    return not (view.held or view.leases or view.prefills or view.pending)
