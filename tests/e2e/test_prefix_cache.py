"""The prefix cache over real engines: right answers under eviction, and only missing pages on the way."""

import asyncio
import random
from pathlib import Path

import jax
import pytest

from actors.client import GenerateRequest
from actors.messages import Completed
from actors.supervisor import WorkerSupervisor
from actors.system import System, running_system
from actors.wiring import SystemOptions
from actors.worker import WorkerActor
from runtime.engine import KvChunk, KvMover
from runtime.kv_mover import DevicePutMover
from runtime.sampling_params import SamplingParams
from runtime.topology import parse_topology
from tests.checkpoints import write_checkpoint
from tests.e2e.parity import PAGE_SIZE, Answer, EngineShelf, NoText, ask, compare
from tests.reference_model import ReferenceModel

NUM_REQUESTS = 1000
AT_ONCE = 24
VOCAB_SIZE = 200


class CountingMover:
    """Counts the bytes that travel."""

    def __init__(self, mover: KvMover) -> None:
        self._mover = mover
        self.num_bytes = 0

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        self.num_bytes += sum(array.nbytes for array in jax.tree.leaves(chunk))
        return self._mover.move(chunk, target)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), max_position_embeddings=4096, seed=11)


def _workload() -> list[GenerateRequest]:
    """Thousand prompts over thirty beginnings; together these are twice what a pool holds."""
    rng = random.Random(3)
    texts = [tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(16, 160))) for _ in range(30)]
    requests = list[GenerateRequest]()
    for index in range(NUM_REQUESTS):
        text = rng.choice(texts)
        prompt = text[: rng.randint(1, len(text))] if rng.random() < 0.2 else text
        prompt += tuple(rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 20)))
        params = SamplingParams(seed=index, max_tokens=rng.randint(1, 6), temperature=0.0, logprobs=0)
        requests.append(GenerateRequest(request=f"r{index}", prompt=prompt, params=params))
    return requests


def _check_books(system: System) -> int:
    """Every page is free or cached; returns how many are cached."""
    cached = 0
    for supervisor in [spec.actor for spec in system.specs if isinstance(spec.actor, WorkerSupervisor)]:
        assert isinstance(supervisor.worker, WorkerActor)
        pool = supervisor.worker.state.pool
        pool.check_integrity()
        assert pool.counts().held == pool.counts().leased == 0
        cached += pool.counts().cached
    return cached


async def _run(
    shelf: EngineShelf, topology: str, requests: list[GenerateRequest], prefix_cache: bool
) -> dict[str, Answer]:
    engines = shelf.engines(topology)
    mover = DevicePutMover({name: engine.placement.chunk for name, engine in engines.items()})
    options = SystemOptions(max_queued=NUM_REQUESTS, decode_reserve_tokens=4, prefix_cache=prefix_cache)
    results: dict[str, Answer] = {}
    at_once = asyncio.Semaphore(AT_ONCE)
    async with running_system(engines, parse_topology(topology), mover, NoText, options) as system:

        async def answer(request: GenerateRequest) -> None:
            async with at_once:
                results[request.request] = await ask(system, request)

        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(answer(request))
        assert await system.drain(60)
        assert (_check_books(system) > 0) == prefix_cache
    return results


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("topology", ["prefill=2,decode=2", "mixed=1"])
def test_a_thousand_requests_over_shared_prefixes_under_eviction(topology: str, checkpoint: Path) -> None:
    requests = _workload()
    shelf = EngineShelf(checkpoint, "float32", chunk_tokens=64, num_pages=97)
    cold = asyncio.run(_run(shelf, topology, requests, prefix_cache=False))
    cached = asyncio.run(_run(shelf, topology, requests, prefix_cache=True))
    verdict = compare(ReferenceModel(checkpoint), requests, cold, cached, 2e-4, 1e-5)
    assert not verdict.wrong
    assert len(verdict.close_calls) <= 10
    assert verdict.max_logprob_gap <= 1e-4
    hits = [cached[request.request].cached_tokens for request in requests]
    assert all(hit % PAGE_SIZE == 0 and hit < len(request.prompt) for hit, request in zip(hits, requests, strict=True))
    assert 0.2 < sum(hits) / sum(len(request.prompt) for request in requests) < 0.95
    assert not any(answer.cached_tokens for answer in cold.values())


def test_a_hit_moves_the_bytes_of_the_missing_pages_alone(checkpoint: Path) -> None:
    topology, rng = "prefill=1,decode=1", random.Random(4)
    shelf = EngineShelf(checkpoint, "float32", chunk_tokens=64)
    engines = shelf.engines(topology)
    page_bytes = engines["decode.0"].spec.page_bytes
    prefix = tuple(rng.randrange(VOCAB_SIZE) for _ in range(1024))

    async def run() -> list[tuple[int, int]]:
        mover = CountingMover(DevicePutMover({name: engine.placement.chunk for name, engine in engines.items()}))
        seen = list[tuple[int, int]]()
        async with running_system(engines, parse_topology(topology), mover, NoText, SystemOptions()) as system:
            for index in range(3):
                suffix = tuple(rng.randrange(VOCAB_SIZE) for _ in range(3 * PAGE_SIZE + 1))
                params = SamplingParams(seed=index, max_tokens=4, temperature=0.0)
                before = mover.num_bytes
                answer = await ask(system, GenerateRequest(request=f"r{index}", prompt=prefix + suffix, params=params))
                seen.append((answer.cached_tokens, (mover.num_bytes - before) // page_bytes))
        return seen

    cold, *warm = asyncio.run(run())
    assert cold[0] == 0
    assert cold[1] >= 68
    assert warm == [(1024, 4), (1024, 4)], "three full pages and one begun"


def test_usage_tells_what_was_cached(checkpoint: Path) -> None:
    """`Completed` carries attempt 1's hit, floored to a page and short of the prompt's last token."""
    shelf, prompt = EngineShelf(checkpoint, "float32"), tuple(range(3 * PAGE_SIZE))

    async def run() -> list[int]:
        options = SystemOptions()
        engines = shelf.engines("mixed=1")
        mover = DevicePutMover({name: engine.placement.chunk for name, engine in engines.items()})
        hits = list[int]()
        async with running_system(engines, parse_topology("mixed=1"), mover, NoText, options) as system:
            for index, salt in enumerate((None, None, "other", "other")):
                params = SamplingParams(seed=0, max_tokens=2, temperature=0.0)
                request = GenerateRequest(request=f"r{index}", prompt=prompt, params=params, cache_salt=salt)
                async with system.client.stream(request) as events:
                    last = [event async for event in events][-1]
                assert isinstance(last, Completed)
                hits.append(last.cached_tokens)
        return hits

    assert asyncio.run(run()) == [0, 2 * PAGE_SIZE, 0, 2 * PAGE_SIZE]
