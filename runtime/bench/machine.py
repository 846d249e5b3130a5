"""What the machine can do: reading memory, and multiplying at the model's shapes. The roof over every step.

Reading is measured on an array that no cache holds, through XLA (row sums in parallel) and, where the memory is the
host's, also with one numpy thread per core; the better figure counts. Nothing may be written: a copy would share the
bandwidth between reading and writing.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from runtime.bench.timing import Timing, interleaved
from runtime.model_config import ModelConfig
from runtime.models.layers import project

READ_BYTES = 1 << 29
READ_ROWS = 1 << 12
MATMUL_TOKENS = 256


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Measured peaks of one device, from the medians."""

    read_bytes_per_s: float
    read_method: str
    matmul_flop_per_s: float
    matmul: Timing
    reads: dict[str, Timing]


def measure_machine(model: ModelConfig, device: jax.Device, repeats: int) -> Machine:
    """Read bandwidth and matmul rate. `model` gives the product's shape and type."""
    reads = _reads(device, repeats)
    method = min(reads, key=lambda name: reads[name].median_s)
    product, flop = _product(model, device)
    matmul = interleaved([product], repeats)[0]
    return Machine(
        read_bytes_per_s=READ_BYTES / reads[method].median_s,
        read_method=method,
        matmul_flop_per_s=flop / matmul.median_s,
        matmul=matmul,
        reads=reads,
    )


def _reads(device: jax.Device, repeats: int) -> dict[str, Timing]:
    values = np.ones((READ_ROWS, READ_BYTES // READ_ROWS // 4), np.float32)
    on_device = jax.device_put(values, device)
    rows = jax.jit(lambda x: jnp.max(x, axis=1))
    calls: dict[str, Callable[[], object]] = {"XLA row maxima": lambda: rows(on_device).block_until_ready()}
    if device.platform != "cpu":
        return dict(zip(calls, interleaved(list(calls.values()), repeats), strict=True))
    cores = len(os.sched_getaffinity(0))
    parts = np.array_split(values.reshape(-1).view(np.int64), cores)
    with ThreadPoolExecutor(cores) as pool:
        calls["numpy sum, a thread per core"] = lambda: list(pool.map(np.add.reduce, parts))
        return dict(zip(calls, interleaved(list(calls.values()), repeats), strict=True))


def _product(model: ModelConfig, device: jax.Device) -> tuple[Callable[[], object], int]:
    """The widest product of a layer with enough rows to be limited by arithmetic, and its FLOP."""
    width, inner = model.hidden_size, model.intermediate_size
    with jax.default_device(device):
        x = jnp.full((MATMUL_TOKENS, width), 0.5, model.dtype)
        weight = jnp.full((inner, width), 0.5, model.dtype)
    multiply = jax.jit(project)
    return lambda: multiply(x, weight).block_until_ready(), 2 * MATMUL_TOKENS * width * inner
