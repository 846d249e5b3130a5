"""Runs the same requests on different topologies and judges the differences by design invariant 4.

Randomness depends on the request alone, arithmetic on shapes. So two answers are equal when their tokens are, or when
they first differ where float32 logits say that the choice was closer than a stated tau.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from actors.client import GenerateRequest
from actors.messages import Completed, Delta
from actors.system import System, running_system
from actors.wiring import SystemOptions
from kernels.implementations import Implementation
from runtime.engine import EngineSpec, KvMover
from runtime.jax_engine import JaxEngine
from runtime.kv_cache import pool_shape
from runtime.kv_mover import DevicePutMover, chunk_heads_of
from runtime.model_config import load_model_config
from runtime.placement import Placement
from runtime.sampler_noise import gumbel, row_keys
from runtime.text_stream import TextOptions
from runtime.topology import Slice, parse_topology
from runtime.weights import load_weights
from tests.reference_model import ReferenceModel

PAGE_SIZE = 16
PATIENCE_S = 36_000.0


class Answer(msgspec.Struct):
    """Tokens and the logprobs of the chosen ones, and how much of the prompt came from a cache."""

    tokens: list[int]
    logprobs: list[float]
    cached_tokens: int


class NoText:
    """Text is not compared here: it is derived from tokens."""

    def __init__(self, options: TextOptions) -> None:
        pass

    def push(self, token: int) -> tuple[str, str | None]:
        return "", None

    def finish(self) -> str:
        return ""


FIRST_DEVICE = {"prefill": 0, "decode": 4, "mixed": 7}
"""Where the slices of a role lie among the eight virtual devices, whatever the topology."""


class EngineShelf:
    """Engines of one checkpoint, made once and used in every topology that they suit; they are left empty by each."""

    def __init__(
        self,
        folder: Path,
        dtype: str,
        *,
        chunk_tokens: int = 128,
        num_pages: int = 1025,
        num_rows: int = 16,
        kernels: Implementation = "xla",
        checksums: bool = False,
    ) -> None:
        self._kernels = kernels
        self._checksums = checksums
        self.config = msgspec.structs.replace(load_model_config(folder), dtype=dtype)
        self._folder = folder
        self._made: dict[tuple[str, int, int], JaxEngine] = {}
        self._spec = EngineSpec(
            page_size=PAGE_SIZE,
            num_pages=num_pages,
            num_rows=num_rows,
            max_context_tokens=self.config.max_position_embeddings,
            vocab_size=self.config.vocab_size,
            chunk_tokens=chunk_tokens,
            max_prefill_segments=8,
            page_bytes=pool_shape(self.config, PAGE_SIZE, "cpu", kernels=kernels != "xla").page_bytes,
        )

    def engines(self, topology: str) -> dict[str, JaxEngine]:
        """One engine per slice on virtual CPU devices, not warmed up."""
        slices = parse_topology(topology).slices
        chunk_heads = chunk_heads_of(self.config.num_kv_heads, frozenset(len(part.devices) for part in slices))
        return {part.name: self._engine(part, chunk_heads) for part in slices}

    def _engine(self, part: Slice, chunk_heads: int) -> JaxEngine:
        tp = len(part.devices)
        key = part.name, tp, chunk_heads
        if key not in self._made:
            first = FIRST_DEVICE[part.role] + int(part.name.split(".")[1]) * tp
            devices = jax.devices()[first : first + tp]
            params = load_weights(self._folder, self.config, self.config.dtype, Placement(devices))
            self._made[key] = JaxEngine(
                self.config,
                params,
                self._spec,
                role=part.role,
                devices=devices,
                kernels=self._kernels,
                chunk_heads=chunk_heads,
                checksums=self._checksums,
            )
        return self._made[key]


def mover_of(engines: Mapping[str, JaxEngine], num_kv_heads: int) -> DevicePutMover:
    """The mover between engines of any TPs."""
    return DevicePutMover({name: engine.placement.chunk for name, engine in engines.items()}, num_kv_heads)


def answers(
    engines: dict[str, JaxEngine],
    topology: str,
    requests: list[GenerateRequest],
    mover: KvMover | None = None,
    *,
    prefix_cache: bool = False,
) -> dict[str, Answer]:
    """All requests at once through the actors; between slices of unequal TP a mover is needed.

    With a prefix cache they are asked twice: the second answers count.
    """
    mover = mover or DevicePutMover({name: engine.placement.chunk for name, engine in engines.items()})
    return asyncio.run(_answers(engines, topology, requests, mover, prefix_cache))


async def _answers(
    engines: dict[str, JaxEngine],
    topology: str,
    requests: list[GenerateRequest],
    mover: KvMover,
    prefix_cache: bool,
) -> dict[str, Answer]:
    options = SystemOptions(max_queued=len(requests), decode_reserve_tokens=16, prefix_cache=prefix_cache)
    results: dict[str, Answer] = {}
    async with running_system(engines, parse_topology(topology), mover, NoText, options) as system:

        async def answer(request: GenerateRequest) -> None:
            results[request.request] = await ask(system, request)

        for _ in range(2 if prefix_cache else 1):
            async with asyncio.TaskGroup() as group:
                for request in requests:
                    group.create_task(answer(request))
    return results


async def ask(system: System, request: GenerateRequest) -> Answer:
    """The answer to a request of one choice, which must succeed.

    It may wait for long: these engines compile while they serve, and from the little that ends meanwhile the scheduler
    concludes that newcomers would wait for minutes.
    """
    request = msgspec.structs.replace(request, queue_timeout_s=PATIENCE_S)
    answer = Answer([], [], 0)
    async with system.client.stream(request) as events:
        async for event in events:
            if isinstance(event, Delta):
                answer.tokens += [record.token for record in event.tokens]
                answer.logprobs += [record.logprob for record in event.tokens if record.logprob is not None]
            else:
                assert isinstance(event, Completed), event
                answer.cached_tokens = event.cached_tokens
    return answer


class Verdict(msgspec.Struct):
    """What a comparison saw."""

    equal: int = 0
    close_calls: list[str] = []
    wrong: list[str] = []
    max_logprob_gap: float = 0.0


def compare(
    reference: ReferenceModel,
    requests: list[GenerateRequest],
    expected: dict[str, Answer],
    actual: dict[str, Answer],
    tau: float,
    tau_cut: float,
) -> Verdict:
    """Judges each request; a first difference is excused where float32 itself is undecided.

    That is where the two tokens' scores differ by less than `tau`, or where one of them lies within `tau_cut` of
    probability mass of the top-p cut.
    """
    verdict = Verdict()
    for request in requests:
        a, b = expected[request.request], actual[request.request]
        pairs = enumerate(zip(a.tokens, b.tokens, strict=False))
        first = next((index for index, (x, y) in pairs if x != y), None)
        common = first if first is not None else min(len(a.tokens), len(b.tokens))
        gaps = np.abs(np.subtract(a.logprobs[:common], b.logprobs[:common]))
        verdict.max_logprob_gap = max(verdict.max_logprob_gap, float(gaps.max(initial=0.0)))
        if first is None:
            assert len(a.tokens) == len(b.tokens), request.request
            verdict.equal += 1
            continue
        margin, cut = margins(reference, request, a.tokens[:first], a.tokens[first], b.tokens[first])
        note = (
            f"{request.request} at {first}: {a.tokens[first]} or {b.tokens[first]}, {margin:.2e} apart, cut {cut:.2e}"
        )
        (verdict.close_calls if margin < tau or cut < tau_cut else verdict.wrong).append(note)
    return verdict


def margins(
    reference: ReferenceModel, request: GenerateRequest, prefix: list[int], first: int, second: int, choice: int = 0
) -> tuple[float, float]:
    """How far the two tokens' (perturbed) scores are apart, and how near the nearer one is to the top-p cut."""
    params = request.params
    logits = reference.logits([*request.prompt, *prefix])[-1].astype(np.float64)
    if params.temperature == 0:
        return abs(logits[first] - logits[second]), np.inf
    scaled = logits / params.temperature
    seed = np.array([[params.seed & 0xFFFFFFFF, params.seed >> 32 & 0xFFFFFFFF]], np.uint32)
    key = row_keys(jnp.asarray(seed), jnp.full(1, choice, jnp.int32), jnp.full(1, len(prefix), jnp.int32))
    noise = np.asarray(gumbel(key, len(logits)), np.float64)[0]
    perturbed = abs((scaled + noise)[first] - (scaled + noise)[second])
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    cuts = [abs(before[order == token][0] - params.top_p) for token in (first, second)]
    return float(perturbed), float(min(cuts))
