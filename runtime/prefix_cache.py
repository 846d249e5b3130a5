"""Prefixes as chains of page digests, and the index from digests to the pages that hold their KV. Host only.

In a request's life: the scheduler computes the chain of a prompt once and routes by it; prefill and decode workers
match it against their own index. A digest names one full page *and everything before it*, so equal digests mean equal
KV wherever they are found. Digests are 128 bits of BLAKE2b over token ids: another tenant's prompt cannot be made to
collide, and a salt moves a tenant's chains apart from everybody else's.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec
import numpy as np

Digest = bytes

DIGEST_BYTES = 16
_DOMAIN = b"runtime.kv"


class PrefixChain(msgspec.Struct, frozen=True):
    """The full pages of a token sequence: `digests[i]` names pages 0..i. `root` is what an empty prefix has."""

    root: Digest
    digests: tuple[Digest, ...]

    def up_to(self, num_tokens: int, page_size: int) -> tuple[Digest, ...]:
        """Digests of the pages that lie within the first `num_tokens` tokens."""
        return self.digests[: num_tokens // page_size]

    def reusable(self, num_tokens: int, page_size: int) -> tuple[Digest, ...]:
        """Digests that a prompt of `num_tokens` may take from a cache: its last token is always computed anew."""
        return self.up_to(num_tokens - 1, page_size)


def chain_of(tokens: Sequence[int], page_size: int, salt: str | None = None) -> PrefixChain:
    """The chain of `tokens`; only sequences with the same salt can have digests in common."""
    root = _digest(_DOMAIN, (salt or "").encode())
    return PrefixChain(root, tuple(extend(root, tokens, page_size)))


def extend(parent: Digest, tokens: Sequence[int], page_size: int) -> list[Digest]:
    """Digests of the full pages of `tokens`, which follow the page (or root) that `parent` names."""
    data = np.asarray(tokens, np.int32).tobytes()
    step = page_size * 4
    digests = list[Digest]()
    for start in range(0, len(data) - step + 1, step):
        parent = _digest(parent, data[start : start + step])
        digests.append(parent)
    return digests


def _digest(parent: Digest, data: bytes) -> Digest:
    return blake2b(parent + data, digest_size=DIGEST_BYTES).digest()


class PrefixIndex:
    """Which page of one pool holds which prefix. A digest names one page, a page has at most one digest.

    `changes` tells what came and went since it was last forgotten, for those who keep a copy of the digests.
    """

    def __init__(self) -> None:
        self._pages: dict[Digest, int] = {}
        self._digests: dict[int, Digest] = {}
        self._changed: dict[Digest, bool] = {}

    def __contains__(self, page: int) -> bool:
        return page in self._digests

    @property
    def pages(self) -> dict[Digest, int]:
        """Pages by digest, as a copy."""
        return dict(self._pages)

    def find(self, digest: Digest) -> int | None:
        """The page that holds the prefix."""
        return self._pages.get(digest)

    def add(self, page: int, digest: Digest) -> None:
        """Enters a page, unless the prefix has one or the page is entered already."""
        if digest not in self._pages and page not in self._digests:
            self._pages[digest] = page
            self._digests[page] = digest
            self._changed[digest] = True

    def remove(self, page: int) -> None:
        """The page is about to hold something else."""
        digest = self._digests.pop(page)
        del self._pages[digest]
        self._changed[digest] = False

    @property
    def changes(self) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
        """Digests that are here now and those that are gone, of all that changed since the changes were forgotten."""
        added = tuple(digest for digest, is_here in self._changed.items() if is_here)
        return added, tuple(digest for digest, is_here in self._changed.items() if not is_here)

    def forget_changes(self) -> None:
        """What changed so far has been told."""
        self._changed.clear()


def count_leading(digests: Iterable[Digest], known: set[Digest]) -> int:
    """How many digests, from the first on, are known."""
    count = 0
    for digest in digests:
        if digest not in known:
            break
        count += 1
    return count
