"""Slices of several devices behind the actors: equal to one device, without compilations, host copies or deadlocks."""

import itertools
import random
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from actors.client import GenerateRequest
from runtime.demo import MODEL_DIR
from runtime.engine import KvChunk, Step
from runtime.jax_engine import JaxEngine
from runtime.sampling_params import SamplingParams
from tests.checkpoints import write_checkpoint
from tests.e2e.host_reads import HostReads
from tests.e2e.parity import PAGE_SIZE, EngineShelf, answers, compare, mover_of
from tests.e2e.test_parity import MAX_LOGPROB_GAP, TAU, TAU_CUT
from tests.reference_model import ReferenceModel
from tests.runtime.engines import Runner, assert_greedy, make_engine, prompt_of, row_state, segment

TOPOLOGIES = ("prefill=1x2,decode=1x1", "prefill=1x1,decode=1x2", "prefill=2x1,decode=1x4", "prefill=1x4,decode=2x2")
LENGTHS = (1, 15, 16, 17, 31, 32, 33, 48, 100, 150)
MAX_CLOSE_CALLS = {"float32": 1, "bfloat16": 6}
"""Of 20 requests."""


def _requests() -> list[GenerateRequest]:
    """Prompts around page and chunk borders, greedy and with seeded sampling, and two choices of one."""
    rng = random.Random(8)
    requests = list[GenerateRequest]()
    for index, length in enumerate(LENGTHS):
        prompt = tuple(rng.randrange(200) for _ in range(length))
        greedy = SamplingParams(seed=0, max_tokens=2 + index % 9, temperature=0.0, logprobs=0)
        seeded = SamplingParams(seed=index, max_tokens=3 + index % 7, temperature=0.8, top_p=0.95, logprobs=0)
        requests += [
            GenerateRequest(request=f"p{length}-greedy", prompt=prompt, params=greedy),
            GenerateRequest(request=f"p{length}-seeded", prompt=prompt, params=seeded),
        ]
    return requests


@pytest.fixture(scope="module", params=[2, 8], ids="{} kv heads".format)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("model"),
        max_position_embeddings=256,
        num_heads=8,
        num_kv_heads=request.param,
        head_dim=16,
        seed=11,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_mix_of_widths_equals_one_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compare(folder, "float32", TOPOLOGIES, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_bfloat16_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compare(folder, "bfloat16", TOPOLOGIES[3:], monkeypatch)


def _compare(folder: Path, dtype: str, topologies: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, reference = EngineShelf(folder, dtype, chunk_tokens=32, num_pages=257, num_rows=4), ReferenceModel(folder)
    requests, reads = _requests(), HostReads(monkeypatch)
    alone = answers(shelf.engines("mixed=1"), "mixed=1", requests)
    for topology, cached in itertools.product(topologies, (False, True)):
        engines = shelf.engines(topology)
        mover = mover_of(engines, shelf.config.num_kv_heads)
        split = answers(engines, topology, requests, mover, prefix_cache=cached)
        verdict = compare(reference, requests, alone, split, TAU[dtype], TAU_CUT[dtype])
        how = "cached" if cached else "cold"
        print(f"{shelf.config.num_kv_heads} kv heads {dtype} {topology} {how}: {verdict}")  # noqa: T201
        hits = [split[request.request].cached_tokens for request in requests]
        full = [(len(request.prompt) - 1) // PAGE_SIZE * PAGE_SIZE for request in requests]
        assert all(hit <= most for hit, most in zip(hits, full, strict=True))
        assert sum(hits) >= 0.7 * sum(full) if cached else sum(hits) == 0, "a busy slice may leave some to the other"
        assert not verdict.wrong
        assert len(verdict.close_calls) <= MAX_CLOSE_CALLS[dtype]
        assert verdict.max_logprob_gap <= MAX_LOGPROB_GAP[dtype]
        assert reads.count == 0


class _MovesWholeArrays:
    """A planted violation: whole arrays under the target's sharding, which jax takes through the host."""

    def __init__(self, engines: dict[str, JaxEngine]) -> None:
        self._engines = engines

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        assert isinstance(chunk, tuple)
        engine = self._engines[target]
        return KvChunk(tuple(jax.device_put(array, engine.placement.chunk) for array in chunk))


def test_unequal_widths_compile_nothing_and_read_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model's 2 kv heads on slices of 1 and 4 devices, where a head has copies."""
    topology = "prefill=1,decode=1x4"
    shelf = EngineShelf(MODEL_DIR, "float32", chunk_tokens=32, num_pages=257, num_rows=4)
    engines, requests = shelf.engines(topology), _requests()[-8:]
    for engine in engines.values():
        engine.warm_up()
    reads = HostReads(monkeypatch)
    clean = answers(engines, topology, requests, mover_of(engines, shelf.config.num_kv_heads))
    assert {name: engine.compiles_since_warm_up() for name, engine in engines.items()} == dict.fromkeys(engines, 0)
    assert reads.count == 0
    chunk = engines["decode.0"].gather((1,))
    _MovesWholeArrays(engines).move(chunk, "prefill.0")
    assert reads.count > 0, "a planted violation is seen"
    assert all(clean[request.request].tokens for request in requests)


NUM_STEPS, NUM_SLICES = 150, 4


@pytest.mark.timeout(300)
def test_slices_that_share_a_thread_pool_do_not_block_each_other() -> None:
    """Four slices of two devices each, all steps dispatched before one is fetched, with chunks moved in between.

    Without a bound on programs in flight XLA ends the process here, after 40 s.
    """
    engines = [make_engine("mixed", 2 * index, tp=2, max_context_tokens=512) for index in range(NUM_SLICES)]
    prompt = prompt_of(30)
    tokens: list[list[int]] = [[] for _ in engines]

    def drive(index: int) -> None:
        engine = engines[index]
        engine.set_rows([row_state(0, prompt, range(1, 40))])
        runner = Runner(engine)
        runner.run(prefill=(segment(prompt, range(1, 40), rows=(0,)),))
        handles = []
        for step in range(NUM_STEPS):
            handles.append(engine.dispatch(Step(decode=(0,))))
            if step % 10 == 0:
                engine.insert(engine.gather((1, 2)), (0, 1), (50, 51))
        tokens[index] = runner.tokens(0) + [engine.fetch(handle)[0].token for handle in handles]

    threads = [threading.Thread(target=drive, args=(index,), daemon=True) for index in range(NUM_SLICES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert all(len(each) == 1 + NUM_STEPS for each in tokens)
    assert all(each == tokens[0] for each in tokens)
    assert_greedy(prompt, tokens[0])
    np.testing.assert_array_equal(engines[0].gather((50,)), engines[0].gather((1,)))


def test_four_slices_of_two_devices_serve_together() -> None:
    """The same through the actors, twice: requests, tokens and chunks take other ways, the answers stay."""
    topology = "prefill=2x2,decode=2x2"
    shelf = EngineShelf(MODEL_DIR, "float32", chunk_tokens=32, num_pages=257, num_rows=4)
    engines = shelf.engines(topology)
    first = answers(engines, topology, _requests(), mover_of(engines, shelf.config.num_kv_heads))
    again = answers(engines, topology, _requests(), mover_of(engines, shelf.config.num_kv_heads))
    assert {name: answer.tokens for name, answer in first.items()} == {
        name: answer.tokens for name, answer in again.items()
    }
