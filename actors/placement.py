"""The scheduler's view of workers and its pure choices over it: who decodes and who prefills.

The workers' own accounting is the truth. A view holds the last inventory that the worker sent, minus what has been
asked of it since. Costs are in tokens of KV: what a worker holds, what it has to compute and what has to come to it.
A cached prefix is worth as much as the difference in load that it makes up for, so that a popular prefix does not
pile all its requests on one worker.
"""

from collections.abc import Iterable

from actors.leases import lease_pages
from actors.messages import Address, Admit, Inventory, Key, PrefixesChanged, WorkerUp
from actors.reconcile import choice_keys
from runtime.prefix_cache import Digest, PrefixChain, count_leading
from runtime.topology import Role


class WorkerView:
    """One life of a worker as its reports describe it, with the reservations that it has not answered yet.

    `heard` is when it last told what it holds: choices in `held`, groups that have not begun in `leases`, and groups
    that it prefills in `prefills`, after it had read its inbox `reads` times.
    """

    def __init__(self, up: WorkerUp, now: float) -> None:
        self.address: Address = up.inventory.worker
        self.role = up.role
        self.page_size = up.page_size
        self.usable_pages = up.usable_pages
        self.num_rows = up.num_rows
        self.epoch = up.inventory.epoch
        self.inventory = up.inventory
        self.alive = True
        self.pending: dict[Key, tuple[int, int]] = {}
        self.prefill_tokens = 0
        self.prefixes: set[Digest] = set()
        self.prefixes_version = 0
        self.refused: set[Key] = set()
        self.report(up, now)

    def report(self, up: WorkerUp, now: float) -> None:
        """Takes over what the worker holds."""
        self.heard = now
        self.alive = True
        self.held = choice_keys((*up.leases, *up.running))
        self.leases = {held.key for held in up.leases}
        self.prefills = set(up.prefills)
        self.reads = up.reads
        self.prefixes_known = up.prefixes_version == self.prefixes_version

    def is_news(self, inventory: Inventory) -> bool:
        """Whether this is of the same life and newer than what is known."""
        return inventory.epoch == self.epoch and inventory.version > self.inventory.version

    def update(self, inventory: Inventory) -> None:
        """Takes the worker's word, if it is news."""
        if not self.is_news(inventory):
            return
        self.inventory = inventory
        self.prefill_tokens = inventory.queued_prefill_tokens
        self.refused.clear()

    def refuse(self, key: Key, inventory: Inventory) -> None:
        """The worker had no room for the group: until it has news, nothing is hoped for from its cache."""
        self.update(inventory)
        self.refused.add(key)

    def change_prefixes(self, message: PrefixesChanged) -> None:
        """Follows the worker's index of cached prefixes; changes to a state that was missed are left alone."""
        if message.epoch != self.epoch:
            return
        if message.whole and message.version >= self.prefixes_version:
            self.prefixes = set(message.added)
        elif message.version == self.prefixes_version + 1:
            self.prefixes.difference_update(message.removed)
            self.prefixes.update(message.added)
        else:
            return
        self.prefixes_version = message.version

    @property
    def available_pages(self) -> int:
        """Pages that a lease could take once the pending reservations are granted."""
        return self.inventory.available_pages - sum(pages for pages, _ in self.pending.values())

    @property
    def free_rows(self) -> int:
        """Free rows, likewise."""
        return self.inventory.free_rows - sum(rows for _, rows in self.pending.values())

    @property
    def used_tokens(self) -> int:
        """Tokens of KV that running work holds or has been promised."""
        return (self.usable_pages - self.available_pages) * self.page_size


def cached_tokens(view: WorkerView, admit: Admit, prefix: PrefixChain | None) -> int:
    """Tokens of the group that the worker holds already, as far as the scheduler knows."""
    if prefix is None:
        return 0
    reusable = prefix.reusable(len(admit.tokens), view.page_size)
    return count_leading(reusable, view.prefixes) * view.page_size


def need(view: WorkerView, admit: Admit, reserve_tokens: int, prefix: PrefixChain | None = None) -> tuple[int, int]:
    """Pages and rows that the group takes on this worker.

    Pages of `prefix` that the worker holds are hoped to be in use already, which costs nothing; those that are cached
    without an owner count as available, so the worker may have to refuse, and then they are not counted again.
    """
    shared, own = lease_pages(view.page_size, len(admit.tokens), reserve_tokens, len(admit.choices))
    hoped = 0 if admit.key in view.refused else cached_tokens(view, admit, prefix) // view.page_size
    return shared - hoped + own * len(admit.choices), len(admit.choices)


def choose_decode(
    views: Iterable[WorkerView], admit: Admit, reserve_tokens: int, prefix: PrefixChain | None
) -> WorkerView | None:
    """Of the living decode workers that can take the group now, the one with the least KV to hold and to receive.

    A mixed worker also counts what it has to prefill before the group's own prompt.
    """

    def cost(view: WorkerView) -> tuple[int, int, int]:
        tokens = view.used_tokens + len(admit.tokens) - cached_tokens(view, admit, prefix)
        backlog = view.prefill_tokens if view.role == "mixed" else 0
        return tokens + backlog, -view.available_pages, -view.free_rows

    def fits(view: WorkerView) -> bool:
        pages, rows = need(view, admit, reserve_tokens, prefix)
        return view.alive and view.role != "prefill" and pages <= view.available_pages and rows <= view.free_rows

    return min(filter(fits, views), key=cost, default=None)


def choose_prefill(
    views: Iterable[WorkerView], decode: WorkerView, admit: Admit, prefix: PrefixChain | None
) -> WorkerView | None:
    """The decode worker itself where it is mixed; else the living prefill worker that will be done first."""
    if decode.role == "mixed":
        return decode
    alive = [view for view in views if view.alive and view.role == "prefill"]
    return min(alive, key=lambda view: view.prefill_tokens - cached_tokens(view, admit, prefix), default=None)


def never_fits(views: Iterable[WorkerView], admit: Admit, reserve_tokens: int) -> str | None:
    """Why no decode worker could take the group even when empty; None when one could."""
    reason: str | None = None
    for view in views:
        if view.role == "prefill":
            continue
        pages, rows = need(view, admit, reserve_tokens)
        if pages <= view.usable_pages and rows <= view.num_rows:
            return None
        reason = (
            f"{len(admit.choices)} choices of {len(admit.tokens)} tokens need {pages} KV pages and {rows} rows; "
            f"a decode worker has {view.usable_pages} pages and {view.num_rows} rows"
        )
    return reason


def has_path(roles: Iterable[Role]) -> bool:
    """Whether workers of these roles can serve a request from its prompt to its end."""
    present = set(roles)
    return "mixed" in present or {"prefill", "decode"} <= present
