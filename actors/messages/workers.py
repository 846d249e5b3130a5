"""What is said of workers: deaths, reports of what they hold, and what operators see."""

import msgspec

from actors.messages.base import Address, Held, Key, Message, WorkerState
from actors.messages.placing import Inventory
from runtime.topology import Role


class WorkerDown(Message, frozen=True, kw_only=True):
    """This life of a worker has ended; whatever it held is gone. `final` when the worker is not coming back."""

    worker: Address
    epoch: int
    reason: str
    final: bool = False


class WorkerUp(Message, frozen=True, kw_only=True):
    """A worker runs: said when it begins, with an empty pool, and again and again while it lives.

    `leases` have not begun, `running` are sequences; `prefills` are groups of which it has a job, a chunk that was not
    acknowledged or a hand-over that was not. `prefixes_version` is that of its last `PrefixesChanged`. `reads` counts
    how often it has read its inbox to the end.
    """

    inventory: Inventory
    role: Role
    page_size: int
    usable_pages: int
    num_rows: int
    leases: tuple[Held, ...] = ()
    running: tuple[Held, ...] = ()
    prefills: tuple[Key, ...] = ()
    prefixes_version: int = 0
    reads: int = 0


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as operators see it; `reason` is one line where it is not simply up.

    A worker that is down comes back, one that is lost does not. One that is draining gets nothing new, and is drained
    once it holds nothing. `corrupt_chunks` counts what arrived there with another checksum than it had left with.
    """

    name: Address
    role: Role
    state: WorkerState
    reason: str | None = None
    corrupt_chunks: int = 0
