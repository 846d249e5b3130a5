"""Gathering and scattering pages on a TPU: copies from HBM to HBM, started page by page, several pages in flight.

Neither kernel computes anything, so nothing passes through the core's registers or VMEM: the scalar core reads page
numbers from SMEM and starts one DMA per page and layer. A page is contiguous in either layout of the pool. One program
serves all layers, so that the cost of starting a kernel is paid once per chunk.

`_for_each_page` bounds what is in flight: entry i may start when entry i - `PAGES_IN_FLIGHT` has arrived in all layers.
Each of the `PAGES_IN_FLIGHT` semaphores belongs to one entry at a time, and waiting for it means waiting for the bytes
of one page of every layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.implementations import Implementation, interpret_mode
from kernels.kv_pool import SENTINEL_PAGE

PAGES_IN_FLIGHT = 8
"""Entries whose copies are under way at a time, each of all layers: 28 layers of 128 KiB pages make 28 MiB."""

Ref = Any
"""A Pallas reference, or a part of one; jax does not type them."""


def gather_pages(pools: Sequence[jax.Array], page_ids: jax.Array, *, implementation: Implementation) -> jax.Array:
    """See `kernels.kv_pack.gather_pages`."""
    num_layers, num_entries = len(pools), page_ids.shape[0]

    def kernel(page_ids: Ref, *refs: Ref) -> None:
        pools, chunk, arrived = refs[:num_layers], refs[num_layers], refs[num_layers + 1]

        def start(entry: jax.Array, semaphore: Ref) -> None:
            for layer, pool in enumerate(pools):
                pltpu.make_async_copy(pool.at[page_ids[entry]], chunk.at[layer, entry], semaphore).start()

        def wait(entry: jax.Array, semaphore: Ref) -> None:
            _wait_for(chunk.at[:, entry], semaphore)

        _for_each_page(num_entries, arrived, start, wait)

    gathered: jax.Array = pl.pallas_call(
        kernel,
        out_shape=_struct((num_layers, num_entries, *pools[0].shape[1:]), pools[0].dtype),
        grid_spec=_grid_spec(1, num_layers, None),
        compiler_params=_compiler_params(),
        interpret=interpret_mode(implementation),
        name="gather_pages",
    )(page_ids, *pools)
    return gathered


def scatter_pages(
    pools: Sequence[jax.Array],
    chunk: jax.Array,
    source: jax.Array,
    page_ids: jax.Array,
    *,
    implementation: Implementation,
) -> list[jax.Array]:
    """See `kernels.kv_pack.scatter_pages`.

    Entries that go to the sentinel are left out: nobody reads that page, and as padding repeats it, two copies into it
    could be under way at once.
    """
    num_layers, num_entries = len(pools), page_ids.shape[0]

    def kernel(page_ids: Ref, source: Ref, *refs: Ref) -> None:
        chunk, pools, arrived = refs[num_layers], refs[num_layers + 1 : -1], refs[-1]

        def start(entry: jax.Array, semaphore: Ref) -> None:
            @pl.when(page_ids[entry] != SENTINEL_PAGE)
            def _() -> None:
                for layer, pool in enumerate(pools):
                    pages = chunk.at[layer, source[entry]]
                    pltpu.make_async_copy(pages, pool.at[page_ids[entry]], semaphore).start()

        def wait(entry: jax.Array, semaphore: Ref) -> None:
            @pl.when(page_ids[entry] != SENTINEL_PAGE)
            def _() -> None:
                _wait_for(chunk.at[:, 0], semaphore)

        _for_each_page(num_entries, arrived, start, wait)

    scattered: list[jax.Array] = pl.pallas_call(
        kernel,
        out_shape=[_struct(pool.shape, pool.dtype) for pool in pools],
        grid_spec=_grid_spec(2, num_layers + 1, num_layers),
        input_output_aliases={2 + layer: layer for layer in range(num_layers)},
        compiler_params=_compiler_params(),
        interpret=interpret_mode(implementation),
        name="scatter_pages",
    )(page_ids, source, *pools, chunk)
    return scattered


def _for_each_page(
    num_entries: int,
    arrived: Ref,
    start: Callable[[jax.Array, Ref], None],
    wait: Callable[[jax.Array, Ref], None],
) -> None:
    """Starts every entry's copies in order, at most `PAGES_IN_FLIGHT` entries at a time, and waits for all of them."""

    def semaphore(entry: jax.Array) -> Ref:
        return arrived.at[lax.rem(entry, PAGES_IN_FLIGHT)]

    def step(entry: jax.Array, carry: None) -> None:
        @pl.when(entry >= PAGES_IN_FLIGHT)
        def _() -> None:
            wait(entry - PAGES_IN_FLIGHT, semaphore(entry))

        start(entry, semaphore(entry))

    def drain(entry: jax.Array, carry: None) -> None:
        wait(entry, semaphore(entry))

    lax.fori_loop(0, num_entries, step, None)
    lax.fori_loop(max(num_entries - PAGES_IN_FLIGHT, 0), num_entries, drain, None)


def _wait_for(pages: Ref, semaphore: Ref) -> None:
    """Waits until as many bytes as `pages` has arrived; a semaphore counts bytes and knows no addresses."""
    copy: Any = pltpu.make_async_copy(pages, pages, semaphore)
    copy.wait()


def _struct(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    struct: Any = jax.ShapeDtypeStruct
    made: jax.ShapeDtypeStruct = struct(shape, dtype)
    return made


def _grid_spec(num_scalars: int, num_inputs: int, num_outputs: int | None) -> pltpu.PrefetchScalarGridSpec:
    """Everything stays in HBM. `num_outputs` None is one array, a number a list of so many, also of one."""
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=num_scalars,
        grid=(1,),
        in_specs=[anywhere] * num_inputs,
        out_specs=anywhere if num_outputs is None else [anywhere] * num_outputs,
        scratch_shapes=[pltpu.SemaphoreType.DMA((PAGES_IN_FLIGHT,))],
    )


def _compiler_params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(disable_bounds_checks=True)
