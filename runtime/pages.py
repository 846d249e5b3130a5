"""Host-side accounting of one slice's KV pages.

A page is in exactly one state:

    free ──lease──> leased ──hold──> held ──release──> quarantined ──retire──> free, or cached if its prefix is known
     ^                                ^                     │                              │   │
     │                                └──── pin ────────────┴──────────────────────────────┘   │
     └──────────────────────────────────── evicted by a lease ────────────────────────────────┘

Leased pages are promised to a sequence that has not started; held pages belong to running work; quarantined pages have
no owner left, but a dispatched program may still name them, so they wait for its fence. Cached pages have no owner and
hold KV of a known prefix: a lease takes them when nothing is free, the least recently used first. What is known can be
pinned also out of quarantine: programs run in the order of their dispatch, so a later reader sees it whole. Page 0 is
the sentinel and never moves. The worker of the slice is the only writer.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from runtime.engine import SENTINEL_PAGE
from runtime.errors import OutOfPages
from runtime.prefix_cache import Digest, PrefixIndex

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
    """Who owns which page. `on_free` hears of every page whose content is given up, at that moment."""

    def __init__(self, num_pages: int, on_free: Callable[[int], None] | None = None) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages={num_pages}: a pool needs the sentinel and at least one page")
        self.index = PrefixIndex()
        self._state: list[PageState] = ["free"] * num_pages
        self._state[SENTINEL_PAGE] = "sentinel"
        self._refs = [0] * num_pages
        self._free: deque[int] = deque(range(1, num_pages))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._quarantine: deque[tuple[int, int]] = deque()
        self._fences: dict[int, int] = {}
        """Of pages in quarantine; an entry of the queue that does not agree is of a page that was pinned since."""
        self._retired = 0
        self._on_free = on_free

    @property
    def available_pages(self) -> int:
        """Pages that a lease may take now: the free ones and the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def cached_pages(self) -> int:
        """Pages that hold the KV of a known prefix and that nobody uses."""
        return len(self._cached)

    @property
    def quarantined_pages(self) -> int:
        """Pages that a lease may take when their fence retires."""
        return len(self._fences)

    def available_beside(self, pages: Iterable[int]) -> int:
        """Pages that a lease could still take once `pages` are pinned."""
        return self.available_pages - sum(self._state[page] == "cached" for page in pages)

    def state(self, page: int) -> PageState:
        """A page's state."""
        return self._state[page]

    def lease(self, count: int, refs: int = 1) -> tuple[int, ...]:
        """Takes `count` pages, each owned `refs` times. Raises OutOfPages and takes nothing when there are fewer.

        Cached pages are evicted when there are not enough free ones.
        """
        if count > self.available_pages:
            raise OutOfPages(f"{count} pages wanted, {self.available_pages} free or cached")
        while len(self._free) < count:
            self._evict()
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

    def release(self, pages: Sequence[int], fence: int) -> None:
        """Gives up one ownership of each page; the last one quarantines it until `fence` retires.

        `pages` are in token order; later ones become the older cache entries, so that a chain is evicted from its end.
        """
        for page in reversed(pages):
            assert self._state[page] in ("leased", "held"), (page, self._state[page])
            assert self._refs[page] > 0, page
            self._refs[page] -= 1
            if self._refs[page] == 0:
                self._state[page] = "quarantined"
                self._quarantine.append((fence, page))
                self._fences[page] = fence
        self.retire(self._retired)

    def retire(self, fence: int) -> None:
        """Ends the quarantine of pages whose fence is at most `fence`: all programs that name them are done."""
        self._retired = max(self._retired, fence)
        while self._quarantine and self._quarantine[0][0] <= self._retired:
            at, page = self._quarantine.popleft()
            if self._fences.get(page) != at:
                continue
            del self._fences[page]
            if page in self.index:
                self._state[page] = "cached"
                self._cached[page] = None
            else:
                self._give_up(page)

    # --- prefixes

    def match(self, digests: Sequence[Digest]) -> tuple[int, ...]:
        """Pages that hold the longest known prefix of the chain."""
        pages = list[int]()
        for digest in digests:
            page = self.index.find(digest)
            if page is None:
                break
            pages.append(page)
        return tuple(pages)

    def pin(self, pages: Iterable[int], refs: int = 1) -> None:
        """Adds `refs` ownerships of matched pages; those without an owner become held."""
        for page in pages:
            assert page in self.index, (page, self._state[page])
            self._cached.pop(page, None)
            self._fences.pop(page, None)
            self._state[page] = "held"
            self._refs[page] += refs

    def register(self, pages: Sequence[int], digests: Sequence[Digest]) -> None:
        """Tells that held pages hold (or, by work that is enqueued, will hold) the KV that the digests name."""
        for page, digest in zip(pages, digests, strict=True):
            assert self._state[page] == "held", (page, self._state[page])
            self.index.add(page, digest)

    def forget(self) -> int:
        """Gives up every page that is cached and that nobody uses; returns how many."""
        count = len(self._cached)
        for _ in range(count):
            self._evict()
        return count

    def _evict(self) -> None:
        page, _ = self._cached.popitem(last=False)
        self.index.remove(page)
        self._give_up(page)

    def _give_up(self, page: int) -> None:
        self._state[page] = "free"
        self._free.append(page)
        if self._on_free is not None:
            self._on_free(page)

    # --- checks

    def counts(self) -> PageCounts:
        """Pages by state."""
        tally = {name: 0 for name in ("free", "leased", "held", "cached", "quarantined", "sentinel")}
        for state in self._state:
            tally[state] += 1
        return PageCounts(total=len(self._state), **tally)

    def check_integrity(self) -> None:
        """Asserts that every page is in one state and that lists, states, references and the index agree."""
        assert len(set(self._free)) == len(self._free), "a page is free twice"
        assert {p for p, s in enumerate(self._state) if s == "free"} == set(self._free)
        assert {p for p, s in enumerate(self._state) if s == "cached"} == set(self._cached)
        assert {p for p, s in enumerate(self._state) if s == "quarantined"} == set(self._fences)
        assert set(self._fences.items()) <= {(page, fence) for fence, page in self._quarantine}, "a page is not queued"
        for page, state in enumerate(self._state):
            assert (self._refs[page] > 0) == (state in ("leased", "held")), (page, state, self._refs[page])
        for page in self.index.pages.values():
            assert self._state[page] in ("held", "cached", "quarantined"), (page, self._state[page])
        assert all(page in self.index for page in self._cached), "a cached page has no prefix"
        assert self._state[SENTINEL_PAGE] == "sentinel"
        assert self._state.count("sentinel") == 1
