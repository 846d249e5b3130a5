"""Page accounting under random use: states add up, nothing is owned twice, nothing comes back early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import OutOfPages
from runtime.pages import PagePool


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
    assert pool.free_pages == 3


def test_a_lease_takes_all_or_nothing() -> None:
    pool = PagePool(4)
    with pytest.raises(OutOfPages):
        pool.lease(4)
    assert pool.free_pages == 3


def test_a_shared_page_waits_for_its_last_owner() -> None:
    pool = PagePool(3)
    (page,) = pool.lease(1, refs=2)
    pool.release([page], fence=0)
    assert pool.free_pages == 1
    pool.release([page], fence=0)
    assert pool.free_pages == 2


def test_release_without_ownership_is_an_error() -> None:
    pool = PagePool(3)
    (page,) = pool.lease(1)
    pool.release([page], fence=0)
    with pytest.raises(AssertionError):
        pool.release([page], fence=0)


def test_a_pool_needs_a_page_beside_the_sentinel() -> None:
    with pytest.raises(ValueError, match="num_pages=1"):
        PagePool(1)


@given(st.lists(st.tuples(st.sampled_from(["lease", "hold", "release", "retire"]), st.integers(0, 5)), max_size=80))
def test_random_use_keeps_the_books(operations: list[tuple[str, int]]) -> None:
    """A model with plain sets beside the pool: both must agree after every operation."""
    pool, owned, fence = PagePool(12), list[tuple[int, ...]](), 0
    quarantined: list[tuple[int, int]] = []
    for name, number in operations:
        if name == "lease" and number <= pool.free_pages:
            owned.append(pool.lease(number))
        elif name == "hold" and owned:
            pool.hold(owned[number % len(owned)])
        elif name == "release" and owned:
            fence += 1
            pages = owned.pop(number % len(owned))
            quarantined += [(fence, page) for page in pages]
            pool.release(pages, fence)
        elif name == "retire":
            retired = max(0, fence - number)
            pool.retire(retired)
            quarantined = [(at, page) for at, page in quarantined if at > retired]
        pool.check_integrity()
        counts = pool.counts()
        in_use = sum(len(pages) for pages in owned)
        assert counts.leased + counts.held == in_use
        assert counts.quarantined <= len(quarantined)
        assert counts.free + in_use + counts.quarantined + counts.cached + counts.sentinel == counts.total == 12
        assert len({page for pages in owned for page in pages}) == in_use
