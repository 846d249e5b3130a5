"""What the gateway knows of every worker, for operators: whether it lives, whether it is to be drained, and why.

The gateway hears of lives and deaths from the workers and their supervisors, and it is where drains are ordered. It
holds that order for as long as it stands: the scheduler is told again whenever it reports something else.
"""

from collections.abc import Iterable, Mapping

from actors.messages import Address, DrainWorker, ErrorInfo, Message, ResumeWorker, WorkerState, WorkerStatus
from actors.placement import has_path
from runtime.topology import Role

STARTING = "it has not started yet"


class _Worker:
    """One worker. `epoch` and `ended` tell the newest life that was heard of."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.epoch = 0
        self.ended = True
        self.lost = False
        self.reason = STARTING
        self.drain_until: float | None = None
        self.drained = False
        self.corrupt_chunks = 0

    @property
    def is_up(self) -> bool:
        return not self.ended and not self.lost

    @property
    def takes_work(self) -> bool:
        return self.is_up and self.drain_until is None

    @property
    def state(self) -> WorkerState:
        if self.lost:
            return "lost"
        if self.ended:
            return "down"
        if self.drain_until is None:
            return "up"
        return "drained" if self.drained else "draining"

    def status(self, name: Address) -> WorkerStatus:
        reason = self.reason if not self.is_up else None if self.drain_until is None else "an operator drains it"
        return WorkerStatus(
            name=name, role=self.role, state=self.state, reason=reason, corrupt_chunks=self.corrupt_chunks
        )


class WorkerBoard:
    """See the module. Pure state; the gateway sends the messages."""

    def __init__(self, roles: Mapping[Address, Role]) -> None:
        self._workers = {name: _Worker(role) for name, role in roles.items()}

    # --- lives

    def up(self, name: Address, epoch: int) -> None:
        """A life begins or goes on; what is said of earlier ones, or of one that has ended, is no news."""
        worker = self._workers[name]
        if (epoch, False) > (worker.epoch, worker.ended):
            worker.epoch, worker.ended, worker.lost, worker.drained = epoch, False, False, False

    def down(self, name: Address, epoch: int, reason: str, *, final: bool) -> None:
        """A life has ended; `final` when no other comes."""
        worker = self._workers[name]
        worker.lost = worker.lost or final
        if (epoch, True) > (worker.epoch, worker.ended) or final:
            worker.epoch, worker.ended, worker.reason = max(epoch, worker.epoch), True, reason

    def corrupt(self, name: Address) -> None:
        """One more chunk arrived there changed."""
        self._workers[name].corrupt_chunks += 1

    # --- drains

    def drain(self, name: Address, until: float) -> ErrorInfo | None:
        """Orders a drain; a second order replaces the time of the first. An error says why it may not be."""
        worker = self._workers.get(name)
        if worker is None:
            return self._unknown(name)
        if worker.lost:
            return ErrorInfo(status=409, message=f"{name} is lost: {worker.reason}.", code="worker_lost")
        others = {other: one for other, one in self._workers.items() if other != name}
        if not has_path(one.role for one in others.values() if one.takes_work):
            message = f"Without {name} no request could be served: {_why(others)}."
            return ErrorInfo(status=409, message=message, code="last_worker")
        worker.drained = worker.drained and worker.drain_until is not None
        worker.drain_until = until
        return None

    def resume(self, name: Address) -> ErrorInfo | None:
        """Takes a drain back; none is needed."""
        worker = self._workers.get(name)
        if worker is None:
            return self._unknown(name)
        worker.drain_until, worker.drained = None, False
        return None

    def corrections(self, draining: Iterable[Address], drained: Iterable[Address]) -> list[Message]:
        """Takes over what the scheduler reports of drains; returns what to tell it where they are not those ordered."""
        draining, drained = set(draining), set(drained)
        messages = list[Message]()
        for name, worker in self._workers.items():
            if worker.drain_until is not None and name not in draining:
                messages.append(DrainWorker(worker=name, deadline=worker.drain_until))
            elif worker.drain_until is None and name in draining:
                messages.append(ResumeWorker(worker=name))
            worker.drained = worker.drain_until is not None and name in drained
        return messages

    # --- what operators see

    def status(self, name: Address) -> WorkerStatus | None:
        """One worker; None when there is no such."""
        worker = self._workers.get(name)
        return None if worker is None else worker.status(name)

    def statuses(self) -> tuple[WorkerStatus, ...]:
        """All workers in the topology's order."""
        return tuple(worker.status(name) for name, worker in self._workers.items())

    def down_names(self) -> tuple[Address, ...]:
        """Workers that were up and are not."""
        return tuple(sorted(name for name, worker in self._workers.items() if worker.epoch and not worker.is_up))

    def _unknown(self, name: Address) -> ErrorInfo:
        message = f"There is no worker {name!r}; there are {', '.join(self._workers)}."
        return ErrorInfo(status=404, message=message, code="worker_not_found")


def _why(others: Mapping[Address, _Worker]) -> str:
    """What becomes of the rest."""
    idle = [f"{name} is {worker.state}" for name, worker in others.items() if not worker.takes_work]
    return ", ".join(idle) if idle else "it is the only one of its role"
