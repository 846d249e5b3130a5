"""Runs the decoder over whole sequences through the paged KV, in prefill chunks or token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kernels.chunked_prefill import chunked_prefill
from kernels.kv_pool import storage_dtype
from kernels.kv_write import write_kv
from kernels.paged_decode import paged_decode
from runtime.model_config import ModelConfig
from runtime.models import decoder
from runtime.models.parameters import Params


class PagedModel:
    """One model and a pool in which each of R sequences has shuffled pages of its own."""

    def __init__(
        self, params: Params, config: ModelConfig, *, num_sequences: int, max_tokens: int, page_size: int = 16
    ) -> None:
        width = -(-max_tokens // page_size)
        pages = np.random.default_rng(3).permutation(num_sequences * width) + 1
        dtype = jax.tree.leaves(params)[0].dtype
        shape = (len(pages) + 1, config.num_kv_heads, 2, page_size, config.head_dim)
        storage = storage_dtype(dtype, jax.default_backend())
        self._params = params
        self._config = config
        self._table = pages.reshape(num_sequences, width).astype(np.int32)
        self._pool = [jnp.zeros(shape, storage) for _ in range(config.num_layers)]
        self._page_size = page_size

    def logits(self, sequences: list[np.ndarray], *, chunk: int, num_prefill: int | None = None) -> list[np.ndarray]:
        """Logits `float32[T, V]` of every position of each sequence.

        The first `num_prefill` tokens (None: all) go through prefill, up to `chunk` of each sequence at a time; the
        rest through decode, one of each sequence at a time.
        """
        longest = max(map(len, sequences))
        num_prefill = longest if num_prefill is None else min(num_prefill, longest)
        out: list[list[np.ndarray]] = [[] for _ in sequences]
        start = 0
        while start < longest:
            is_prefill = start < num_prefill
            stop = min(start + chunk, num_prefill) if is_prefill else start + 1
            parts = [tokens[start:stop] for tokens in sequences]
            step = self._prefill if is_prefill else self._decode
            for rows, scores in zip(out, step(parts, start, chunk), strict=True):
                rows.append(scores)
            start = stop
        return [np.concatenate(rows) for rows in out]

    def _prefill(self, parts: list[np.ndarray], start: int, chunk: int) -> list[np.ndarray]:
        lens = np.array([len(part) for part in parts])
        cu_q_lens = np.cumsum([0, *lens])
        flat = np.zeros((3, len(parts) * chunk), np.int32)  # tokens, positions, slots
        for row, part in enumerate(parts):
            flat[:, cu_q_lens[row] : cu_q_lens[row + 1]] = self._placed(row, part, start)
        contexts = np.where(lens > 0, start + lens, 0)
        scores = self._run("prefill", flat, cu_q_lens.astype(np.int32), contexts.astype(np.int32))
        return np.split(scores[: cu_q_lens[-1]], cu_q_lens[1:-1])

    def _decode(self, parts: list[np.ndarray], start: int, chunk: int) -> list[np.ndarray]:
        flat = np.zeros((3, len(parts)), np.int32)
        for row, part in enumerate(parts):
            if len(part):
                flat[:, row : row + 1] = self._placed(row, part, start)
        lens = np.array([len(part) for part in parts])
        contexts = np.where(lens > 0, start + 1, 0)
        scores = self._run("decode", flat, np.zeros(0, np.int32), contexts.astype(np.int32))
        return [scores[row : row + size] for row, size in enumerate(lens)]

    def _placed(self, row: int, tokens: np.ndarray, start: int) -> np.ndarray:
        positions = np.arange(start, start + len(tokens))
        pages = self._table[row, positions // self._page_size]
        return np.stack([tokens, positions, pages * self._page_size + positions % self._page_size])

    def _run(self, phase: str, flat: np.ndarray, cu_q_lens: np.ndarray, context_lens: np.ndarray) -> np.ndarray:
        scores, self._pool = _step(
            self._params, self._pool, flat, self._table, cu_q_lens, context_lens, self._config, phase
        )
        return np.asarray(scores)


@functools.partial(jax.jit, static_argnames=("config", "phase"), donate_argnums=1)
def _step(
    params: Params,
    pool: list[jax.Array],
    flat: jax.Array,
    table: jax.Array,
    cu_q_lens: jax.Array,
    context_lens: jax.Array,
    config: ModelConfig,
    phase: str,
) -> tuple[jax.Array, list[jax.Array]]:
    tokens, positions, slots = flat
    scale = config.head_dim**-0.5

    def attend(
        kv: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, window: int | None
    ) -> tuple[jax.Array, jax.Array]:
        kv = write_kv(kv, k, v, slots)
        if phase == "prefill":
            return kv, chunked_prefill(q, kv, table, cu_q_lens, context_lens, scale=scale, sliding_window=window)
        return kv, paged_decode(q, kv, table, context_lens, scale=scale, sliding_window=window)

    hidden, pool = decoder.forward(params, config, tokens, positions, pool, attend)
    return decoder.logits(params, config, hidden), pool
