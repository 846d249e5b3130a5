"""Seeded traffic: what system is built, which requests arrive when, and how each client behaves.

A seed decides everything. Pools are drawn small enough that requests compete and are preempted, but every choice alone
fits, so each request that nobody cancels has exactly one right answer.
"""

from collections.abc import Sequence
from random import Random
from typing import Literal

import msgspec

from runtime.engine import EngineSpec
from runtime.sampling_params import ConstraintSpec, SamplingParams
from runtime.topology import parse_topology
from tests.simulation.expected import expected_choice
from tests.simulation.fake_tokens import END_OF_TEXT, VOCAB_SIZE, token_text
from tests.simulation.faults import Fault, draw_faults
from tests.simulation.operators import Order

Behaviour = Literal["patient", "leaves", "slow"]

MAX_CHOICES = 4
CANCEL_MOMENTS = (
    "Submit", "Admit", "Reserve", "Reserved", "StartPrefill", "PrefillStarted", "MoveChunk", "KvChunkReady",
    "ChunkAcked", "StartDecode", "DecodeStarted", "TokensSampled", "Delta", "Preempted", "AbortGroup", "Released",
)  # fmt: skip
"""Messages about a request at which its client may leave."""

_MESSAGES = 160
"""Most runs have as many messages that faults may strike."""

_FAULTY_TIMEOUT_S = 20.0
"""A slice that hangs is found out before the run is over, one that is only slow is not."""


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its client. `leave_at` is a message type and how many of them the client sees out."""

    request: str
    arrival_s: float
    prompt: tuple[int, ...]
    params: SamplingParams
    num_choices: int
    stop: tuple[str, ...] = ()
    cache_salt: str | None = None
    behaviour: Behaviour = "patient"
    leave_at: tuple[str, int] = ("Delta", 1)
    queue_timeout_s: float = 600.0
    progress_timeout_s: float = 600.0
    priority: int = 0
    timeout_s: float | None = None


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One run: its system and its requests.

    `failing_steps` are the steps of each slice that a device error ends; `hangs` is when each slice's thread hangs and
    when it comes back; `faults` strike at messages; `orders` are an operator's. With `verify_kv` a corrupt chunk is one
    with another content. `replay` are the arguments that draw this workload again.
    """

    seed: int
    topology: str
    spec: EngineSpec
    requests: tuple[PlannedRequest, ...]
    max_queued: int = 64
    decode_reserve_tokens: int = 8
    staged_per_decode: int = 2
    prefix_cache: bool = True
    replay: str = ""
    step_timeout_s: float = 600.0
    failing_steps: dict[str, tuple[int, ...]] = {}
    hangs: dict[str, tuple[float, float]] = {}
    faults: tuple[Fault, ...] = ()
    orders: tuple[Order, ...] = ()
    verify_kv: bool = False

    @property
    def faulty(self) -> set[str]:
        """Slices whose workers die."""
        return {*self.failing_steps, *self.hangs}

    @property
    def disturbed(self) -> bool:
        """Whether anything is planned to go wrong."""
        return bool(self.faulty or self.faults)


def draw_workload(seed: int) -> Workload:
    """The mixed traffic of a seed; every other one is under pressure: long answers that start with small leases.

    Every third one has requests with constraints, with logprobs of the prompt, with priorities and with deadlines.
    """
    random, features = Random(f"workload {seed}"), Random(f"features {seed}")
    has_features = features.random() < 1 / 3
    pressure = random.random() < 0.5
    page_size = random.choice((2, 4, 8))
    count = random.randint(5, 14)
    horizon_s = random.choice((0.05, 0.5, 2.0))
    reserve_tokens = random.choice((1, 4)) if pressure else random.choice((1, 4, 16))
    shared = tuple(_draw_tokens(random, random.randint(1, 5 * page_size)) for _ in range(2))
    requests = list[PlannedRequest]()
    for index in range(count):
        drawn = _draw_request(random, f"r{index}", page_size, horizon_s, 48 if pressure else 12)
        drawn = msgspec.structs.replace(drawn, prompt=_draw_beginning(random, shared, requests) + drawn.prompt)
        requests.append(_draw_features(features, drawn) if has_features else drawn)
    return Workload(
        seed=seed,
        topology=_draw_topology(random),
        spec=draw_spec(random, page_size, tuple(requests), reserve_tokens),
        requests=tuple(requests),
        max_queued=random.choice((64, 64, 64, 2)),
        decode_reserve_tokens=reserve_tokens,
        staged_per_decode=random.choice((1, 2, 3)),
        prefix_cache=random.random() < 0.85,
        replay=str(seed),
    )


