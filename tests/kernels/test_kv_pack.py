import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.kv_pack import gather_pages, scatter_pages
from kernels.kv_pool import storage_dtype, to_storage

SHAPE = (9, 2, 2, 4, 8)
NUM_LAYERS = 3


def random_pools(dtype: str, seed: int, shape: tuple[int, ...] = SHAPE) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    storage = storage_dtype(dtype, jax.default_backend())
    return [to_storage(jnp.asarray(rng.standard_normal(shape, np.float32), dtype), storage) for _ in range(NUM_LAYERS)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pages_survive_the_way_into_another_pool(dtype: str) -> None:
    here, there = random_pools(dtype, 0), random_pools(dtype, 1)
    before = [np.asarray(pool) for pool in there]
    chunk = gather_pages(here, jnp.array([4, 1, 8, 0], jnp.int32))
    assert chunk.shape == (NUM_LAYERS, 4, *SHAPE[1:])
    assert chunk.dtype == here[0].dtype
    source, target = jnp.array([2, 0, 3, 3], jnp.int32), jnp.array([5, 7, 0, 0], jnp.int32)
    after = scatter_pages(there, chunk, source, target)
    for layer in range(NUM_LAYERS):
        np.testing.assert_array_equal(after[layer][5], here[layer][8])
        np.testing.assert_array_equal(after[layer][7], here[layer][4])
        untouched = [1, 2, 3, 4, 6, 8]
        np.testing.assert_array_equal(np.asarray(after[layer])[untouched], before[layer][untouched])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_donated_pools_are_written_in_place_and_a_gather_copies_only_its_pages(dtype: str) -> None:
    pools = random_pools(dtype, 0, (256, *SHAPE[1:]))
    ids = jnp.array([3, 0], jnp.int32)
    gathered = jax.jit(gather_pages).lower(pools, ids).compile().memory_analysis()
    assert gathered.temp_size_in_bytes < pools[0].nbytes // 16
    chunk = gather_pages(pools, ids)
    scatter = jax.jit(scatter_pages, donate_argnums=0).lower(pools, chunk, ids, ids).compile()
    memory = scatter.memory_analysis()
    assert memory.alias_size_in_bytes == sum(pool.nbytes for pool in pools)
    assert memory.temp_size_in_bytes < pools[0].nbytes // 16


def test_wrong_arguments_are_named() -> None:
    pools = random_pools("float32", 0)
    ids = jnp.array([1, 2], jnp.int32)
    chunk = gather_pages(pools, ids)
    with pytest.raises(ValueError, match="pools is empty"):
        gather_pages([], ids)
    with pytest.raises(ValueError, match=r"pools\[1\] is float32\[9, 2, 2, 4, 4\]"):
        gather_pages([pools[0], pools[1][..., :4]], ids)
    with pytest.raises(ValueError, match="page_ids must be int32"):
        gather_pages(pools, ids.astype(jnp.uint32))
    with pytest.raises(ValueError, match=r"source.shape=\(1,\) differs"):
        scatter_pages(pools, chunk, ids[:1], ids)
    with pytest.raises(ValueError, match=r"chunk is float32\[2, 2"):
        scatter_pages(pools, chunk[:2], ids, ids)
