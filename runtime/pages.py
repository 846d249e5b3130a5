"""Host-side accounting of one slice's KV pages.

A page is in exactly one state:

    free ──lease──> leased ──hold──> held ──release──> quarantined ──retire──> free

Leased pages are promised to a sequence that has not started; held pages belong to running work; quarantined pages have
no owner left, but a dispatched program may still name them, so they wait for its fence. `cached` is the state of pages
that only the prefix cache keeps. Page 0 is the sentinel and never moves. The worker of the slice is the only writer.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from runtime.engine import SENTINEL_PAGE
from runtime.errors import OutOfPages

PageState = Literal["free", "leased", "held", "cached", "quarantined", "sentinel"]


class PageCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Pages by state; the states add up to `total`."""

    free: int
    leased: int
    held: int
    cached: int
    quarantined: int
    sentinel: int
    total: int


class PagePool:
    """Who owns which page. `on_free` hears of every page at the moment it becomes free."""

    def __init__(self, num_pages: int, on_free: Callable[[int], None] | None = None) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages}: a pool needs the sentinel and at least one page")
        self._state: list[PageState] = ["free"] * num_pages
        self._state[SENTINEL_PAGE] = "sentinel"
        self._refs = [0] * num_pages
        self._free: deque[int] = deque(range(1, num_pages))
        self._quarantine: deque[tuple[int, int]] = deque()
        self._retired = 0
        self._on_free = on_free

    @property
    def free_pages(self) -> int:
        """Pages that a lease may take now."""
        return len(self._free)

    @property
    def quarantined_pages(self) -> int:
        """Pages that become free when their fence retires."""
        return len(self._quarantine)

    def lease(self, count: int, refs: int = 1) -> tuple[int, ...]:
        """Takes `count` pages, each owned `refs` times. Raises OutOfPages and takes nothing when there are fewer."""
        if count > len(self._free):
            raise OutOfPages(f"{count} pages wanted, {len(self._free)} free")
        pages = tuple(self._free.popleft() for _ in range(count))
        for page in pages:
            self._state[page] = "leased"
            self._refs[page] = refs
        return pages

    def hold(self, pages: Iterable[int]) -> None:
        """Marks leased pages as in use; pages that are held already stay so."""
        for page in pages:
            assert self._state[page] in ("leased", "held"), (page, self._state[page])
            self._state[page] = "held"

    def release(self, pages: Iterable[int], fence: int) -> None:
        """Gives up one ownership of each page; the last one quarantines it until `fence` retires."""
        for page in pages:
            assert self._state[page] in ("leased", "held"), (page, self._state[page])
            assert self._refs[page] > 0, page
            self._refs[page] -= 1
            if self._refs[page] == 0:
                self._state[page] = "quarantined"
                self._quarantine.append((fence, page))
        self.retire(self._retired)

    def retire(self, fence: int) -> None:
        """Frees quarantined pages whose fence is at most `fence`: all programs that name them are done."""
        self._retired = max(self._retired, fence)
        while self._quarantine and self._quarantine[0][0] <= self._retired:
            _, page = self._quarantine.popleft()
            self._state[page] = "free"
            self._free.append(page)
            if self._on_free is not None:
                self._on_free(page)

    def counts(self) -> PageCounts:
        """Pages by state."""
        tally = {name: 0 for name in ("free", "leased", "held", "cached", "quarantined", "sentinel")}
        for state in self._state:
            tally[state] += 1
        return PageCounts(total=len(self._state), **tally)

    def check_integrity(self) -> None:
        """Asserts that every page is in one state and that lists, states and references agree."""
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        assert {p for p, s in enumerate(self._state) if s == "free"} == set(self._free)
        quarantined = [page for _, page in self._quarantine]
        assert len(set(quarantined)) == len(quarantined), "a page is quarantined twice"
        assert {p for p, s in enumerate(self._state) if s == "quarantined"} == set(quarantined)
        for page, state in enumerate(self._state):
            assert (self._refs[page] > 0) == (state in ("leased", "held")), (page, state, self._refs[page])
        assert self._state[SENTINEL_PAGE] == "sentinel"
        assert self._state.count("sentinel") == 1