def draw_shared_workload(seed: int, count: int, topology: str) -> Workload:
    """Many requests over a few long beginnings, in a pool that holds only some of them: caches fill and are evicted."""
    random, page_size = Random(f"shared {seed}"), 4
    shared = tuple(_draw_tokens(random, random.randint(2, 12) * page_size + random.randint(0, 3)) for _ in range(8))
    requests = list[PlannedRequest]()
    for index in range(count):
        drawn = _draw_request(random, f"r{index}", page_size, count * 0.02, 6)
        behaviour: Behaviour = "leaves" if random.random() < 0.1 else "patient"
        prompt = _draw_beginning(random, shared, requests[-20:]) + drawn.prompt[: 2 * page_size]
        requests.append(
            msgspec.structs.replace(
                drawn,
                prompt=prompt,
                behaviour=behaviour,
                num_choices=random.choice((1, 1, 1, 2)),
                queue_timeout_s=600.0,
            )
        )
    spec = draw_spec(random, page_size, tuple(requests), reserve_tokens=4)
    spec = msgspec.structs.replace(spec, num_rows=8, num_pages=spec.num_pages + 24, chunk_tokens=4 * page_size)
    return Workload(
        seed=seed, topology=topology, spec=spec, requests=tuple(requests), max_queued=count, decode_reserve_tokens=4
    )


def _draw_beginning(
    random: Random, shared: tuple[tuple[int, ...], ...], earlier: list[PlannedRequest]
) -> tuple[int, ...]:
    """What a prompt has in common with others: nothing, part of a shared text, or an earlier exchange as a whole."""
    kind = random.random()
    if kind < 0.15 and earlier:
        last = random.choice(earlier)
        if len(last.prompt) < 64:
            answer = expected_choice(last.prompt, last.params, 0, last.stop)
            return last.prompt + tuple(record.token for record in answer.records)
    if kind < 0.7:
        text = random.choice(shared)
        return text[: random.randint(1, len(text))] if random.random() < 0.3 else text
    return ()


def _draw_tokens(random: Random, count: int) -> tuple[int, ...]:
    return tuple(random.randrange(2, VOCAB_SIZE) for _ in range(count))


def draw_faulty_workload(seed: int) -> Workload:
    """The same traffic, and one to three faults.

    Every fourth run also has a step of a slice fail, every fifth an operator; every fourth compares checksums of KV.
    """
    drawn, random = draw_workload(seed), Random(f"fault {seed}")
    slices = parse_topology(drawn.topology).slices
    failing_steps = {random.choice(slices).name: (random.randint(1, 25),)} if random.random() < 0.25 else {}
    return msgspec.structs.replace(
        drawn,
        failing_steps=failing_steps,
        faults=draw_faults(random, _MESSAGES, deadly=bool(failing_steps)),
        step_timeout_s=_FAULTY_TIMEOUT_S,
        orders=_draw_orders(random, [part.name for part in slices]) if random.random() < 0.2 else (),
        verify_kv=random.random() < 0.25,
        replay=f"{seed} --fault",
    )


def _draw_orders(random: Random, workers: Sequence[str]) -> tuple[Order, ...]:
    """One worker or two are drained one after the other, and most of them taken back."""
    orders, at_s = list[Order](), 0.0
    for worker in random.sample(workers, random.randint(1, min(2, len(workers)))):
        at_s += random.uniform(0.0, 0.5)
        orders.append((at_s, worker, random.choice((0.001, 0.3, 500.0))))
        if random.random() < 0.7:
            at_s += random.choice((0.01, 1.0, 6.0))
            orders.append((at_s, worker, None))
    return tuple(orders)


