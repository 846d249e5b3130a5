import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from kernels.kv_write import tpu, write_kv
from kernels.kv_write.tuning import Blocks
from tests.kernels.interpreter import races_found, strict_interpreter

NUM_TOKENS = 24
SMALL = Blocks(group_rows=8, span_rows=16, batch_runs=3, call_tokens=4096)


class Case(NamedTuple):
    """A pool and blocks of the kernel; one compilation of the interpreter serves all slots of a case."""

    dtype: str = "bfloat16"
    num_kv_heads: int = 2
    head_dim: int = 128
    page_size: int = 16
    side_by_side: bool = False
    blocks: Blocks | None = SMALL
    num_pages: int = 12
    num_tokens: int = NUM_TOKENS

    @property
    def shape(self) -> tuple[int, ...]:
        start = (self.num_pages, self.num_kv_heads)
        if self.side_by_side:
            return (*start, self.page_size, 2 * self.head_dim)
        return (*start, 2, self.page_size, self.head_dim)


CASES = {
    "pairs": Case(blocks=SMALL._replace(group_rows=2)),
    "wide": Case(num_kv_heads=1, head_dim=256, page_size=32, blocks=SMALL._replace(group_rows=16)),
    "eight heads": Case(num_kv_heads=8, page_size=64, num_pages=6, num_tokens=8),
    "one head side by side, in two calls": Case(
        num_kv_heads=1, head_dim=64, side_by_side=True, blocks=SMALL._replace(call_tokens=12)
    ),
    "float32 side by side": Case("float32", head_dim=64, page_size=48, side_by_side=True, blocks=None),
    "bits": Case("uint16", num_kv_heads=1, page_size=256, blocks=None, num_pages=4),
}


