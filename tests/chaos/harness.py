"""A server of real engines that is struck while 32 clients read their streams, and what each of them got."""

import random
import time
from collections.abc import Mapping

import anyio
import msgspec
from llguidance import LLMatcher

from actors.client import GenerateRequest
from actors.messages import Completed, Delta, FinishReason
from actors.recovery import RecoveryOptions
from actors.supervisor import RestartPolicy, WorkerSupervisor
from actors.system import System, running_system
from actors.wiring import SystemOptions
from actors.worker import WorkerActor, WorkerOptions
from runtime.chaos.campaign import Campaign, Chaos
from runtime.chaos.corrupt import corrupt
from runtime.chaos.engine import ChaosEngine
from runtime.chaos.mover import ChaosMover
from runtime.constraints.host import HostConstraints
from runtime.demo import MODEL_DIR
from runtime.engine import Engine
from runtime.jax_engine import JaxEngine
from runtime.kv_mover import DevicePutMover
from runtime.sampling_params import ConstraintSpec, SamplingParams
from runtime.text_stream import TextOptions, TextStream
from runtime.tokens import Tokenizer
from runtime.topology import parse_topology
from tests.chaos.mortal import make_mortal
from tests.e2e.parity import EngineShelf

TOPOLOGY = parse_topology("prefill=2,decode=2")
NUM_STREAMS = 32
HANG_TIMEOUT_S = 2.0
OPTIONS = SystemOptions(
    max_queued=2 * NUM_STREAMS,
    decode_reserve_tokens=16,
    worker=WorkerOptions(step_timeout_s=HANG_TIMEOUT_S, verify_kv=True),
    restart=RestartPolicy(max_restarts=1000),
    recovery=RecoveryOptions(
        heartbeat_s=0.2, grace_s=0.6, gap_timeout_s=1.0, resend_s=0.3, max_resends=8, dead_after_s=10.0
    ),
)
"""Shorter times than a server's, so that waits for them are short, too; and workers that are never given up."""


class Stream(msgspec.Struct):
    """What a client got of one choice; `arrivals_s` has the time of every token."""

    tokens: list[int] = []
    logprobs: list[float | None] = []
    text: str = ""
    finish: FinishReason | None = None
    stop_match: str | int | None = None
    arrivals_s: list[float] = []

    @property
    def longest_gap_s(self) -> float:
        """The longest wait for a token behind the first."""
        return max((b - a for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)), default=0.0)


class Answer(msgspec.Struct):
    """What a client got of one request, by choice, and its usage; `scores` are the logprobs of its prompt."""

    streams: list[Stream]
    scores: list[float | None] = msgspec.field(default_factory=list)
    completion_tokens: int = 0
    cached_tokens: int = 0


def make_engines() -> dict[str, JaxEngine]:
    """Warm float32 engines of the demo model, small enough that requests compete."""
    shelf = EngineShelf(MODEL_DIR, "float32", chunk_tokens=64, num_pages=129, checksums=True)
    engines = shelf.engines(str(TOPOLOGY))
    for engine in engines.values():
        engine.warm_up()
    return engines


def make_requests(tokenizer: Tokenizer, seed: int) -> list[GenerateRequest]:
    """Questions to the demo model: greedy and seeded, with logprobs, stop strings and two choices, short and long.

    Some answers follow a grammar, and some prompts get logprobs.
    """
    digits = LLMatcher.grammar_from_regex("(yes|no)( [0-9]{1,3}){4,9}")
    rng = random.Random(f"chaos requests {seed}")
    requests = list[GenerateRequest]()
    for index in range(NUM_STREAMS):
        questions = " ".join(
            f"What is {rng.randrange(100)} {rng.choice('+-*')} {rng.randrange(100)}?" for _ in range(6)
        )
        prompt = tokenizer.render_chat([{"role": "user", "content": questions[: rng.randrange(16, len(questions))]}])
        params = SamplingParams(
            seed=rng.getrandbits(63),
            max_tokens=rng.randrange(24, 56),
            temperature=0.0 if index % 2 else 0.8,
            top_p=1.0 if index % 2 else 0.95,
            logprobs=(None, 0, 3)[index % 3],
            prompt_logprobs=1 if index % 7 == 3 else None,
            constraint=ConstraintSpec(grammar=digits) if index % 6 in (0, 3) else None,
        )
        request = GenerateRequest(
            request=f"r{index}",
            prompt=tuple(tokenizer.encode(prompt, add_special_tokens=False)),
            params=params,
            num_choices=2 if index % 5 == 0 else 1,
            text=TextOptions(stop=("</think>",) if index % 4 == 1 else ()),
        )
        requests.append(request)
    return requests