def draw_spec(random: Random, page_size: int, requests: tuple[PlannedRequest, ...], reserve_tokens: int) -> EngineSpec:
    """Engine sizes that every choice of these requests fits into, mostly not many of them at once."""
    longest = max(len(planned.prompt) + planned.params.max_tokens for planned in requests)
    widest = max(_first_lease(planned, page_size, reserve_tokens) for planned in requests)
    slack = random.choice((0, 1, 4, 40))
    return EngineSpec(
        page_size=page_size,
        num_pages=1 + max(widest, -(-longest // page_size)) + slack,
        num_rows=random.choice((MAX_CHOICES, 6, 16)),
        max_context_tokens=longest + 1,
        vocab_size=VOCAB_SIZE,
        chunk_tokens=page_size * random.choice((1, 2, 4)),
        max_prefill_segments=random.choice((1, 2, 4)),
        page_bytes=1,
    )


def _first_lease(planned: PlannedRequest, page_size: int, reserve_tokens: int) -> int:
    """Pages of the request's first lease: shared prompt pages, and a tail and reserved tokens for each choice."""
    prompt_len = len(planned.prompt)
    shared = prompt_len // page_size
    reserve_tokens = max(1, min(reserve_tokens, planned.params.max_tokens))
    return shared + planned.num_choices * (-(-(prompt_len + reserve_tokens) // page_size) - shared)


def _draw_topology(random: Random) -> str:
    if random.random() < 0.3:
        return f"mixed={random.randint(1, 2)}"
    return f"prefill={random.randint(1, 2)},decode={random.randint(1, 3)}"


def _draw_request(random: Random, request: str, page_size: int, horizon_s: float, most_tokens: int) -> PlannedRequest:
    prompt_len = random.choice((1, page_size - 1, page_size, page_size + 1, random.randint(1, 6 * page_size)))
    prompt = _draw_tokens(random, max(1, prompt_len))
    behaviour: Behaviour = random.choices(("patient", "leaves", "slow"), (0.65, 0.3, 0.05))[0]
    return PlannedRequest(
        request=request,
        arrival_s=random.uniform(0.0, horizon_s),
        prompt=prompt,
        params=draw_params(random, most_tokens),
        num_choices=random.choice((1, 1, 1, 2, 3, MAX_CHOICES)),
        stop=tuple(_draw_stop(random) for _ in range(random.choice((0, 0, 1, 2)))),
        cache_salt=random.choice((None, None, None, "tenant")),
        behaviour=behaviour,
        leave_at=(random.choice(CANCEL_MOMENTS), random.randint(1, 4)),
        queue_timeout_s=random.choice((600.0, 600.0, 600.0, 600.0, 0.2)),
    )


def _draw_features(random: Random, plain: PlannedRequest) -> PlannedRequest:
    """The same request with some of what makes a worker or the scheduler treat it in a way of its own."""
    params = plain.params
    if random.random() < 0.5:
        constraint = ConstraintSpec(grammar=_draw_grammar(random))
        params = msgspec.structs.replace(params, constraint=constraint, logit_bias=())
    if random.random() < 0.3:
        params = msgspec.structs.replace(params, prompt_logprobs=random.choice((0, 2)))
    return msgspec.structs.replace(
        plain,
        params=params,
        priority=random.choice((0, 0, 0, -1, 5)),
        timeout_s=random.choice((None, None, None, None, 0.05, 0.5, 5.0)),
    )


def _draw_grammar(random: Random) -> str:
    """See `fake_constraints`: one in eight fails somewhere."""
    grammar = str(random.randrange(10_000))
    if random.random() < 0.875:
        return grammar
    return f"{grammar} {random.choice(('advance', 'mask'))} {random.randint(0, 6)}"


def draw_params(random: Random, most_tokens: int) -> SamplingParams:
    """Sampling parameters of which every one matters to the fake sampler."""
    penalties = random.random() < 0.3
    mask = None
    if random.random() < 0.15:
        bits = random.getrandbits(VOCAB_SIZE) | 1 << random.randrange(2, VOCAB_SIZE)
        mask = bits.to_bytes(VOCAB_SIZE // 8, "little")
    bias = ((random.randrange(VOCAB_SIZE), -100.0), (random.randrange(2, VOCAB_SIZE), 1.5))
    return SamplingParams(
        seed=random.getrandbits(64),
        max_tokens=random.choice((1, 2, random.randint(3, 12), random.randint(12, 12 + most_tokens))),
        temperature=random.choice((0.0, 0.6, 1.0)),
        top_k=random.choice((0, 20)),
        top_p=random.choice((1.0, 0.9)),
        presence_penalty=0.5 if penalties else 0.0,
        repetition_penalty=1.1 if penalties else 1.0,
        logit_bias=bias if random.random() < 0.2 else (),
        allowed_mask=mask,
        min_tokens=random.choice((0, 0, 3, most_tokens)),
        stop_token_ids=random.choice(((END_OF_TEXT,), (END_OF_TEXT, 7), ())),
        logprobs=random.choice((None, None, 0, 3)),
    )


def _draw_stop(random: Random) -> str:
    """A stop string that some token pair produces, cut at random, so that it is found now and then."""
    text = token_text(random.randrange(VOCAB_SIZE)) + token_text(random.randrange(VOCAB_SIZE))
    begin = random.randrange(len(text) - 1)
    return text[begin : begin + random.randint(2, 3)]
