import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.kv_pool import from_storage, storage_dtype, to_storage
from kernels.kv_write import write_kv

P, K, PAGE, H = 6, 2, 8, 32


def tokens(count: int, dtype: str) -> jax.Array:
    values = np.random.default_rng(1).standard_normal((count, K, H), np.float32)
    return jnp.asarray(values, dtype)


def empty(dtype: str, num_pages: int = P) -> jax.Array:
    shape = (num_pages, K, 2, PAGE, H)
    return to_storage(jnp.full(shape, 7.0, dtype), storage_dtype(dtype, jax.default_backend()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_token_lands_in_its_slot_and_nowhere_else(dtype: str) -> None:
    slots = np.array([0, 3, PAGE, 5 * PAGE + 7, 2 * PAGE + 1, 0, 1], np.int32)
    k, v = tokens(len(slots), dtype), tokens(len(slots), dtype) + 1
    written = np.asarray(from_storage(write_kv(empty(dtype), k, v, jnp.asarray(slots))).astype(jnp.float32))
    want = np.full((P, K, 2, PAGE, H), 7.0, np.float32)
    for token, slot in enumerate(slots):
        want[slot // PAGE, :, 0, slot % PAGE] = k[token].astype(jnp.float32)
        want[slot // PAGE, :, 1, slot % PAGE] = v[token].astype(jnp.float32)
    np.testing.assert_array_equal(written[1:], want[1:])


def test_keys_and_values_side_by_side() -> None:
    slots = np.array([PAGE + 3, 5 * PAGE], np.int32)
    k, v = tokens(2, "float32"), tokens(2, "float32") + 1
    pool = jnp.zeros((P, K, PAGE, 2 * H))
    want = np.zeros(pool.shape, np.float32)
    want[1, :, 3, :H], want[1, :, 3, H:] = k[0], v[0]
    want[5, :, 0, :H], want[5, :, 0, H:] = k[1], v[1]
    np.testing.assert_array_equal(write_kv(pool, k, v, jnp.asarray(slots)), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_donated_pool_is_written_in_place(dtype: str) -> None:
    pool = empty(dtype, num_pages=256)
    new = tokens(4, dtype)
    compiled = jax.jit(write_kv, donate_argnums=0).lower(pool, new, new, jnp.zeros(4, jnp.int32)).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == pool.nbytes
    assert memory.temp_size_in_bytes < pool.nbytes // 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": jnp.zeros((4, K, H + 1))}, r"k must be \[4, 2, 32\], got \[4, 2, 33\]"),
        ({"v": jnp.zeros((4, K, H), jnp.bfloat16)}, "v is bfloat16 but kv_pages holds float32"),
        ({"slots": jnp.zeros((4, 1), jnp.int32)}, "slots must be int32 with 1 axes"),
        ({"implementation": "x"}, "'x' is not one of xla, pallas"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "kv_pages": jnp.zeros((P, K, 2, PAGE, H)),
        "k": jnp.zeros((4, K, H)),
        "v": jnp.zeros((4, K, H)),
        "slots": jnp.zeros(4, jnp.int32),
    }
    with pytest.raises(ValueError, match=message):
        write_kv(**(good | change))