def bits(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.view(f"uint{8 * array.dtype.itemsize}")


def random_inputs(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pool and new keys and values, with NaN in some."""
    rng = np.random.default_rng(seed)
    value_type = "bfloat16" if case.dtype == "uint16" else case.dtype
    token_shape = (case.num_tokens, case.num_kv_heads, case.head_dim)
    pool, k, v = (rng.standard_normal(x, np.float32).astype(value_type) for x in (case.shape, token_shape, token_shape))
    pool[1], k[0, 0], v[5, -1] = np.nan, np.nan, np.inf
    return pool.view(case.dtype) if case.dtype == "uint16" else pool, k, v


def expected(case: Case, pool: np.ndarray, k: np.ndarray, v: np.ndarray, slots: np.ndarray) -> np.ndarray:
    want = bits(pool).copy()
    for token, slot in enumerate(slots):
        page, row = divmod(int(slot), case.page_size)
        if case.side_by_side:
            want[page, :, row] = np.concatenate([bits(k)[token], bits(v)[token]], axis=-1)
        else:
            want[page, :, :, row] = np.stack([bits(k)[token], bits(v)[token]], axis=1)
    return want


@functools.cache
def kernel(blocks: Blocks | None) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(tpu.write_kv, implementation="pallas", blocks=blocks))


def check(case: Case, slots: np.ndarray, seed: int = 0) -> None:
    """The write of `slots`, padded with slot 0 to the case's tokens, changes these rows and no other bit."""
    slots = np.pad(slots, (0, case.num_tokens - len(slots))).astype(np.int32)
    pool, k, v = random_inputs(case, seed)
    written = kernel(case.blocks)(*(jnp.asarray(x) for x in (pool, k, v, slots)))
    assert not races_found()
    np.testing.assert_array_equal(bits(written)[1:], expected(case, pool, k, v, slots)[1:])


def slots_of(case: Case) -> Iterator[np.ndarray]:
    page, pages = case.page_size, case.num_pages
    rng = np.random.default_rng(3)
    # Decode: each token in a page of its own, empty rows at the sentinel.
    yield np.array([p * page + rng.integers(page) for p in rng.permutation(np.arange(1, pages))] + [0, 0, 0])
    # Prefill from an unaligned start on, through the end of a page into the next.
    yield np.arange(2 * page - 5, 2 * page - 5 + case.num_tokens)
    # Anywhere.
    yield rng.permutation(np.arange(page, pages * page))[: case.num_tokens]


@pytest.mark.parametrize("name", CASES)
def test_new_rows_are_written_and_no_other_bit_changes(name: str) -> None:
    case = CASES[name]
    for seed, slots in enumerate(slots_of(case)):
        with strict_interpreter():
            check(case, slots, seed)


PAGE = 16
SHARED = {
    "whole page": np.arange(PAGE, 2 * PAGE),
    "page in the middle": np.arange(3 * PAGE - 3, 4 * PAGE + 2),
    "two segments in one group": np.array([PAGE + 1, PAGE + 2, 5 * PAGE, PAGE + 3, PAGE + 4]),
    "backwards": np.arange(3 * PAGE, 3 * PAGE - NUM_TOKENS, -1),
    "interleaved": np.stack([np.arange(PAGE, PAGE + 12), np.arange(PAGE + 12, PAGE + 24)], 1).reshape(-1),
    # Segments of a ragged chunk, and padding that piles up on several rows of the sentinel.
    "ragged": np.concatenate([np.arange(19, 26), [47], np.arange(32, 41), [0, 3, 3]]),
    "only padding": np.array([0, 5, 5, PAGE - 1]),
    "last row of the pool": np.array([CASES["pairs"].num_pages * PAGE - 1]),
}


@pytest.mark.parametrize("dma", ["eager", "on_wait"])
@pytest.mark.parametrize("name", SHARED)
def test_spans_and_groups_that_several_runs_share(name: str, dma: Literal["eager", "on_wait"]) -> None:
    with strict_interpreter(dma):
        check(CASES["pairs"], SHARED[name])


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_any_slots(data: st.DataObject) -> None:
    case = CASES["pairs"]
    slots: list[int] = []
    while len(slots) < case.num_tokens:
        start = data.draw(st.integers(0, case.num_pages * PAGE - 1))
        length = data.draw(st.integers(1, case.num_tokens - len(slots)))
        fresh = [s for s in range(start, min(start + length, case.num_pages * PAGE)) if s < PAGE or s not in slots]
        slots += fresh or [0]
    with strict_interpreter():
        check(case, np.array(slots))


def forget_waits(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """Plants a bug: no copy into a buffer of this shape is waited for."""
    make = pltpu.make_async_copy

    def planted(source: Any, target: Any, semaphore: Any) -> Any:
        copy = make(source, target, semaphore)
        if target.shape != shape:
            return copy
        return SimpleNamespace(start=copy.start, wait=lambda: copy)

    monkeypatch.setattr(pltpu, "make_async_copy", planted)


@pytest.mark.parametrize("dma", ["eager", "on_wait"])
def test_a_missing_wait_is_caught(dma: Literal["eager", "on_wait"], monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["pairs"]
    pool, k, v = random_inputs(case, 0)
    slots = np.arange(PAGE + 1, PAGE + 1 + case.num_tokens, dtype=np.int32)
    forget_waits(monkeypatch, (case.num_kv_heads, case.num_tokens, 128))  # the words on their way into VMEM
    with strict_interpreter(dma):
        broken = jax.jit(functools.partial(tpu.write_kv, implementation="pallas", blocks=case.blocks))
        written = bits(broken(*(jnp.asarray(x) for x in (pool, k, v, slots))))
        caught = races_found() if dma == "eager" else (written != expected(case, pool, k, v, slots))[1:].any()
    pltpu.reset_tpu_interpret_mode_state()
    assert caught


def test_each_device_writes_its_own_heads() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("tp",))
    heads, everywhere = PartitionSpec(None, "tp"), PartitionSpec()
    case = Case("float32", blocks=None)
    pool, k, v = random_inputs(case, 0)
    slots = np.arange(20, 20 + case.num_tokens, dtype=np.int32)
    write = functools.partial(write_kv, implementation="pallas-interpret")
    sharded = jax.shard_map(
        write, mesh=mesh, in_specs=(heads, heads, heads, everywhere), out_specs=heads, check_vma=False
    )
    written = jax.jit(sharded)(pool, k, v, slots)
    np.testing.assert_array_equal(bits(written)[1:], expected(case, pool, k, v, slots)[1:])


def test_nothing_to_write() -> None:
    pool, none = jnp.ones((2, 1, 2, 16, 128)), jnp.zeros((0, 1, 128))
    written = write_kv(pool, none, none, jnp.zeros(0, jnp.int32), implementation="pallas")
    np.testing.assert_array_equal(written, pool)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 2, 2, 16, 64), r"write_kv: kv_pages is float32\[4, 2, 2, 16, 64\].*last axis.*multiple of 128"),
        ((4, 2, 2, 8, 128), "page size that is a multiple of 16"),
        (
            (4, 2, 2, 512, 128),
            "write_kv: kv_pages has 4 pages of 512 tokens; the TPU kernel takes at most 4194304 of 256",
        ),
    ],
)
def test_limits_are_named(shape: tuple[int, ...], message: str) -> None:
    new = jnp.zeros((3, shape[1], shape[-1]))
    with pytest.raises(ValueError, match=message):
        write_kv(jnp.zeros(shape), new, new, jnp.zeros(3, jnp.int32), implementation="pallas")