class Server:
    """Warm engines that any number of systems run on, one after the other."""

    def __init__(self) -> None:
        self.engines = make_engines()
        self.tokenizer = Tokenizer.load(MODEL_DIR)
        vocab_size = next(iter(self.engines.values())).spec.vocab_size
        self._constraints = HostConstraints(self.tokenizer, vocab_size)
        self._mover = DevicePutMover({name: engine.placement.chunk for name, engine in self.engines.items()})

    def run(
        self, requests: list[GenerateRequest], spec: str | None, seed: int, deaths: Mapping[str, int] | None = None
    ) -> tuple[dict[str, Answer], Campaign | None]:
        """All requests at once, struck as `spec` says from their arrival on; the campaign tells what struck.

        `deaths` are of actors without a slice, each at so many messages.
        """
        return anyio.run(self._run, requests, spec, seed, deaths or {})

    async def _run(
        self, requests: list[GenerateRequest], spec: str | None, seed: int, deaths: Mapping[str, int]
    ) -> tuple[dict[str, Answer], Campaign | None]:
        chaos = Chaos(TOPOLOGY, seed, verifies_kv=True)
        engines: Mapping[str, Engine] = {
            name: ChaosEngine(name, engine, chaos) for name, engine in self.engines.items()
        }
        mover = ChaosMover(self._mover, chaos, corrupt)
        answers: dict[str, Answer] = {}
        async with running_system(engines, TOPOLOGY, mover, self._text, OPTIONS, self._constraints) as system:
            campaign = chaos.begin(spec) if spec is not None else None
            mortal = make_mortal(system, deaths)

            async def ask(request: GenerateRequest) -> None:
                answers[request.request] = await _ask(system, request)

            async with anyio.create_task_group() as group:
                for request in requests:
                    group.start_soon(ask, request)
            chaos.end()
            await _settled(system)
            assert all(supervisor.epoch == 2 for supervisor in mortal.values()), "not everybody died"
        return answers, campaign

    def _text(self, options: TextOptions) -> TextStream:
        return TextStream(self.tokenizer, options)


async def _ask(system: System, request: GenerateRequest) -> Answer:
    answer = Answer([Stream() for _ in range(request.num_choices)])
    async with system.client.stream(request) as events:
        async for event in events:
            if not isinstance(event, Delta):
                assert isinstance(event, Completed), event
                answer.completion_tokens, answer.cached_tokens = event.completion_tokens, event.cached_tokens
                break
            answer.scores = answer.scores or [record.logprob for record in event.prompt_logprobs]
            stream = answer.streams[event.choice]
            stream.tokens += [record.token for record in event.tokens]
            stream.logprobs += [record.logprob for record in event.tokens]
            stream.text += event.text
            stream.arrivals_s += [time.monotonic()] * len(event.tokens)
            stream.finish, stream.stop_match = event.finish, event.stop_match
    return answer


async def _settled(system: System) -> None:
    """Waits until nothing is held anywhere, then checks every worker's books."""
    assert await system.drain(60)
    for spec in system.specs:
        if not isinstance(spec.actor, WorkerSupervisor):
            continue
        with anyio.fail_after(60):
            while not (isinstance(worker := spec.actor.worker, WorkerActor) and _is_at_rest(worker)):
                await anyio.lowlevel.checkpoint()
        worker.state.pool.check_integrity()
    with anyio.fail_after(30):
        while len(system.carrier.arrays):
            await anyio.lowlevel.checkpoint()


def _is_at_rest(worker: WorkerActor) -> bool:
    state = worker.state
    counts = state.pool.counts()
    return (
        state.pool.available_pages == counts.total - counts.sentinel
        and len(state.free_rows) == 16
        and not state.prefill.credits_used
        and not state.prefill.jobs
        and not state.decode.leases
        and not state.decode.sequences
    )
