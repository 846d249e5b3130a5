"""Which programs an engine has: each step function bound to its bucket, its argument shapes and its shardings.

Donated arguments come back with the sharding they went in with; without that XLA would copy the whole pool. Step
functions are cached by their static arguments, so that engines of equal sizes trace each function once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.implementations import Implementation
from kernels.kv_pack import gather_pages, scatter_pages
from runtime import compat
from runtime.buckets import ACCELERATOR, CPU, Buckets, plan_buckets
from runtime.device_state import DeviceRows, RowWriter, empty_device_rows
from runtime.engine import EngineSpec
from runtime.kv_cache import PoolShape, empty_pool, pool_shape
from runtime.kv_checksum import checksum_program
from runtime.kv_heads import KvHeads
from runtime.model_config import ModelConfig
from runtime.placement import CHUNK_SPEC, EVERYWHERE, POOL_SPEC, Placement, shape_of, shaped, struct
from runtime.programs import Key, Programs
from runtime.sampler import mask_words
from runtime.step_config import AttentionOps, PagedAttention, StepConfig
from runtime.step_inputs import StepLayout
from runtime.step_sampling import sample_step
from runtime.steps import Pool, forward_step
from runtime.topology import Role

INIT = Key("init")


class EngineParts(NamedTuple):
    """What the programs of one engine are made from; gathered pages come in `fragments` arrays.

    `kernels` computes all that touches the pool; `params` may be shapes with shardings; `checksums` adds programs that
    take those of chunks.
    """

    spec: EngineSpec
    config: StepConfig
    pool: PoolShape
    params: Any
    placement: Placement
    buckets: Buckets
    fragments: int
    kernels: Implementation = "xla"
    checksums: bool = False

    def chunk(self, num_pages: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """That many gathered pages."""
        shape = self.pool.chunk(num_pages, self.fragments)
        return (struct(shape, self.pool.dtype, self.placement.chunk),) * self.fragments

    @property
    def table_width(self) -> int:
        """Page-table columns of a row."""
        return self.spec.pages_for(self.spec.max_context_tokens)

    def layout(self, num_tokens: int, num_decode: int) -> StepLayout:
        """The step program for a pair of buckets."""
        return StepLayout(
            num_tokens=num_tokens,
            num_decode=num_decode,
            num_segments=self.spec.max_prefill_segments,
            num_hidden=self.num_hidden,
            table_width=self.table_width,
            sentinel_row=self.spec.num_rows,
        )

    @property
    def num_hidden(self) -> int:
        """Hidden states that a pass hands to a sampling program: of all segments, or of the most decode rows."""
        rows = (*self.buckets.decode, *(rows for _, rows in self.buckets.mixed))
        return max(self.spec.max_prefill_segments, *rows, 1)

    @property
    def state_shapes(self) -> tuple[Any, Any]:
        """Shapes and shardings of pool and rows."""
        pool, rows = jax.eval_shape(self.empty_state)
        return shaped(pool, self.placement.pool), shaped(rows, self.placement.replicated)

    def empty_state(self) -> tuple[Pool, DeviceRows]:
        """Pool and rows with nothing in them; traced."""
        spec = self.spec
        rows = empty_device_rows(spec.num_rows, self.table_width, spec.vocab_size)
        return empty_pool(self.pool, spec.num_pages), rows


def engine_parts(
    model: ModelConfig,
    params: Any,
    spec: EngineSpec,
    *,
    role: Role,
    devices: Sequence[jax.Device],
    use_sort: bool = False,
    kernels: Implementation = "xla",
    attention: AttentionOps | None = None,
    chunk_heads: int | None = None,
    checksums: bool = False,
) -> EngineParts:
    """The parts of an engine for a slice; see `runtime.jax_engine.JaxEngine`. The devices may be there only to compile
    for, and `params` only shapes.
    """
    placement = Placement(devices)
    local_heads = KvHeads(model.num_kv_heads, placement.tp).local
    ops = attention or PagedAttention(kernels)
    platform = devices[0].platform
    buckets = plan_buckets(
        role,
        chunk_tokens=spec.chunk_tokens,
        num_rows=spec.num_rows,
        page_size=spec.page_size,
        grain=CPU if platform == "cpu" else ACCELERATOR,
    )
    return EngineParts(
        spec=spec,
        config=StepConfig(model, spec.page_size, use_sort, ops, placement.shared_mesh),
        pool=pool_shape(model, spec.page_size, platform, placement.tp, kernels=kernels != "xla"),
        params=params,
        placement=placement,
        buckets=buckets,
        fragments=local_heads // (chunk_heads or local_heads),
        kernels=kernels,
        checksums=checksums,
    )


def step_key(num_tokens: int, num_decode: int) -> Key:
    """The program of one forward pass."""
    kind = "mixed" if num_tokens and num_decode else "prefill" if num_tokens else "decode"
    return Key(kind, *(size for size in (num_tokens, num_decode) if size))


def build_programs(parts: EngineParts, writer: RowWriter) -> Programs:
    """All programs of an engine, registered and not yet compiled."""
    buckets, placement = parts.buckets, parts.placement
    programs = Programs(
        "highest" if parts.config.model.dtype == jnp.float32 else None,
        placement.mesh if parts.kernels == "pallas" else None,
        alone=parts.kernels == "pallas-interpret",
    )
    pool, rows = parts.state_shapes
    everywhere, pooled = placement.replicated, placement.pool

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return struct(shape, jnp.int32, everywhere)

    def add(key: Key, function: Callable[..., Any], args: tuple[Any, ...], donate: tuple[int, ...], out: Any) -> None:
        jitted = jax.jit(function, donate_argnums=donate, out_shardings=out)
        programs.add(key, lambda: jitted.lower(*args))

    add(INIT, parts.empty_state, (), (), (pooled, everywhere))
    params = shape_of(parts.params)
    sizes = [(t, 0) for t in buckets.prefill] + [(0, b) for b in buckets.decode] + list(buckets.mixed)
    for num_tokens, num_decode in sizes:
        layout = parts.layout(num_tokens, num_decode)
        args = (params, pool, rows, ints(layout.size))
        out = (pooled, everywhere, everywhere)
        add(step_key(num_tokens, num_decode), _step(parts.config, layout), args, (1, 2), out)
    words = mask_words(parts.spec.vocab_size)
    hidden = struct((parts.num_hidden, parts.config.model.hidden_size), parts.config.model.dtype, everywhere)
    for size in buckets.sample:
        masks = struct((size, words), jnp.uint32, everywhere)
        sample_args = (params, rows, hidden, ints(3, size + 1), masks)
        add(Key("sample", size), _sample(parts.config), sample_args, (1,), everywhere)
    for size in buckets.set_rows:
        wide = shaped(writer.wide_zeros(size), everywhere)
        write_args = (rows, ints(size, writer.packed_size), wide)
        add(Key("set_rows", size), writer.write, write_args, (0,), everywhere)
    gather, insert = _gather(placement, parts.fragments, parts.kernels), _insert(placement, parts.kernels)
    for size in buckets.gather:
        add(Key("gather", size), gather, (pool, ints(size)), (), placement.chunk)
    for size in buckets.insert:
        add(Key("insert", size), insert, (pool, parts.chunk(size), ints(2, size)), (0,), pooled)
    for size in sorted({*buckets.gather, *buckets.insert}) if parts.checksums else ():
        add(Key("checksum", size), checksum_program(placement), (parts.chunk(size),), (), placement.pool)
    return programs


@functools.cache
def _step(config: StepConfig, layout: StepLayout) -> Callable[..., Any]:
    return functools.partial(forward_step, config=config, layout=layout)


@functools.cache
def _sample(config: StepConfig) -> Callable[..., Any]:
    return functools.partial(sample_step, config=config)


def _gather(placement: Placement, fragments: int, kernels: Implementation) -> Callable[..., Any]:
    """(pool, int32[n] pages) -> the pages of all layers in `fragments` arrays, each device's heads in equal parts."""

    def gather(pool: Pool, pages: jax.Array) -> tuple[jax.Array, ...]:
        gathered = gather_pages(pool, pages, implementation=kernels)
        return (gathered,) if fragments == 1 else tuple(jnp.split(gathered, fragments, axis=2))

    if placement.shared_mesh is None:
        return gather
    return compat.over_shards(gather, placement.mesh, (POOL_SPEC, EVERYWHERE), CHUNK_SPEC)


def _insert(placement: Placement, kernels: Implementation) -> Callable[..., Any]:
    """(pool, what `_gather` gives, int32[2, n] pages of the chunk over pages of the pool) -> pool."""

    def insert(pool: Pool, chunk: tuple[jax.Array, ...], index: jax.Array) -> Pool:
        pages = chunk[0] if len(chunk) == 1 else jnp.concatenate(chunk, axis=2)
        return scatter_pages(pool, pages, index[0], index[1], implementation=kernels)

    if placement.shared_mesh is None:
        return insert
    return compat.over_shards(insert, placement.mesh, (POOL_SPEC, CHUNK_SPEC, EVERYWHERE), POOL_SPEC)
