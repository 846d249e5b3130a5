"""The decode kernel in the TPU interpreter, against dense attention; what a TPU would do is left to the compiler."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.kv_pool import from_storage
from kernels.paged_decode import tpu
from kernels.paged_decode.tuning import DecodeConfig
from tests.kernels.interpreter import races_found, strict_interpreter
from tests.kernels.paged_case import PagedCase, dense_attention, paged_case

TOLERANCE = {"float32": 3e-6, "bfloat16": 2e-2}


def queries(case: PagedCase, num_heads: int, dtype: str = "float32") -> np.ndarray:
    """Numbers that `dtype` holds exactly; NaN in the rows of empty sequences, which nobody may read."""
    shape = (len(case.context_lens), num_heads, case.keys.shape[3])
    q = np.random.default_rng(7).standard_normal(shape, np.float32)
    q[case.context_lens == 0] = np.nan
    return np.array(jnp.asarray(q, dtype).astype(jnp.float32))


def expected(case: PagedCase, q: np.ndarray, window: int | None = None) -> np.ndarray:
    dense = dense_attention(case, [np.nan_to_num(row)[None] for row in q], scale=q.shape[2] ** -0.5, window=window)
    return np.concatenate(dense) * (case.context_lens > 0)[:, None, None]


def kernel(pages_per_block: int, rows_per_step: int = 4, scale: float = 128**-0.5, **options: Any) -> Any:
    config = DecodeConfig(pages_per_block, rows_per_step)
    return jax.jit(lambda *args: tpu.paged_decode(*args, scale=scale, config=config, **options))


def run(step: Any, case: PagedCase, q: np.ndarray, dtype: str = "float32") -> np.ndarray:
    lens = jnp.asarray(case.context_lens)
    out = step(jnp.asarray(q, dtype), from_storage(case.kv_pages), case.page_table, lens)
    assert out.dtype == dtype
    return np.asarray(out.astype(jnp.float32))


@pytest.mark.parametrize(
    ("page_size", "num_heads", "num_kv_heads", "head_dim", "dtype", "pages_per_block", "lengths"),
    [
        (8, 2, 2, 128, "float32", 4, [7, 0, 8, 9, 1, 101]),
        (16, 6, 1, 64, "float32", 2, [1, 15, 16, 17, 0, 37, 70]),
        (16, 16, 1, 128, "bfloat16", 4, [0, 0, 1, 0, 15, 16, 17, 131, 0]),
        (64, 4, 2, 256, "bfloat16", 1, [1, 63, 64, 65, 127, 0, 0, 193]),
        (128, 8, 2, 128, "bfloat16", 8, [127, 128, 129, 2048, 1, 1021]),
        (256, 4, 2, 64, "bfloat16", 2, [255, 256, 257, 1]),
    ],
)
def test_equals_dense_attention(
    page_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: str,
    pages_per_block: int,
    lengths: list[int],
) -> None:
    sizes: dict[str, Any] = {"page_size": page_size, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    case = paged_case(lengths, dtype=dtype, side_by_side=head_dim == 64, **sizes)
    q = queries(case, num_heads, dtype)
    with strict_interpreter():
        out = run(kernel(pages_per_block, scale=head_dim**-0.5), case, q, dtype)
    assert not races_found()
    np.testing.assert_allclose(out, expected(case, q), atol=TOLERANCE[dtype])
