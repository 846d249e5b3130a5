"""Digest chains and the index: equal beginnings have equal digests, and nothing else has."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.prefix_cache import DIGEST_BYTES, PrefixIndex, chain_of, count_leading, extend

TOKENS = st.lists(st.integers(0, 3), max_size=24)


@given(TOKENS, TOKENS, st.sampled_from([1, 2, 4]))
def test_chains_agree_exactly_as_far_as_the_tokens_do(left: list[int], right: list[int], page_size: int) -> None:
    first, second = chain_of(left, page_size), chain_of(right, page_size)
    assert len(first.digests) == len(left) // page_size
    for page in range(min(len(first.digests), len(second.digests))):
        end = (page + 1) * page_size
        assert (first.digests[page] == second.digests[page]) == (left[:end] == right[:end])


@given(TOKENS, TOKENS)
def test_a_chain_can_be_continued(left: list[int], right: list[int]) -> None:
    left = left[: len(left) // 4 * 4]
    whole = chain_of(left + right, 4)
    begun = chain_of(left, 4)
    parent = begun.digests[-1] if begun.digests else begun.root
    assert begun.digests + tuple(extend(parent, right, 4)) == whole.digests


def test_salts_and_large_token_ids_make_chains_of_their_own() -> None:
    chains = [chain_of([1, 2, 3, 4], 4, salt).digests[0] for salt in (None, "a", "b")]
    chains.append(chain_of([1 + 256, 2, 3, 4], 4).digests[0])
    chains.append(chain_of([1, 2, 3, 4 + (1 << 24)], 4).digests[0])
    assert len(set(chains)) == 5
    assert all(len(digest) == DIGEST_BYTES for digest in chains)
    assert chain_of([1, 2, 3, 4], 4, None) == chain_of((1, 2, 3, 4), 4)


def test_the_last_token_is_never_reused() -> None:
    chain = chain_of(range(12), 4)
    assert [len(chain.reusable(num_tokens, 4)) for num_tokens in (1, 4, 5, 8, 9, 12)] == [0, 0, 1, 1, 2, 2]
    assert len(chain.up_to(12, 4)) == 3


def test_an_entry_that_comes_and_goes_between_two_questions_is_told_as_gone() -> None:
    index = PrefixIndex()
    index.add(1, b"a")
    index.remove(1)
    index.add(2, b"b")
    assert index.changes == ((b"b",), (b"a",))
    assert (index.find(b"b"), index.find(b"a"), 1 in index, 2 in index) == (2, None, False, True)


def test_counting_stops_at_the_first_gap() -> None:
    assert count_leading([b"a", b"b", b"c"], {b"a", b"c"}) == 1
    assert count_leading([], {b"a"}) == 0
