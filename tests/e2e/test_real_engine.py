"""The actors over real engines on virtual devices: compilations, host round-trips, overlap, aborts."""

import asyncio
import random
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import jax
import numpy as np
import pytest

from actors.client import GenerateRequest
from actors.messages import Completed, Delta
from actors.supervisor import WorkerSupervisor
from actors.system import System, running_system
from actors.wiring import SystemOptions
from actors.worker import WorkerActor
from runtime.demo import MODEL_DIR
from runtime.engine import Engine, KvChunk, KvMover, Sampled, Step, StepHandle
from runtime.jax_engine import JaxEngine
from runtime.kv_mover import DevicePutMover
from runtime.sampling_params import SamplingParams
from runtime.topology import parse_topology
from tests.actors.test_system import cut_while_queued
from tests.e2e.host_reads import HostReads
from tests.e2e.parity import EngineShelf, NoText

TOPOLOGY = "prefill=2,decode=2"
OPTIONS = SystemOptions(max_queued=128, decode_reserve_tokens=16)


@pytest.fixture(scope="module")
def engines() -> dict[str, JaxEngine]:
    """Warm engines of the demo model; each test leaves them empty."""
    made = EngineShelf(MODEL_DIR, "float32", chunk_tokens=64, num_pages=129).engines(TOPOLOGY)
    for engine in made.values():
        engine.warm_up()
    return made


def _mover(engines: dict[str, JaxEngine]) -> DevicePutMover:
    return DevicePutMover({name: engine.placement.chunk for name, engine in engines.items()})


def _request(
    name: str, prompt_len: int, max_tokens: int = 20, num_choices: int = 1, **params: object
) -> GenerateRequest:
    rng = random.Random(name)
    sampling = SamplingParams(seed=rng.getrandbits(64) - 2**63, max_tokens=max_tokens, **params)  # type: ignore[arg-type]
    prompt = tuple(rng.randrange(500) for _ in range(prompt_len))
    return GenerateRequest(request=name, prompt=prompt, params=sampling, num_choices=num_choices)


async def _answer(system: System, request: GenerateRequest) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {choice: [] for choice in range(request.num_choices)}
    async with system.client.stream(request) as events:
        async for event in events:
            if isinstance(event, Delta):
                tokens[event.choice] += [record.token for record in event.tokens]
            else:
                assert isinstance(event, Completed), event
    return tokens


async def _ask_all(
    engines: dict[str, JaxEngine], requests: list[GenerateRequest], mover: KvMover | None = None
) -> dict[str, dict[int, list[int]]]:
    answers: dict[str, dict[int, list[int]]] = {}
    async with running_system(engines, parse_topology(TOPOLOGY), mover or _mover(engines), NoText, OPTIONS) as system:

        async def ask(request: GenerateRequest) -> None:
            answers[request.request] = await _answer(system, request)

        async with anyio.create_task_group() as group:
            for request in requests:
                group.start_soon(ask, request)
        await _settled(system)
    return answers


async def _settled(system: System) -> None:
    """Waits until nothing is held, then checks the books of every worker."""
    assert await system.drain(60)
    for spec in system.specs:
        if isinstance(spec.actor, WorkerSupervisor):
            worker = spec.actor.worker
            assert isinstance(worker, WorkerActor)
            state = worker.state
            with anyio.fail_after(30):
                while state.pool.available_pages != state.pool.counts().total - 1 or state.prefill.credits_used:
                    await anyio.lowlevel.checkpoint()
            state.pool.check_integrity()
            assert sorted(state.free_rows) == list(range(16))
            assert not state.decode.leases
            assert not state.decode.sequences
            assert not state.prefill.jobs
    assert len(system.carrier.arrays) == 0


def _mixed_traffic() -> list[GenerateRequest]:
    """Every sampling feature, prompt lengths across all buckets, one to four choices."""
    features: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 5, "min_p": 0.05, "logprobs": 20},
        {"presence_penalty": 0.5, "frequency_penalty": 0.2, "repetition_penalty": 1.2},
        {"logit_bias": ((5, 3.0), (7, -100.0)), "min_tokens": 8, "stop_token_ids": (5, 6)},
        {"allowed_mask": bytes([0xFF] * 32 + [0] * 32), "logprobs": 0},
    ]
    lengths = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 200, 300, 3, 8, 47, 129]
    return [
        _request(f"m{i}", length, max_tokens=5 + 3 * i, num_choices=1 + i % 4, **features[i % len(features)])
        for i, length in enumerate(lengths)
    ]


def test_nothing_compiles_after_warm_up(engines: dict[str, JaxEngine]) -> None:
    answers = asyncio.run(_ask_all(engines, _mixed_traffic()))
    assert len(answers) == 18
    assert {name: engine.compiles_since_warm_up() for name, engine in engines.items()} == dict.fromkeys(engines, 0)
    jax.jit(lambda x: x * 3 + 1)(np.arange(7))
    assert all(engine.compiles_since_warm_up() > 0 for engine in engines.values()), "the counter counts"


class _MovesThroughTheHost:
    """A planted violation: a mover that copies by way of host memory."""

    def __init__(self, engines: dict[str, JaxEngine]) -> None:
        self._engines = engines

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        host = jax.device_get(chunk)
        return KvChunk(jax.device_put(host, self._engines[target].placement.chunk))


