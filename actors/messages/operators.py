"""What operators ask of gateway, scheduler and workers, and their answers."""

from actors.messages.base import Address, ErrorInfo, Key, Message
from actors.messages.workers import WorkerStatus


class DrainWorker(Message, frozen=True, kw_only=True):
    """Give the worker nothing new; what still runs on it at `deadline` gets another attempt elsewhere."""

    worker: Address
    deadline: float


class ResumeWorker(Message, frozen=True, kw_only=True):
    """Give the worker work again."""

    worker: Address


class AskDrain(Message, frozen=True, kw_only=True):
    """An operator wants a worker drained, or with None for a time resumed; answered with `DrainAnswer`."""

    worker: Address
    timeout_s: float | None
    reply_to: Address


class DrainAnswer(Message, frozen=True, kw_only=True):
    """It has been ordered, unless there is an error; `worker` is as it is then, None where there is no such worker."""

    worker: WorkerStatus | None
    error: ErrorInfo | None = None


class ChunkCorrupt(Message, frozen=True, kw_only=True):
    """A chunk arrived at `worker` with another checksum than it had left with; its sender is told that it is lost."""

    worker: Address
    key: Key
    sequence: int


class ForgetPrefixes(Message, frozen=True, kw_only=True):
    """An operator wants the worker's prefix cache emptied, as far as nobody uses it; answered with the next one."""

    reply_to: Address


class PrefixesForgotten(Message, frozen=True, kw_only=True):
    """So many pages of the worker's prefix cache were given up."""

    worker: Address
    num_pages: int


class GetStatus(Message, frozen=True, kw_only=True):
    """Ask the gateway for its counts; answered with `Status`."""

    reply_to: Address


class Status(Message, frozen=True, kw_only=True):
    """Requests in the ledger and workers that are down."""

    running: int
    draining: bool
    workers_down: tuple[str, ...]
