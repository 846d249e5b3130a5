import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

from kernels.kv_pack import gather_pages, scatter_pages, tpu
from tests.kernels.interpreter import races_found, strict_interpreter

NUM_LAYERS, NUM_PAGES = 3, 21
PAGES = [(1, 2, 16, 128), (2, 2, 32, 256), (3, 16, 128)]  # without the number of pages; the last side by side


def random_pools(page: tuple[int, ...], dtype: str, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    pools = rng.standard_normal((NUM_LAYERS, NUM_PAGES, *page), np.float32).astype(dtype)
    return list(pools)


gather = jax.jit(functools.partial(gather_pages, implementation="pallas"))
scatter = jax.jit(functools.partial(scatter_pages, implementation="pallas"))


def run_gather(pools: list[np.ndarray], page_ids: np.ndarray) -> np.ndarray:
    chunk = gather([jnp.asarray(x) for x in pools], jnp.asarray(page_ids, jnp.int32))
    chunk.block_until_ready()
    assert not races_found()
    return np.asarray(chunk)


def run_scatter(
    pools: list[np.ndarray], chunk: np.ndarray, source: np.ndarray, page_ids: np.ndarray
) -> list[np.ndarray]:
    source, page_ids = jnp.asarray(source, jnp.int32), jnp.asarray(page_ids, jnp.int32)
    on_device = [jnp.asarray(x) for x in pools]
    scattered = scatter(on_device, jnp.asarray(chunk), source, page_ids)
    scattered[-1].block_until_ready()
    assert not races_found()
    return [np.asarray(x) for x in scattered]


def check_moves(page: tuple[int, ...], dtype: str, gathered: np.ndarray, source: np.ndarray, ids: np.ndarray) -> None:
    """Gathers pages `gathered` and scatters entries `source` of that chunk to pages `ids`, against NumPy."""
    here, there = random_pools(page, dtype, 0), random_pools(page, dtype, 1)
    here[1][0] = np.nan
    chunk = run_gather(here, gathered)
    assert chunk.tobytes() == np.stack([pool[gathered] for pool in here]).tobytes()
    after = run_scatter(there, chunk, source, ids)
    for layer in range(NUM_LAYERS):
        want = there[layer].copy()
        for entry, page_id in zip(source, ids, strict=True):
            want[page_id] = chunk[layer, entry]
        assert after[layer][1:].tobytes() == want[1:].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("page", PAGES)
def test_shuffled_pages_with_padding(page: tuple[int, ...], dtype: str) -> None:
    gathered = np.array([4, 20, 1, 7, 7, 12, 3, 0, 0, 0, 0])
    source, ids = np.array([3, 0, 0, 6, 2, 10, 10, 9, 9]), np.array([5, 20, 1, 6, 2, 0, 0, 0, 0])
    with strict_interpreter():
        check_moves(page, dtype, gathered, source, ids)


@pytest.mark.parametrize("dma", ["eager", "on_wait"])
@pytest.mark.parametrize("count", [1, tpu.PAGES_IN_FLIGHT + 1])
def test_any_count_around_the_pages_in_flight(count: int, dma: Literal["eager", "on_wait"]) -> None:
    order = np.random.default_rng(2).permutation(np.arange(1, NUM_PAGES))[:count]
    with strict_interpreter(dma):
        check_moves(PAGES[0], "bfloat16", order, np.arange(count)[::-1], order)


def test_only_padding() -> None:
    with strict_interpreter():
        check_moves(PAGES[0], "float32", np.zeros(11, int), np.zeros(11, int), np.zeros(11, int))


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.data())
def test_any_pages(data: st.DataObject) -> None:
    size = 9
    gathered = data.draw(st.lists(st.integers(0, NUM_PAGES - 1), min_size=size, max_size=size))
    source = data.draw(st.lists(st.integers(0, size - 1), min_size=size, max_size=size))
    ids = data.draw(st.lists(st.integers(1, NUM_PAGES - 1), max_size=size, unique=True))
    padding = [0] * (size - len(ids))
    targets = np.array(data.draw(st.permutations(ids + padding)))
    with strict_interpreter():
        check_moves(PAGES[0], "bfloat16", np.array(gathered), np.array(source), targets)


def test_a_missing_wait_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu, "_wait_for", lambda pages, semaphore: None)
    pools = random_pools(PAGES[0], "float32", 0)
    ids = np.array([2, 5])
    with strict_interpreter("on_wait"):
        chunk = gather_pages([jnp.asarray(x) for x in pools], jnp.asarray(ids, jnp.int32), implementation="pallas")
        assert np.isnan(chunk).all()
    pltpu.reset_tpu_interpret_mode_state()


def test_bits_of_a_bfloat16_pool() -> None:
    pools = [pool.view(np.uint16) for pool in random_pools(PAGES[0], "bfloat16", 0)]
    with strict_interpreter():
        chunk = run_gather(pools, np.array([2, 1]))
        after = run_scatter(pools, chunk, np.array([1]), np.array([2]))
    np.testing.assert_array_equal(after[0][2], pools[0][1])


def test_each_device_moves_its_own_heads() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("tp",))
    heads, chunks, everywhere = PartitionSpec(None, "tp"), PartitionSpec(None, None, "tp"), PartitionSpec()
    pools = [jnp.asarray(pool) for pool in random_pools((2, 2, 16, 128), "float32", 0)]
    ids = jnp.array([3, 1], jnp.int32)

    def swap(pools: list[jax.Array], ids: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        chunk = gather_pages(pools, ids, implementation="pallas-interpret")
        order = jnp.array([1, 0], jnp.int32)
        return chunk, scatter_pages(pools, chunk, order, ids, implementation="pallas-interpret")

    sharded = jax.shard_map(swap, mesh=mesh, in_specs=(heads, everywhere), out_specs=(chunks, heads), check_vma=False)
    chunk, after = jax.jit(sharded)(pools, ids)
    for layer in range(NUM_LAYERS):
        np.testing.assert_array_equal(chunk[layer], pools[layer][ids])
        np.testing.assert_array_equal(after[layer], pools[layer].at[ids].set(pools[layer][ids[::-1]]))


def test_limits_are_named() -> None:
    ids = jnp.array([1, 2], jnp.int32)
    narrow = [jnp.zeros((4, 2, 2, 16, 64))]
    with pytest.raises(ValueError, match=r"gather_pages: kv_pages is float32\[4, 2, 2, 16, 64\].* multiple of 128"):
        gather_pages(narrow, ids, implementation="pallas")
    pools = [jnp.zeros((4, 2, 2, 24, 128))]
    with pytest.raises(ValueError, match=r"scatter_pages: kv_pages .* page size that is a multiple of 16"):
        scatter_pages(pools, jnp.zeros((1, 2, 2, 2, 24, 128)), ids, ids, implementation="pallas")
    with pytest.raises(ValueError, match="gather_pages: page_ids has 0 entries"):
        gather_pages([jnp.zeros((4, 2, 2, 16, 128))], ids[:0], implementation="pallas")
