import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.buckets import (
    ACCELERATOR,
    CPU,
    MAX_PROGRAMS,
    Grain,
    doubling,
    fit,
    fit_mixed,
    plan_buckets,
    thin,
)
from runtime.topology import ROLES, Role


@pytest.mark.parametrize("grain", [CPU, ACCELERATOR], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("role", ROLES)
@given(
    pages=st.integers(1, 512),
    page_size=st.sampled_from([8, 16, 32, 64, 128, 256]),
    num_rows=st.integers(1, 1024),
)
def test_number_of_programs_is_bounded_and_everything_fits(
    role: Role, grain: Grain, pages: int, page_size: int, num_rows: int
) -> None:
    chunk = pages * page_size
    buckets = plan_buckets(role, chunk_tokens=chunk, num_rows=num_rows, page_size=page_size, grain=grain)
    assert buckets.num_programs <= MAX_PROGRAMS
    if role != "decode":
        assert fit(buckets.prefill, chunk) >= chunk
    if role != "prefill":
        assert fit(buckets.sample, num_rows) >= num_rows
        assert fit(buckets.decode, num_rows) >= num_rows
    if role == "mixed":
        tokens, rows = fit_mixed(buckets.mixed, chunk, num_rows)
        assert tokens >= chunk
        assert rows >= num_rows
    if role == "prefill":
        assert fit(buckets.gather, pages + 1) >= pages + 1


def test_reference_sizes() -> None:
    sizes = {"chunk_tokens": 512, "num_rows": 16, "page_size": 16}
    assert plan_buckets("prefill", **sizes).prefill == (32, 64, 128, 256, 512)
    assert plan_buckets("prefill", **sizes).gather == (4, 8, 16, 32, 33)
    assert plan_buckets("decode", **sizes).decode == (4, 8, 16)
    assert [plan_buckets(role, **sizes).sample for role in ROLES] == [(4, 8, 16)] * 3
    assert [plan_buckets(role, **sizes).num_programs for role in ROLES] == [16, 15, 24]


def test_an_accelerator_gets_few_and_large_ones() -> None:
    sizes = {"chunk_tokens": 2048, "num_rows": 256, "page_size": 128}
    assert plan_buckets("prefill", **sizes, grain=ACCELERATOR).prefill == (256, 512, 1024, 2048)
    assert plan_buckets("decode", **sizes, grain=ACCELERATOR).decode == (8, 16, 32, 128, 256)
    assert [plan_buckets(role, **sizes, grain=ACCELERATOR).sample for role in ROLES] == [(16,), (16, 256), (16, 256)]
    small = {"chunk_tokens": 32, "num_rows": 4, "page_size": 32}
    assert plan_buckets("mixed", **small, grain=ACCELERATOR).mixed == ((256, 8),)


def test_a_single_row_still_gets_the_smallest_fast_batch() -> None:
    assert plan_buckets("decode", chunk_tokens=32, num_rows=1, page_size=16).decode == (4,)


def test_doubling_ends_at_the_exact_maximum() -> None:
    assert doubling(4, 33) == (4, 8, 16, 32, 33)
    assert doubling(4, 4) == (4,)
    assert doubling(4, 2) == (4,)


@given(most=st.integers(2, 9), last=st.integers(1, 100_000))
def test_thinning_keeps_both_ends(most: int, last: int) -> None:
    sizes = doubling(4, last)
    kept = thin(sizes, most)
    assert len(kept) == min(most, len(sizes))
    assert (kept[0], kept[-1]) == (sizes[0], sizes[-1])
    assert list(kept) == sorted(set(kept))


def test_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="5 is more than"):
        fit((2, 4), 5)
    with pytest.raises(ValueError, match="5 tokens with 9 rows"):
        fit_mixed(((8, 4), (8, 8)), 5, 9)
