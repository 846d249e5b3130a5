"""Checksums of gathered KV: equal wherever the chunk lies, different when a bit of it is."""

import random
from typing import Any

import jax
import msgspec
import numpy as np
import pytest

from kernels.implementations import Implementation
from runtime.chaos.corrupt import corrupt
from runtime.compile_cache import compilations
from runtime.engine import KvChunk
from runtime.jax_engine import JaxEngine
from runtime.kv_checksum import DIFFERENT_COPIES, by_model_head
from runtime.kv_heads import KvHeads
from runtime.kv_mover import DevicePutMover, chunk_heads_of
from runtime.model_config import ModelConfig
from tests.runtime.engines import BFLOAT16, MODEL, Runner, make_engine, prompt_of, row_state, segment

PAGES = tuple(range(20, 25))
NUM_SUMS = 8 * MODEL.num_kv_heads
"""Of a bucket of eight pages."""


def _pair(model: ModelConfig, source: int, target: int) -> tuple[JaxEngine, JaxEngine, DevicePutMover]:
    heads = chunk_heads_of(model.num_kv_heads, frozenset((source, target)))
    options: dict[str, Any] = {"model": model, "chunk_heads": heads, "checksums": True}
    left = make_engine("prefill", 0, tp=source, **options)
    right = make_engine("decode", 4, tp=target, **options)
    shardings = {"left": left.placement.chunk, "right": right.placement.chunk}
    return left, right, DevicePutMover(shardings, model.num_kv_heads)


def _gathered(engine: JaxEngine) -> KvChunk:
    """The pages of a prompt, and of nothing where the bucket is longer."""
    prompt = prompt_of(37)
    engine.set_rows([row_state(0, prompt, PAGES)])
    Runner(engine).run(prefill=(segment(prompt, PAGES, rows=(0,)),))
    return engine.gather(PAGES)


@pytest.mark.parametrize(
    ("source", "target", "model"),
    [(1, 1, MODEL), (1, 2, MODEL), (4, 1, MODEL), (2, 1, BFLOAT16), (1, 4, BFLOAT16)],
    ids=lambda value: value.dtype if isinstance(value, ModelConfig) else str(value),
)
def test_a_chunk_has_the_same_checksums_on_every_slice(model: ModelConfig, source: int, target: int) -> None:
    left, right, mover = _pair(model, source, target)
    chunk = _gathered(left)
    sums = left.checksum(chunk)
    assert len(sums) == NUM_SUMS
    moved = mover.move(chunk, "right")
    assert right.checksum(moved) == sums
    draw = random.Random(1)
    before = compilations.count
    for _ in range(8):
        changed = right.checksum(corrupt(moved, draw.randrange))
        differing = [index for index, pair in enumerate(zip(sums, changed, strict=True)) if pair[0] != pair[1]]
        assert len(differing) == 1, "one bit is of one page and one head"
        assert differing[0] < MODEL.num_kv_heads, "it is in the first page"
    assert compilations.count == before


def test_the_checksum_is_the_sum_of_bits_times_odd_factors() -> None:
    engine = make_engine("prefill", checksums=True)
    chunk = _gathered(engine)
    (array,) = np.asarray(chunk)
    bits = array.view(np.uint32).astype(object)
    layers, pages, heads, *inner = bits.shape
    factors = 2 * np.arange(layers * int(np.prod(inner))).reshape(layers, 1, 1, *inner) + 1
    expected = (bits * factors).sum(axis=(0, 3, 4, 5)) % 2**32
    assert engine.checksum(chunk) == tuple(expected.reshape(pages * heads).tolist())


def test_values_that_change_places_are_noticed() -> None:
    engine = make_engine("prefill", checksums=True)
    (array,) = np.asarray(_gathered(engine))
    sums = []
    for axis in (0, 1, 2, 3, 4, 5):
        swapped = jax.device_put(np.flip(array, axis), engine.placement.chunk)
        sums.append(engine.checksum(KvChunk((swapped,))))
    sums.append(engine.checksum(KvChunk((jax.device_put(array, engine.placement.chunk),))))
    assert len(set(sums)) == len(sums)


@pytest.mark.parametrize("kernels", ["xla", "pallas-interpret"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_layouts_are_summed(kernels: Implementation, dtype: str) -> None:
    """With a head dim of 64 the kernels have keys and values side by side, and bfloat16 is not stored as its bits."""
    model = msgspec.structs.replace(MODEL, head_dim=64, num_heads=2, dtype=dtype)
    engine = make_engine("decode", model=model, kernels=kernels, page_size=16, checksums=True)
    (shape,) = engine._parts.chunk(4)
    assert len(shape.shape) == (5 if kernels == "pallas-interpret" else 6)
    values = np.random.default_rng(2).integers(0, 255, (*shape.shape, shape.dtype.itemsize), np.uint8)
    array = jax.device_put(values.view(shape.dtype)[..., 0], engine.placement.chunk)
    whole, changed = KvChunk((array,)), corrupt(KvChunk((array,)), random.Random(3).randrange)
    assert engine.checksum(whole) == engine.checksum(whole) != engine.checksum(changed)


def test_copies_of_a_head_that_differ_equal_nothing() -> None:
    heads = KvHeads(2, 4)
    equal = np.array([[7, 7, 8, 8]], np.uint32)
    assert by_model_head([equal], heads) == (7, 8)
    assert by_model_head([np.array([[7, 6, 8, 8]], np.uint32)], heads) == (DIFFERENT_COPIES, 8)


def test_without_the_option_there_are_no_such_programs() -> None:
    keys = {key.kind for key in make_engine("decode").programs}
    assert "checksum" not in keys
    assert "checksum" in {key.kind for key in make_engine("decode", checksums=True).programs}
