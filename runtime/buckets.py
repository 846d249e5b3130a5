"""Shape buckets: which programs a role compiles, and which of them a step of given size uses.

Every program is compiled before the first request, so their number is bounded (`MAX_PROGRAMS` per role). Buckets are
powers of two plus the exact maximum; where a role needs more programs than allowed, the middle ones are thinned out.
Pure functions, no jax.
"""

from collections.abc import Sequence
from typing import assert_never

import msgspec

from runtime.topology import Role

MAX_PROGRAMS = 24
MAX_SAMPLE = 3
MIN_PAGES = 4
SET_ROWS = (1, 8)
_NUM_INIT_PROGRAMS = 1


class Grain(msgspec.Struct, frozen=True, kw_only=True):
    """How finely a platform's steps are cut: the smallest sizes, the rows of sampling programs, at most how many
    prefill and decode sizes a role of its own has, and how many decode sizes one has that does both.
    """

    min_prefill_tokens: int
    min_rows: int
    sample: tuple[int, ...]
    max_prefill: int
    max_decode: int
    max_shared_decode: int


CPU = Grain(min_prefill_tokens=32, min_rows=4, sample=(4, 8, 16), max_prefill=9, max_decode=9, max_shared_decode=3)
"""XLA's CPU matrix product is ten times slower with one row than with four; from there on time follows the rows."""

ACCELERATOR = Grain(min_prefill_tokens=256, min_rows=8, sample=(16,), max_prefill=5, max_decode=5, max_shared_decode=4)
"""Fewer tokens than the peak FLOP/s over the memory bandwidth (v6e: 560 in bfloat16) take no less time than that many:
the step reads all weights either way. And every program costs half a minute of XLA's TPU compiler.
"""


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes for which one role has programs, ascending. `mixed` is (prefill tokens, decode rows)."""

    prefill: tuple[int, ...] = ()
    decode: tuple[int, ...] = ()
    mixed: tuple[tuple[int, int], ...] = ()
    sample: tuple[int, ...] = ()
    set_rows: tuple[int, ...] = SET_ROWS
    gather: tuple[int, ...] = ()
    insert: tuple[int, ...] = ()

    @property
    def num_programs(self) -> int:
        """Programs that warm-up compiles, the one that makes empty state included."""
        sizes = (self.prefill, self.decode, self.mixed, self.sample, self.set_rows, self.gather, self.insert)
        return sum(len(part) for part in sizes) + _NUM_INIT_PROGRAMS


def plan_buckets(role: Role, *, chunk_tokens: int, num_rows: int, page_size: int, grain: Grain = CPU) -> Buckets:
    """The buckets of a role. A chunk that starts inside a page touches `ceil(chunk/page) + 1` pages.

    Where the largest size asked for is below the grain's smallest, that one is the only bucket.
    """
    tokens = doubling(grain.min_prefill_tokens, chunk_tokens)
    rows = doubling(grain.min_rows, num_rows)
    pages = doubling(MIN_PAGES, -(-chunk_tokens // page_size) + 1)
    tail = pages[:1]
    # The largest holds all rows of a deferred step.
    sample = thin(sorted({*grain.sample, rows[-1]}), MAX_SAMPLE)
    match role:
        case "prefill":
            return Buckets(prefill=thin(tokens, grain.max_prefill), sample=grain.sample, gather=thin(pages, 8))
        case "decode":
            return Buckets(decode=thin(rows, grain.max_decode), sample=sample, gather=tail, insert=thin(pages, 8))
        case "mixed":
            return Buckets(
                prefill=thin(tokens, 4),
                decode=thin(rows, grain.max_shared_decode),
                mixed=tuple((t, b) for t in thin(tokens, 3) for b in thin(rows, 3)),
                sample=sample,
                gather=tail,
                insert=tail,
            )
        case _:
            assert_never(role)


def doubling(first: int, last: int) -> tuple[int, ...]:
    """`first`, twice that, ... below `last`, then `last` itself (at least `first`)."""
    sizes = []
    size = first
    while size < last:
        sizes.append(size)
        size *= 2
    return (*sizes, max(first, last))


def thin(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` (two or more) of the sizes, evenly spread; the smallest and the largest always stay."""
    if len(sizes) <= most:
        return tuple(sizes)
    steps = most - 1
    return tuple(sizes[round(index * (len(sizes) - 1) / steps)] for index in range(most))


def fit(sizes: Sequence[int], count: int) -> int:
    """The smallest bucket that holds `count`. Raises ValueError if none does."""
    for size in sizes:
        if count <= size:
            return size
    raise ValueError(f"{count} is more than the largest bucket of {tuple(sizes)}")


def fit_mixed(sizes: Sequence[tuple[int, int]], num_tokens: int, num_rows: int) -> tuple[int, int]:
    """The smallest (tokens, rows) pair that holds both. Raises ValueError if none does."""
    fitting = [pair for pair in sizes if num_tokens <= pair[0] and num_rows <= pair[1]]
    if not fitting:
        raise ValueError(f"{num_tokens} tokens with {num_rows} rows are more than any of {tuple(sizes)}")
    return min(fitting)
