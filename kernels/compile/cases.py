"""The programs that must compile: each op at the heads of the named models, over page sizes and element types."""

import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.checks import LANES
from kernels.chunked_prefill import chunked_prefill
from kernels.chunked_prefill.tuning import PrefillKey
from kernels.chunked_prefill.tuning import choose as choose_prefill
from kernels.kv_pack import gather_pages, scatter_pages
from kernels.kv_pool import SIDE_BY_SIDE_HEAD_DIM, PoolDims
from kernels.kv_write import write_kv
from kernels.paged_decode import paged_decode
from kernels.paged_decode.tuning import choose_config as choose_decode
from kernels.shapes import MODELS, Heads

PAGE_SIZES = (16, 64, 128, 256)
TENSOR_PARALLEL = (1, 4)

DECODE_BATCH = 256
CONTEXT_TOKENS = 131_072
CHUNK_TOKENS = 2_048
CHUNK_SEQUENCES = 16
LAYER_POOL_BYTES = 1 << 26
"""Size of a layer's pool; the programs are the same for any, and all layers of the largest model must fit v5e."""

BLOCK_LIMIT = "the pages of one block of the kernel"
QUERIES_LIMIT = (
    "the pages of one block of the kernel and the queries, whose rows are not 128 lanes and are laid out anew"
)
PAGE_LIMIT = "one page of one layer"
WRITE_LIMIT = "the new keys and values, and 256 KiB for the list of what to write"
RUNS_BYTES = 256 << 10


class Case(NamedTuple):
    """One program. `function` takes arrays like `args` (ShapeDtypeStructs) and is jitted with `donate`."""

    op: str
    shape: str
    """Heads of one device, page size and element type, and what else is special."""
    models: str
    """Whose heads these are."""
    function: Callable[..., Any]
    args: tuple[Any, ...]
    donate: tuple[int, ...]
    max_temp_bytes: int
    """What temporaries must stay below, so that no copy of the pool hides in them."""
    limit: str
    """What that is the size of."""

    @property
    def name(self) -> str:
        """The op and its shape."""
        return f"{self.op} {self.shape}"


class Shape(NamedTuple):
    """What a case varies: heads of one device, page size and element type; `models` says whose heads."""

    models: str
    heads: Heads
    page_size: int
    dtype: str = "bfloat16"
    sliding_window: int | None = None
    soft_cap: float | None = None

    @property
    def pool(self) -> PoolDims:
        """A layer's pool."""
        page_bytes = 2 * self.heads.num_kv_heads * self.page_size * self.heads.head_dim * self.itemsize
        side_by_side = self.heads.head_dim == SIDE_BY_SIDE_HEAD_DIM
        num_pages = LAYER_POOL_BYTES // page_bytes
        return PoolDims(num_pages, self.heads.num_kv_heads, self.page_size, self.heads.head_dim, side_by_side)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of one layer."""
        return LAYER_POOL_BYTES // self.pool.num_pages

    def __str__(self) -> str:
        heads = self.heads
        limits = "" if self.sliding_window is None else f" window {self.sliding_window}"
        limits += "" if self.soft_cap is None else f" soft cap {self.soft_cap:g}"
        return f"{heads.num_heads}/{heads.num_kv_heads} H{heads.head_dim} page {self.page_size} {self.dtype}{limits}"


EXTRA_HEADS = {
    Heads(16, 32, 8, 64): "head dim 64, side by side (llama-3.2-1b)",
    Heads(42, 16, 8, 256): "head dim 256 (gemma-2-9b)",
    Heads(1, 8, 8, 128): "one query head per kv head",
    Heads(1, 16, 1, 128): "16 query heads per kv head",
}
"""Heads beside those of the named models, at the limits of the attention kernels."""


def model_heads() -> dict[Heads, str]:
    """The heads of one device of the named models at every TP, each with the names of all that have them."""
    found: dict[Heads, list[str]] = {}
    for name, heads in MODELS.items():
        for tp in TENSOR_PARALLEL:
            found.setdefault(heads.on_one_of(tp), []).append(f"{name} tp={tp}")
    return {heads: ", ".join(names) for heads, names in found.items()}


def shapes() -> Iterator[Shape]:
    """Every shape that the ops are compiled at."""
    for heads, models in model_heads().items():
        for page_size in PAGE_SIZES:
            yield Shape(models, heads, page_size)
    for heads, why in EXTRA_HEADS.items():
        for page_size in (16, 128):
            yield Shape(why, heads, page_size)
    r1 = MODELS["deepseek-r1-distill-qwen-1.5b"]
    for page_size in (16, 128):
        yield Shape("float32", r1, page_size, "float32")
    gemma = next(heads for heads in EXTRA_HEADS if heads.head_dim == 256)
    yield Shape("sliding window and soft cap (gemma-2-9b)", gemma, 128, sliding_window=4096, soft_cap=50.0)


def attention_shapes() -> Iterator[Shape]:
    """Shapes that differ for one layer's attention."""
    yield from _distinct(shapes(), lambda shape: shape._replace(models="", heads=shape.heads._replace(num_layers=1)))


