"""Runs the decoder over whole sequences through the paged KV, in prefill chunks or token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kernels.kv_pool import storage_dtype
from runtime.kv_heads import KvHeads
from runtime.model_config import ModelConfig
from runtime.models import decoder
from runtime.models.parameters import Params
from runtime.placement import Placement
from runtime.step_config import PAGED_ATTENTION
from runtime.steps import AttentionInputs, attend_per_head


class PagedModel:
    """One model and a pool in which each of R sequences has shuffled pages of its own, on one device or on a slice."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        *,
        num_sequences: int,
        max_tokens: int,
        page_size: int = 16,
        placement: Placement | None = None,
    ) -> None:
        width = -(-max_tokens // page_size)
        pages = np.random.default_rng(3).permutation(num_sequences * width) + 1
        dtype = jax.tree.leaves(params)[0].dtype
        num_heads = KvHeads(config.num_kv_heads, 1 if placement is None else placement.tp).pool_heads
        shape = (len(pages) + 1, num_heads, 2, page_size, config.head_dim)
        storage = storage_dtype(dtype, jax.default_backend())
        self._params = params
        self._config = config
        self._table = pages.reshape(num_sequences, width).astype(np.int32)
        self._mesh = None if placement is None else placement.shared_mesh
        self._pool = [jnp.zeros(shape, storage) for _ in range(config.num_layers)]
        if placement is not None:
            self._pool = jax.device_put(self._pool, placement.pool)
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
            self._params, self._pool, flat, self._table, cu_q_lens, context_lens, self._config, phase, self._mesh
        )
        return np.asarray(scores)


@functools.partial(jax.jit, static_argnames=("config", "phase", "mesh"), donate_argnums=1)
def _step(
    params: Params,
    pool: list[jax.Array],
    flat: jax.Array,
    table: jax.Array,
    cu_q_lens: jax.Array,
    context_lens: jax.Array,
    config: ModelConfig,
    phase: str,
    mesh: Mesh | None,
) -> tuple[jax.Array, list[jax.Array]]:
    tokens, positions, slots = flat
    if phase == "prefill":
        where = AttentionInputs(slots, table, cu_q_lens, context_lens, None, None)
    else:
        where = AttentionInputs(slots, None, None, None, table, context_lens)
    attend = attend_per_head(where, config.head_dim**-0.5, PAGED_ATTENTION, mesh)
    hidden, pool = decoder.forward(params, config, tokens, positions, pool, attend, mesh=mesh)
    return decoder.logits(params, config, hidden), pool
