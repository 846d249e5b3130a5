"""A KV pool whose pages hold tokens, so that wrong, early or reused KV raises instead of giving odd numbers.

Every slot of a page holds a token, its position and the fingerprint of the prefix it ends. A page is poisoned
when the page accounting frees it. An operation names pages by `PageRef`, which remembers how often the page
had been freed when the operation was enqueued: a page that is freed, or freed and reused, under a pending
operation is always noticed.
"""

from collections.abc import Callable, Sequence

import msgspec

from runtime.engine import SENTINEL_PAGE, EngineSpec
from tests.simulation.fake_tokens import fingerprint


class KvViolation(Exception):
    """KV was read or written that does not belong where the operation believes it does."""


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """KV of one token. `prefix` is the fingerprint of tokens 0..position."""

    token: int
    position: int
    prefix: int


class PageRef(msgspec.Struct, frozen=True, array_like=True):
    """A page as an operation named it: `epoch` counts how often it had been freed by then."""

    page: int
    epoch: int


NO_PAGE = PageRef(SENTINEL_PAGE, 0)
"""Where an overrun token goes."""


class FakePages:
    """The device-side pool of one fake engine. `is_free` asks the page accounting, where that is known."""

    def __init__(self, name: str, spec: EngineSpec) -> None:
        self.is_free: Callable[[int], bool] = lambda page: False
        self._name = name
        self._size = spec.page_size
        self._epochs = [0] * spec.num_pages
        self._poisoned = [False] * spec.num_pages
        self._slots: list[list[Slot | None]] = [[None] * spec.page_size for _ in range(spec.num_pages)]

    def refs(self, pages: Sequence[int]) -> list[PageRef]:
        """The pages as an operation that is enqueued now names them."""
        for page in pages:
            assert 0 <= page < len(self._slots), page
            if page != SENTINEL_PAGE and self.is_free(page):
                raise KvViolation(f"{self._name}: an operation names page {page}, which is free")
        return [PageRef(page, self._epochs[page]) for page in pages]

    def poison(self, page: int) -> None:
        """The page was freed: nothing may read what it holds, nothing pending may name it."""
        self._epochs[page] += 1
        self._poisoned[page] = True
        self._slots[page] = [None] * self._size

    def poison_all(self) -> None:
        """The pool was rebuilt."""
        for page in range(len(self._slots)):
            self.poison(page)

    def content(self, ref: PageRef, who: object) -> list[Slot | None]:
        """A page's slots."""
        if ref.page == SENTINEL_PAGE:
            raise KvViolation(f"{self._name}: {who} reads the sentinel page")
        self._check_epoch(ref, who)
        return self._slots[ref.page]

    def replace(self, ref: PageRef, content: list[Slot | None], who: object) -> None:
        """Overwrites a whole page."""
        self._check_epoch(ref, who)
        if ref.page != SENTINEL_PAGE:
            self._slots[ref.page] = list(content)
            self._poisoned[ref.page] = False

    def write(self, refs: Sequence[PageRef], slot: Slot, who: object) -> bool:
        """Writes one token at its position; False when that is in no page and goes to the sentinel."""
        column = slot.position // self._size
        ref = refs[column] if column < len(refs) else NO_PAGE
        self._check_epoch(ref, who)
        if ref.page == SENTINEL_PAGE:
            return False
        self._slots[ref.page][slot.position % self._size] = slot
        self._poisoned[ref.page] = False
        return True

    def read_prefix(self, refs: Sequence[PageRef], length: int, who: object) -> tuple[list[int], int]:
        """Tokens 0..length-1 as the pages have them, and their fingerprint. Any flaw raises."""
        tokens: list[int] = []
        prefix = 0
        content: list[Slot | None] = []
        for position in range(length):
            column, offset = divmod(position, self._size)
            if not offset:
                content = self._column(refs, column, length, who)
            slot = content[offset]
            if slot is None:
                state = "poisoned" if self._poisoned[refs[column].page] else "unwritten"
                raise KvViolation(f"{self._name}: {who} reads {state} {_place(refs, column, offset, position)}")
            token = slot.token
            prefix = fingerprint((token,), prefix)
            if slot.position != position or slot.prefix != prefix:
                place = _place(refs, column, offset, position)
                raise KvViolation(f"{self._name}: {who} reads another sequence's KV in {place}: {slot}")
            tokens.append(token)
        return tokens, prefix

    def _column(self, refs: Sequence[PageRef], column: int, length: int, who: object) -> list[Slot | None]:
        if column >= len(refs):
            raise KvViolation(f"{self._name}: {who} has no page for position {column * self._size} of {length}")
        return self.content(refs[column], who)

    def _check_epoch(self, ref: PageRef, who: object) -> None:
        if ref.page != SENTINEL_PAGE and ref.epoch != self._epochs[ref.page]:
            raise KvViolation(f"{self._name}: page {ref.page} was freed while {who} still names it")


def _place(refs: Sequence[PageRef], column: int, offset: int, position: int) -> str:
    return f"page {refs[column].page} slot {offset} at position {position}"
