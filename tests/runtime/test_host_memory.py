"""Arrays in pages of their own, widening, and giving memory back."""

import jax
import ml_dtypes
import numpy as np
import pytest

from runtime.host_memory import cast_into, give_back, own_pages


@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4), (1000, 1000)])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_arrays_are_aligned_zero_and_writable(shape: tuple[int, ...], dtype: type) -> None:
    array = own_pages(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.ctypes.data % 64 == 0
    assert not array.any()
    array[...] = 3
    assert jax.device_put(array).sum() == 3 * array.size


def test_widening_bfloat16_is_exact_for_every_value() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    for values in (bits.reshape(256, 256), bits.reshape(256, 256).T, bits[::3]):
        out = own_pages(values.shape, np.float32)
        cast_into(out, values)
        np.testing.assert_array_equal(out.view(np.uint32) >> 16, values.view(np.uint16))


def test_other_casts_are_numpys() -> None:
    values = np.random.default_rng(0).standard_normal((7, 9), np.float32)
    out = own_pages(values.shape, ml_dtypes.bfloat16)
    cast_into(out, values)
    np.testing.assert_array_equal(out, values.astype(ml_dtypes.bfloat16))


def test_giving_back_disturbs_nothing() -> None:
    kept = np.arange(1 << 16)
    give_back()
    assert kept.sum() == (1 << 15) * ((1 << 16) - 1)
