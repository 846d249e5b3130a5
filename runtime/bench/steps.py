"""Timing an engine's steps: prefill by tokens, decode by batch, and decode with attention cut out.

The ablated engine is the engine with attention passing its queries through: same programs, same KV writes, same
sampler. Two engines share the weights and take turns, so that both see the same machine.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import msgspec

from kernels.kv_write import write_kv
from runtime.bench.machine import Machine
from runtime.bench.timing import Timing, interleaved
from runtime.engine import EngineSpec, PrefillSegment, RowState, Step
from runtime.jax_engine import JaxEngine
from runtime.kv_cache import pool_shape
from runtime.model_config import ModelConfig
from runtime.sampling_params import SamplingParams
from runtime.step_config import PAGED_ATTENTION, AttentionOps

PAGE_SIZE = 16


class Passthrough:
    """Attention that returns its queries; KV is written."""

    write = staticmethod(write_kv)

    @staticmethod
    def prefill(
        q: jax.Array,
        kv_pages: jax.Array,
        page_table: jax.Array,
        cu_q_lens: jax.Array,
        context_lens: jax.Array,
        *,
        scale: float,
        sliding_window: int | None = None,
    ) -> jax.Array:
        """`q` as it is."""
        return q

    @staticmethod
    def decode(
        q: jax.Array,
        kv_pages: jax.Array,
        page_table: jax.Array,
        context_lens: jax.Array,
        *,
        scale: float,
        sliding_window: int | None = None,
    ) -> jax.Array:
        """`q` as it is."""
        return q


PASSTHROUGH = Passthrough()


class PrefillTiming(msgspec.Struct, frozen=True, kw_only=True):
    """One prefill chunk from position 0."""

    tokens: int
    step: Timing


class DecodeTiming(msgspec.Struct, frozen=True, kw_only=True):
    """One decode step. The bound is for the step without attention, and so are its bare products."""

    batch: int
    context_tokens: int
    step: Timing
    without_attention: Timing
    products: Timing
    bytes_read: int
    flop: int
    bound_s: float

    @property
    def attention_s(self) -> float:
        """What attention adds, from the medians."""
        return self.step.median_s - self.without_attention.median_s

    @property
    def ratio(self) -> float:
        """Step without attention over its bound; 1 is the limit."""
        return self.without_attention.median_s / self.bound_s

    @property
    def ratio_to_products(self) -> float:
        """Step without attention over its matrix products alone: what the engine adds to them."""
        return self.without_attention.median_s / self.products.median_s


def make_engine(
    model: ModelConfig,
    params: Any,
    device: jax.Device,
    *,
    num_rows: int,
    chunk_tokens: int,
    max_context_tokens: int,
    attention: AttentionOps = PAGED_ATTENTION,
) -> JaxEngine:
    """A mixed engine with just enough pages: prefill and decode on one device, compiled as it is used."""
    pages_per_row = -(-max_context_tokens // PAGE_SIZE)
    spec = EngineSpec(
        page_size=PAGE_SIZE,
        num_pages=num_rows * pages_per_row + 1,
        num_rows=num_rows,
        max_context_tokens=max_context_tokens,
        vocab_size=model.vocab_size,
        chunk_tokens=chunk_tokens,
        max_prefill_segments=1,
        page_bytes=pool_shape(model, PAGE_SIZE, device.platform).page_bytes,
    )
    return JaxEngine(model, params, spec, role="mixed", devices=[device], attention=attention)


def time_prefill(engine: JaxEngine, token_counts: Sequence[int], repeats: int) -> list[PrefillTiming]:
    """Chunks of one prompt's first tokens, not sampled."""
    steps = [_prefill_step(engine, count) for count in token_counts]
    timings = interleaved([_call(engine, step) for step in steps], repeats)
    return [PrefillTiming(tokens=count, step=timing) for count, timing in zip(token_counts, timings, strict=True)]


def time_decode(
    engine: JaxEngine,
    ablated: JaxEngine,
    model: ModelConfig,
    machine: Machine,
    products: Timing,
    batch: int,
    context_tokens: int,
    repeats: int,
) -> DecodeTiming:
    """One greedy step of `batch` rows that hold `context_tokens` tokens each."""
    step = Step(decode=tuple(range(batch)))
    for each in (engine, ablated):
        each.set_rows([_row(each, row, context_tokens) for row in range(batch)])
    full, without = interleaved([_call(engine, step), _call(ablated, step)], repeats)
    bytes_read, flop = decode_cost(model, batch)
    return DecodeTiming(
        batch=batch,
        context_tokens=context_tokens,
        step=full,
        without_attention=without,
        products=products,
        bytes_read=bytes_read,
        flop=flop,
        bound_s=max(bytes_read / machine.read_bytes_per_s, flop / machine.matmul_flop_per_s),
    )


def decode_cost(model: ModelConfig, batch: int) -> tuple[int, int]:
    """Bytes of weights read and FLOP of products of one decode step without attention.

    All matrices are read once; of the embedding only `batch` rows, which do not count.
    """
    heads = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    attention = model.hidden_size * heads + model.num_heads * model.head_dim * model.hidden_size
    mlp = 3 * model.hidden_size * model.intermediate_size
    weights = model.num_layers * (attention + mlp) + model.vocab_size * model.hidden_size
    return weights * jax.numpy.dtype(model.dtype).itemsize, 2 * batch * weights


def _call(engine: JaxEngine, step: Step) -> Callable[[], object]:
    return lambda: engine.fetch(engine.dispatch(step))


def _prefill_step(engine: JaxEngine, count: int) -> Step:
    pages = tuple(range(1, engine.spec.pages_for(count) + 1))
    tokens = tuple(index % engine.spec.vocab_size for index in range(count))
    return Step(prefill=(PrefillSegment(tokens=tokens, start=0, pages=pages),))


def _row(engine: JaxEngine, row: int, context_tokens: int) -> RowState:
    width = engine.spec.pages_for(engine.spec.max_context_tokens)
    return RowState(
        row=row,
        sampling=SamplingParams(seed=row, max_tokens=1, temperature=0.0),
        choice=0,
        prompt=(),
        output=(),
        pages=tuple(range(1 + row * width, 1 + (row + 1) * width)),
        length=context_tokens,
        last_token=row,
    )
