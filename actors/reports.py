"""What a worker tells the scheduler about itself: its inventory and its cached prefixes, when they have changed."""

from collections.abc import Callable

from actors.context import Context
from actors.messages import GATEWAY, SCHEDULER, Inventory, PrefixesChanged, WorkerUp
from runtime.engine import EngineSpec
from runtime.prefix_cache import PrefixIndex
from runtime.topology import Role


class WorkerReports:
    """One worker's reports. Nothing is sent that the scheduler knows already."""

    def __init__(self, index: PrefixIndex, take_inventory: Callable[[], Inventory]) -> None:
        self._index = index
        self._take_inventory = take_inventory
        self._known: Inventory | None = None

    def announce(self, ctx: Context, role: Role, spec: EngineSpec) -> None:
        """The worker runs, with an empty pool."""
        inventory = self.inventory()
        up = WorkerUp(
            inventory=inventory,
            role=role,
            page_size=spec.page_size,
            usable_pages=spec.usable_pages,
            num_rows=spec.num_rows,
        )
        ctx.post(SCHEDULER, up)
        ctx.post(GATEWAY, up)

    def inventory(self) -> Inventory:
        """The inventory as it is now, for a message that carries it."""
        self._known = self._take_inventory()
        return self._known

    def expect_more(self) -> None:
        """The scheduler counts on something that may not come to be: the next report is sent whatever it says."""
        self._known = None

    def send(self, ctx: Context) -> None:
        """Tells what has changed since it was last told; what finds no room is told again."""
        inventory = self._take_inventory()
        if inventory != self._known and ctx.post(SCHEDULER, inventory):
            self._known = inventory
        added, removed = self._index.changes
        if added or removed:
            changed = PrefixesChanged(worker=inventory.worker, added=added, removed=removed)
            if ctx.post(SCHEDULER, changed):
                self._index.forget_changes()
