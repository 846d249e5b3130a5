"""Packing pages of all layers into one array, and unpacking them into another pool.

In a request's life: after a prefill chunk its full pages are gathered for the transfer; on the decode slice
the arrived chunk is scattered into that slice's own pages.
"""

from collections.abc import Sequence

import jax

from kernels.checks import check_int32, check_pool, check_pool_for_tpu, require
from kernels.implementations import resolve
from kernels.kv_pack import reference, tpu

MAX_ENTRIES = 1 << 16
"""Most pages of one call of the kernels: `page_ids` and `source` lie in the 1 MiB of scalar memory."""


def check_pools(pools: Sequence[jax.Array]) -> None:
    """Refuses an empty list and pools of unequal shape or type."""
    require(len(pools) > 0, "pools is empty; one array per layer is needed")
    for layer, pool in enumerate(pools):
        check_pool(pool)
        require(
            pool.shape == pools[0].shape and pool.dtype == pools[0].dtype,
            f"pools[{layer}] is {pool.dtype}{list(pool.shape)}, pools[0] is {pools[0].dtype}{list(pools[0].shape)}",
        )


def check_entries(op: str, page_ids: jax.Array) -> None:
    """Refuses more entries than a TPU's scalar memory takes, and none at all."""
    num_entries = page_ids.shape[0]
    require(
        1 <= num_entries <= MAX_ENTRIES,
        f"{op}: page_ids has {num_entries} entries; the TPU kernel takes 1 to {MAX_ENTRIES}",
    )


def gather_pages(pools: Sequence[jax.Array], page_ids: jax.Array, *, implementation: str | None = None) -> jax.Array:
    """Copies pages of all layers into one array.

    Args:
        pools: L arrays `[P, K, 2, page, H]`, or side by side (see `kernels.kv_pool`), of one shape and type; not
            donated.
        page_ids: `int32[n]`, inside the pool; padding entries are 0, the sentinel.
        implementation: see `kernels.implementations`; None lets the op choose.

    Returns:
        `[L, n, ...]`: for each layer the n pages as the pools lay them out, of the pools' storage type; padding
        entries hold what the sentinel holds.

    Raises:
        ValueError: an argument's shape or type is wrong; the text names it.
    """
    check_pools(pools)
    check_int32("page_ids", page_ids, 1)
    chosen = resolve("gather_pages", implementation)
    if chosen == "xla":
        return reference.gather_pages(pools, page_ids)
    check_pool_for_tpu("gather_pages", pools[0])
    check_entries("gather_pages", page_ids)
    return tpu.gather_pages(pools, page_ids, implementation=chosen)


def scatter_pages(
    pools: Sequence[jax.Array],
    chunk: jax.Array,
    source: jax.Array,
    page_ids: jax.Array,
    *,
    implementation: str | None = None,
) -> list[jax.Array]:
    """The pools with page `page_ids[i]` of layer l replaced by `chunk[l, source[i]]`.

    Args:
        pools: L arrays `[P, K, 2, page, H]`, or side by side (see `kernels.kv_pool`), of one shape and type;
            donate them to the enclosing jit.
        chunk: `[L, m, ...]` as `gather_pages` returns it, of the pools' storage type.
        source: `int32[n]`, entries of the chunk, 0..m-1.
        page_ids: `int32[n]`, distinct pages; padding entries are 0, the sentinel, and may repeat.
        implementation: see `kernels.implementations`; None lets the op choose.

    Returns:
        L arrays like `pools`. What the sentinel holds is not specified.

    Raises:
        ValueError: an argument's shape or type is wrong; the text names it.
    """
    check_pools(pools)
    check_int32("source", source, 1)
    check_int32("page_ids", page_ids, 1)
    require(source.shape == page_ids.shape, f"{source.shape=} differs from {page_ids.shape=}")
    require(
        chunk.ndim == pools[0].ndim + 1
        and chunk.shape[0] == len(pools)
        and chunk.shape[2:] == pools[0].shape[1:]
        and chunk.dtype == pools[0].dtype,
        f"chunk is {chunk.dtype}{list(chunk.shape)}; pools need "
        f"{pools[0].dtype}[{len(pools)}, m, {', '.join(map(str, pools[0].shape[1:]))}]",
    )
    chosen = resolve("scatter_pages", implementation)
    if chosen == "xla":
        return reference.scatter_pages(pools, chunk, source, page_ids)
    check_pool_for_tpu("scatter_pages", pools[0])
    check_entries("scatter_pages", page_ids)
    return tpu.scatter_pages(pools, chunk, source, page_ids, implementation=chosen)
