"""Page accounting under random use: states add up, nothing is owned twice, nothing comes back early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import OutOfPages
from runtime.pages import PagePool
from runtime.prefix_cache import extend


def test_a_page_goes_round_its_states() -> None:
    freed: list[int] = []
    pool = PagePool(4, freed.append)
    pages = pool.lease(2)
    assert pool.counts().leased == 2
    pool.hold(pages)
    assert pool.counts().held == 2
    pool.release(pages, fence=3)
    assert (pool.counts().quarantined, freed) == (2, [])
    pool.retire(2)
    assert freed == []
    pool.retire(3)
    assert sorted(freed) == sorted(pages)
    assert pool.available_pages == 3


def test_a_lease_takes_all_or_nothing() -> None:
    pool = PagePool(4)
    with pytest.raises(OutOfPages):
        pool.lease(4)
    assert pool.available_pages == 3


def test_a_shared_page_waits_for_its_last_owner() -> None:
    pool = PagePool(3)
    (page,) = pool.lease(1, refs=2)
    pool.release([page], fence=0)
    assert pool.available_pages == 1
    pool.release([page], fence=0)
    assert pool.available_pages == 2


def test_release_without_ownership_is_an_error() -> None:
    pool = PagePool(3)
    (page,) = pool.lease(1)
    pool.release([page], fence=0)
    with pytest.raises(AssertionError):
        pool.release([page], fence=0)


def test_a_pool_needs_a_page_beside_the_sentinel() -> None:
    with pytest.raises(ValueError, match="num_pages=1"):
        PagePool(1)


A, B, C = (extend(b"", (number,) * 4, 4)[0] for number in range(3))


def filled(pool: PagePool, *digests: bytes) -> tuple[int, ...]:
    """Held pages that are known by these digests."""
    pages = pool.lease(len(digests))
    pool.hold(pages)
    pool.register(pages, digests)
    return pages


def test_a_known_page_is_cached_and_found_again() -> None:
    freed: list[int] = []
    pool = PagePool(4, freed.append)
    pages = filled(pool, A, B)
    pool.release(pages, fence=1)
    assert pool.match([A, B, C]) == pages, "what is in quarantine can be read by work that is enqueued later"
    pool.retire(1)
    assert (pool.counts().cached, pool.available_pages, freed) == (2, 3, [])
    assert pool.match([A, B, C]) == pages
    assert pool.match([C, A]) == (), "a chain is matched from its beginning"
    pool.pin(pages, refs=2)
    assert (pool.counts().held, pool.available_pages) == (2, 1)
    for _ in range(2):
        pool.release(pages, fence=2)
    pool.retire(2)
    assert pool.counts().cached == 2
    pool.check_integrity()


def test_a_page_pinned_out_of_quarantine_survives_its_old_fence() -> None:
    pool = PagePool(3)
    pages = filled(pool, A)
    pool.release(pages, fence=5)
    pool.pin(pool.match([A]))
    pool.retire(5)
    assert (pool.state(pages[0]), pool.quarantined_pages) == ("held", 0)
    pool.release(pages, fence=5)
    assert pool.state(pages[0]) == "cached"
    pool.check_integrity()


def test_a_lease_evicts_the_least_recently_used_and_a_chain_from_its_end() -> None:
    freed: list[int] = []
    pool = PagePool(5, freed.append)
    chain, other = filled(pool, A, B), filled(pool, C)
    pool.release(chain, fence=0)
    pool.release(other, fence=0)
    assert pool.available_beside(chain) == 2
    pool.lease(2)
    assert freed == [chain[1]]
    assert pool.match([A, B]) == chain[:1]
    pool.pin(pool.match([A]))
    pool.lease(1)
    assert freed == [chain[1], other[0]]
    with pytest.raises(OutOfPages):
        pool.lease(1)
    pool.check_integrity()


def test_a_second_page_with_the_same_content_stays_nameless() -> None:
    pool = PagePool(4)
    first, second = filled(pool, A), filled(pool, A)
    assert pool.match([A]) == first
    pool.release(second, fence=0)
    assert pool.state(second[0]) == "free"


def test_changes_of_the_index_are_told_once() -> None:
    pool = PagePool(3)
    pages = filled(pool, A, B)
    assert pool.index.changes == ((A, B), ())
    pool.index.forget_changes()
    pool.release(pages, fence=0)
    pool.lease(1)
    assert pool.index.changes == pool.index.changes == ((), (B,))
    pool.index.forget_changes()
    assert pool.index.changes == ((), ())


OPERATIONS = ["lease", "hold", "release", "retire", "register", "pin"]


@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 5)), max_size=80))
def test_random_use_keeps_the_books(operations: list[tuple[str, int]]) -> None:
    """A model with plain sets beside the pool: both must agree after every operation."""
    pool, owned, fence = PagePool(12), list[tuple[int, ...]](), 0
    digests = extend(b"", tuple(range(8)), 1)
    for name, number in operations:
        if name == "lease" and number <= pool.available_pages:
            owned.append(pool.lease(number))
        elif name == "hold" and owned:
            pool.hold(owned[number % len(owned)])
        elif name == "release" and owned:
            fence += 1
            pool.release(owned.pop(number % len(owned)), fence)
        elif name == "retire":
            pool.retire(max(0, fence - number))
        elif name == "register" and owned:
            pages = owned[number % len(owned)][: len(digests) - number]
            pool.hold(pages)
            pool.register(pages, digests[number : number + len(pages)])
        elif name == "pin":
            pages = pool.match(digests[number:])
            pool.pin(pages)
            owned.append(pages)
        pool.check_integrity()
        counts = pool.counts()
        in_use = {page for pages in owned for page in pages}
        assert counts.leased + counts.held == len(in_use)
        assert counts.free + counts.cached == pool.available_pages
        assert len(in_use) + counts.quarantined + pool.available_pages + counts.sentinel == counts.total == 12
