"""What a worker tells the scheduler of itself: inventory and prefixes when they change, and what it holds every beat.

The heartbeat is a child task: it goes on while the worker waits for its slice.
"""

from collections.abc import Callable

import msgspec

from actors.context import Context
from actors.messages import GATEWAY, SCHEDULER, Held, Inventory, Key, PrefixesChanged, WorkerUp
from runtime.engine import EngineSpec
from runtime.prefix_cache import PrefixIndex
from runtime.topology import Role


class Holdings(msgspec.Struct, frozen=True):
    """What a worker has in hand, as `WorkerUp` tells it."""

    leases: tuple[Held, ...]
    running: tuple[Held, ...]
    prefills: tuple[Key, ...]


class WorkerReports:
    """One life's reports. `take_inventory` gets the version that the inventory is to have.

    `reads` counts how often the worker has read its inbox to the end; while it `waits` for a message, it always has.
    """

    def __init__(
        self, index: PrefixIndex, epoch: int, take_inventory: Callable[[int], Inventory], hold: Callable[[], Holdings]
    ) -> None:
        self._index = index
        self._epoch = epoch
        self._take_inventory = take_inventory
        self._hold = hold
        self._known: Inventory | None = None
        self._version = 0
        self._prefixes_version = 0
        self._ended = False
        self.reads = 0
        self.waits = False

    def start(self, ctx: Context, role: Role, spec: EngineSpec, heartbeat_s: float) -> None:
        """The worker runs, with an empty pool; its heart beats from now on."""
        self._announce(ctx, role, spec)
        ctx.spawn("heartbeat", lambda: self._beat(ctx, role, spec, heartbeat_s))

    def end(self) -> None:
        """The worker has ended."""
        self._ended = True

    async def _beat(self, ctx: Context, role: Role, spec: EngineSpec, heartbeat_s: float) -> None:
        while True:
            await ctx.sleep(heartbeat_s)
            if self._ended:
                return
            self.reads += self.waits
            self._announce(ctx, role, spec)

    def _announce(self, ctx: Context, role: Role, spec: EngineSpec) -> None:
        """Tells the scheduler everything, and the gateway that the worker lives."""
        holdings = self._hold()
        up = WorkerUp(
            inventory=self.inventory(),
            role=role,
            page_size=spec.page_size,
            usable_pages=spec.usable_pages,
            num_rows=spec.num_rows,
        )
        full = msgspec.structs.replace(
            up,
            leases=holdings.leases,
            running=holdings.running,
            prefills=holdings.prefills,
            prefixes_version=self._prefixes_version,
            reads=self.reads,
        )
        ctx.post(SCHEDULER, full)
        ctx.post(GATEWAY, up)

    def inventory(self) -> Inventory:
        """The inventory as it is now, for a message that carries it."""
        self._version += 1
        self._known = self._take_inventory(self._version)
        return self._known

    def expect_more(self) -> None:
        """The scheduler counts on something that may not come to be: the next report is sent whatever it says."""
        self._known = None

    def send(self, ctx: Context) -> None:
        """Tells what has changed since it was last told; what finds no room is told again."""
        inventory = self._take_inventory(self._version)
        if inventory != self._known:
            inventory = msgspec.structs.replace(inventory, version=self._version + 1)
            if ctx.post(SCHEDULER, inventory):
                self._version += 1
                self._known = inventory
        added, removed = self._index.changes
        if added or removed:
            self._tell_prefixes(ctx, added, removed, whole=False)

    def resend_prefixes(self, ctx: Context) -> None:
        """The scheduler has missed some."""
        self._tell_prefixes(ctx, tuple(self._index.pages), (), whole=True)

    def _tell_prefixes(
        self, ctx: Context, added: tuple[bytes, ...], removed: tuple[bytes, ...], *, whole: bool
    ) -> None:
        version = self._prefixes_version + 1
        changed = PrefixesChanged(
            worker=ctx.address, epoch=self._epoch, version=version, added=added, removed=removed, whole=whole
        )
        if ctx.post(SCHEDULER, changed):
            self._prefixes_version = version
            self._index.forget_changes()