class _GathersThroughTheHost:
    """A planted violation: an engine that looks at what it gathers."""

    def __init__(self, engine: JaxEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def gather(self, pages: Sequence[int]) -> KvChunk:
        chunk = self._engine.gather(pages)
        jax.device_get(chunk)
        return chunk


def test_a_transfer_makes_no_host_round_trip(engines: dict[str, JaxEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [_request(f"h{i}", 10 + 37 * i, temperature=0.0) for i in range(6)]
    reads = HostReads(monkeypatch)
    clean = asyncio.run(_ask_all(engines, requests))
    assert reads.count == 0
    moved = asyncio.run(_ask_all(engines, requests, _MovesThroughTheHost(engines)))
    assert reads.count >= len(requests), "a planted violation is seen"
    reads.count = 0
    peeking: dict[str, Any] = {name: _GathersThroughTheHost(engine) for name, engine in engines.items()}
    gathered = asyncio.run(_ask_all(peeking, requests, _mover(engines)))
    assert reads.count >= len(requests), "a planted violation is seen"
    assert clean == moved == gathered


class _Events:
    """What happened in which order, and a gate that opens when a chunk's move has started."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.moved: dict[int, threading.Event] = {}

    def gate(self, chunk: int) -> threading.Event:
        return self.moved.setdefault(chunk, threading.Event())


class _GatedEngine:
    """A prefill engine whose forward n+1 does not end before the move of chunk n has started."""

    def __init__(self, engine: Engine, events: _Events) -> None:
        self._engine = engine
        self._events = events
        self._chunk_of: dict[int, int] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def dispatch(self, step: Step) -> StepHandle:
        handle = self._engine.dispatch(step)
        self._chunk_of[handle.fence] = len(self._chunk_of)
        return handle

    def fetch(self, handle: StepHandle) -> tuple[Sampled, ...]:
        chunk = self._chunk_of[handle.fence]
        if chunk:
            assert self._events.gate(chunk - 1).wait(30), f"forward {chunk} waits in vain for move {chunk - 1}"
        sampled = self._engine.fetch(handle)
        self._events.log.append(f"forward {chunk} ended")
        return sampled


class _LoggedMover:
    def __init__(self, mover: KvMover, events: _Events) -> None:
        self._mover = mover
        self._events = events
        self._lock = threading.Lock()
        self._num_moves = 0

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        with self._lock:
            number, self._num_moves = self._num_moves, self._num_moves + 1
            self._events.log.append(f"move {number} started")
        self._events.gate(number).set()
        return self._mover.move(chunk, target)


def test_a_chunk_leaves_while_the_next_is_computed(engines: dict[str, JaxEngine]) -> None:
    """A server that moved chunk n only after forward n+1 would never pass the gate."""
    events = _Events()
    gated: dict[str, Engine] = dict(engines)
    gated["prefill.0"] = _GatedEngine(engines["prefill.0"], events)  # type: ignore[assignment]
    pair = {name: gated[name] for name in ("prefill.0", "decode.0")}

    async def run() -> dict[int, list[int]]:
        mover = _LoggedMover(_mover(engines), events)
        async with running_system(pair, parse_topology("prefill=1,decode=1"), mover, NoText, OPTIONS) as system:
            return await _answer(system, _request("long", 300, temperature=0.0))

    gated_answer = asyncio.run(run())
    for chunk in range(4):
        started, ended = events.log.index(f"move {chunk} started"), events.log.index(f"forward {chunk + 1} ended")
        assert started < ended, events.log
    assert gated_answer == asyncio.run(_ask_all(engines, [_request("long", 300, temperature=0.0)]))["long"]


def test_cut_streams_leave_nothing_behind(engines: dict[str, JaxEngine]) -> None:
    """64 concurrent streams: 16 are cut off mid-stream, 8 while queued, the other 40 are whole and right."""
    cut_off: list[str] = []
    kept = [_request(f"k{i}", 5 + 4 * i, num_choices=1, temperature=0.0) for i in range(40)]

    async def run() -> dict[str, dict[int, list[int]]]:
        whole: dict[str, dict[int, list[int]]] = {}
        async with running_system(engines, parse_topology(TOPOLOGY), _mover(engines), NoText, OPTIONS) as system:

            async def keep(request: GenerateRequest) -> None:
                whole[request.request] = await _answer(system, request)

            async def cut(request: GenerateRequest, after: int) -> None:
                async with system.client.stream(request) as events:
                    for _ in range(after):
                        assert isinstance(await anext(events), Delta)
                        cut_off.append(request.request)

            async with anyio.create_task_group() as group:
                for i in range(16):
                    group.start_soon(cut, _request(f"c{i}", 60 + i, max_tokens=200, temperature=0.0), 1)
                for request in kept:
                    group.start_soon(keep, request)
                await cut_while_queued(system, [_request(f"q{i}", 200) for i in range(8)])
            await _settled(system)
        return whole

    whole = asyncio.run(run())
    assert len(cut_off) == 16
    undisturbed = asyncio.run(_ask_all(engines, kept[::8]))
    assert {name: whole[name] for name in undisturbed} == undisturbed
    assert all(len(answer[0]) == 20 for answer in whole.values())