def write_shapes() -> Iterator[Shape]:
    """Shapes that differ for a write to one layer's pool."""
    yield from _distinct(shapes(), lambda shape: (shape.pool, shape.dtype))


def pack_shapes() -> Iterator[Shape]:
    """Shapes that differ for moves of all layers' pages."""
    yield from _distinct(shapes(), lambda shape: (shape.pool, shape.dtype, shape.heads.num_layers))


def _distinct(every: Iterator[Shape], key: Callable[[Shape], Hashable]) -> Iterator[Shape]:
    seen: dict[Hashable, list[Shape]] = {}
    for shape in every:
        seen.setdefault(key(shape), []).append(shape)
    for same in seen.values():
        yield same[0]._replace(models=", ".join(dict.fromkeys(shape.models for shape in same)))


def struct(*shape: int, dtype: str = "int32") -> Any:
    """An argument of this shape and type."""
    make: Any = jax.ShapeDtypeStruct
    return make(shape, jnp.dtype(dtype))


def decode_case(shape: Shape) -> Case:
    """A decode step's attention: full batch, longest context."""
    heads = shape.heads
    args = (
        struct(DECODE_BATCH, heads.num_heads, heads.head_dim, dtype=shape.dtype),
        struct(*shape.pool.shape, dtype=shape.dtype),
        struct(DECODE_BATCH, CONTEXT_TOKENS // shape.page_size),
        struct(DECODE_BATCH),
    )
    config = choose_decode(shape.pool, heads.num_heads, shape.dtype, args[2].shape[1])
    return _attention_case(paged_decode, shape, args, config.pages_per_block * shape.page_bytes)


def prefill_case(shape: Shape) -> Case:
    """A chunk's attention: several sequences, longest context."""
    heads = shape.heads
    args = (
        struct(CHUNK_TOKENS, heads.num_heads, heads.head_dim, dtype=shape.dtype),
        struct(*shape.pool.shape, dtype=shape.dtype),
        struct(CHUNK_SEQUENCES, CONTEXT_TOKENS // shape.page_size),
        struct(CHUNK_SEQUENCES + 1),
        struct(CHUNK_SEQUENCES),
    )
    key = PrefillKey(heads.group, heads.num_kv_heads, heads.head_dim, shape.itemsize)
    config = choose_prefill(key, CHUNK_TOKENS, shape.page_size, CONTEXT_TOKENS // shape.page_size)
    head_bytes = shape.page_bytes // heads.num_kv_heads // shape.page_size
    block_bytes = config.key_tokens * config.kv_heads * head_bytes
    if heads.head_dim == LANES:
        return _attention_case(chunked_prefill, shape, args, block_bytes)
    query_bytes = CHUNK_TOKENS * heads.num_heads * max(heads.head_dim, LANES) * shape.itemsize
    return _attention_case(chunked_prefill, shape, args, block_bytes + query_bytes, QUERIES_LIMIT)


def _attention_case(
    op: Callable[..., Any], shape: Shape, args: tuple[Any, ...], max_temp_bytes: int, limit: str = BLOCK_LIMIT
) -> Case:
    function = functools.partial(
        op,
        scale=shape.heads.head_dim**-0.5,
        sliding_window=shape.sliding_window,
        soft_cap=shape.soft_cap,
        implementation="pallas",
    )
    name = op.__name__
    return Case(name, str(shape), shape.models, function, args, (), max_temp_bytes, limit)


def write_case(shape: Shape, num_tokens: int) -> Case:
    """One layer's write of a step's new keys and values."""
    pool = shape.pool
    new = struct(num_tokens, pool.num_kv_heads, pool.head_dim, dtype=shape.dtype)
    args = (struct(*pool.shape, dtype=shape.dtype), new, new, struct(num_tokens))
    function = functools.partial(write_kv, implementation="pallas")
    name = f"K{pool.num_kv_heads} H{pool.head_dim} page {pool.page_size} {shape.dtype} {num_tokens} tokens"
    new_bytes = 2 * num_tokens * pool.num_kv_heads * pool.head_dim * shape.itemsize
    return Case("kv_write", name, shape.models, function, args, (0,), new_bytes + RUNS_BYTES, WRITE_LIMIT)


def gather_case(shape: Shape) -> Case:
    """A chunk's pages of all layers, gathered for the transfer."""
    function = functools.partial(gather_pages, implementation="pallas")
    args = (_pools(shape), struct(_chunk_pages(shape)))
    return Case("gather_pages", _pack_name(shape), shape.models, function, args, (), shape.page_bytes, PAGE_LIMIT)


def scatter_case(shape: Shape) -> Case:
    """A chunk's pages of all layers, scattered into the pools."""
    pool, num_pages = shape.pool, _chunk_pages(shape)
    chunk = struct(shape.heads.num_layers, num_pages, *pool.shape[1:], dtype=shape.dtype)
    args = (_pools(shape), chunk, struct(num_pages), struct(num_pages))
    function = functools.partial(scatter_pages, implementation="pallas")
    return Case("scatter_pages", _pack_name(shape), shape.models, function, args, (0,), shape.page_bytes, PAGE_LIMIT)


def _pools(shape: Shape) -> list[Any]:
    return [struct(*shape.pool.shape, dtype=shape.dtype) for _ in range(shape.heads.num_layers)]


def _chunk_pages(shape: Shape) -> int:
    return CHUNK_TOKENS // shape.page_size


def _pack_name(shape: Shape) -> str:
    pool = shape.pool
    return f"{shape.heads.num_layers} layers K{pool.num_kv_heads} H{pool.head_dim} page {pool.page_size} {shape.dtype}"


def all_cases() -> list[Case]:
    """Every case, op after op."""
    attention, write, pack = list(attention_shapes()), list(write_shapes()), list(pack_shapes())
    return [
        *map(decode_case, attention),
        *map(prefill_case, attention),
        *(write_case(shape, num_tokens) for shape in write for num_tokens in (DECODE_BATCH, CHUNK_TOKENS)),
        *map(gather_case, pack),
        *map(scatter_case, pack),
    ]


def sample_cases() -> list[Case]:
    """A few of them that together have every op, layout, element type and limit: what the tests compile."""
    r1, llama = MODELS["deepseek-r1-distill-qwen-1.5b"], MODELS["llama-3.1-8b"]
    small, large = (next(heads for heads in EXTRA_HEADS if heads.head_dim == size) for size in (64, 256))
    narrow, wide, float32 = Shape("", r1, 128), Shape("", llama, 16), Shape("", r1, 128, "float32")
    one_layer = Shape("", Heads(1, 16, 1, 128), 16)
    side_by_side = Shape("", small, 64, sliding_window=4096, soft_cap=50.0)
    return [
        *map(decode_case, (narrow, wide, side_by_side, float32, Shape("", large, 256))),
        *map(prefill_case, (narrow, side_by_side)),
        *(write_case(shape, DECODE_BATCH) for shape in (side_by_side, float32)),
        write_case(narrow, CHUNK_TOKENS),
        *map(gather_case, (narrow, side_by_side)),
        *map(scatter_case, (narrow, side_by_side, one_layer)),
    ]
