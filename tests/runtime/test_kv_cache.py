from types import SimpleNamespace
from typing import cast

import jax
import pytest

from runtime.errors import UsageError
from runtime.kv_cache import CPU_POOL_BYTES, PoolShape, cpu_pages, empty_pool, pages_that_fit, pool_shape
from tests.runtime.engines import BFLOAT16, MODEL

SHAPE = PoolShape(num_layers=28, num_kv_heads=2, page_size=16, head_dim=128, dtype="bfloat16")
MIB = 1 << 20


def _device(**stats: int) -> jax.Device:
    return cast(jax.Device, SimpleNamespace(platform="tpu", memory_stats=lambda: stats))


def test_bytes_of_a_page() -> None:
    assert SHAPE.page_bytes == 28 * 16 * 1024
    assert sum(layer.nbytes for layer in empty_pool(SHAPE, 3)) == 3 * SHAPE.page_bytes


def test_a_cpu_stores_bfloat16_as_bits_of_the_same_size() -> None:
    on_cpu, on_tpu = (pool_shape(BFLOAT16, 8, platform) for platform in ("cpu", "tpu"))
    assert (on_cpu.dtype, on_tpu.dtype, pool_shape(MODEL, 8, "cpu").dtype) == ("uint16", "bfloat16", "float32")
    assert on_cpu.page_bytes == on_tpu.page_bytes


def test_an_accelerator_gives_what_weights_leave() -> None:
    device = _device(bytes_limit=1000 * MIB, bytes_in_use=300 * MIB)
    pages = pages_that_fit(SHAPE, device, num_rows=1000, max_context_tokens=131072, mem_fraction=0.8)
    assert pages == 500 * MIB // SHAPE.page_bytes
    few = pages_that_fit(SHAPE, device, num_rows=2, max_context_tokens=33, mem_fraction=0.8)
    assert few == 2 * 3 + 1


def test_no_room_is_one_line_that_names_the_flag() -> None:
    device = _device(bytes_limit=1000 * MIB, bytes_in_use=900 * MIB)
    with pytest.raises(UsageError, match=r"--mem-fraction-static 0\.8: leaves 0 MiB for KV"):
        pages_that_fit(SHAPE, device, num_rows=4, max_context_tokens=4096, mem_fraction=0.8)
    with pytest.raises(UsageError, match=r"--mem-fraction-static 1\.5: must lie between 0 and 1"):
        pages_that_fit(SHAPE, device, num_rows=4, max_context_tokens=4096, mem_fraction=1.5)


def test_a_cpu_has_a_stated_budget() -> None:
    cpu = jax.devices("cpu")[0]
    assert pages_that_fit(SHAPE, cpu, num_rows=2, max_context_tokens=100) == 2 * 7 + 1
    assert pages_that_fit(SHAPE, cpu, num_rows=256, max_context_tokens=131072) == CPU_POOL_BYTES // SHAPE.page_bytes + 1
    assert cpu_pages(SHAPE, num_rows=256, max_context_tokens=131072, pool_bytes=1) == 4096 // 16 + 1
