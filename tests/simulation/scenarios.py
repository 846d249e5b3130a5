"""Fixed workloads that faults strike message by message, chosen so that together they send every message there is."""

from random import Random

import msgspec

from runtime.engine import EngineSpec
from runtime.sampling_params import ConstraintSpec, SamplingParams
from tests.simulation.expected import expected_choice
from tests.simulation.fake_tokens import END_OF_TEXT, VOCAB_SIZE
from tests.simulation.faults import parse_fault
from tests.simulation.workload import PlannedRequest, Workload, draw_workload

TIMEOUT_S = 20.0
"""A slice that hangs is found out before a run is over, one that is only slow is not."""

_CROWDED = 63
"""A drawn workload, small and so short of pages that reservations are refused and sequences preempted."""

_SPEC = EngineSpec(
    page_size=4,
    num_pages=80,
    num_rows=16,
    max_context_tokens=128,
    vocab_size=VOCAB_SIZE,
    chunk_tokens=8,
    max_prefill_segments=2,
    page_bytes=1,
)

_SLUGGISH = 7
"""With this seed each step takes tens of milliseconds."""

_LEAVES_LATE = {"behaviour": "leaves", "leave_at": ("TokensSampled", 60)}

_ORDERS = (
    (0.1, "decode.0", 0.1),
    (0.1, "prefill.1", 500.0),
    (0.8, "decode.0", None),
    (0.9, "prefill.1", None),
    (1.0, "decode.1", 0.001),
    (1.6, "decode.1", None),
)


class Scenario(msgspec.Struct, frozen=True):
    """A workload, and the messages that a sweep strikes in it; None means all."""

    workload: Workload
    only: tuple[str, ...] | None = None


def scenario(name: str) -> Workload:
    """The workload of this name. Raises KeyError."""
    return msgspec.structs.replace(SCENARIOS[name].workload, replay=f"--scenario {name}")


def _requests(leave_at: tuple[str, int] = ("MoveChunk", 3)) -> tuple[PlannedRequest, ...]:
    """Two choices, a stop string that is found, logprobs, a shared beginning, and one client that leaves."""
    shared = _tokens("shared", 10)
    endless = {"seed": 3, "max_tokens": 24}
    stop = expected_choice(_tokens("stopped", 7), SamplingParams(**endless), 0, ()).text[8:11]
    return (
        _request("two", 0.0, shared + _tokens("two", 12), num_choices=2, presence_penalty=0.5, temperature=1.0),
        _request("greedy", 0.0, shared + _tokens("greedy", 3), stop_token_ids=(END_OF_TEXT,)),
        _request("leaves", 0.01, _tokens("leaves", 26), behaviour="leaves", leave_at=leave_at),
        _request("stopped", 0.02, _tokens("stopped", 7), stop=(stop,), **endless),
        _request("logprobs", 0.04, shared + _tokens("two", 9), logprobs=2, temperature=0.7, top_p=0.9),
        _request("late", 1.4, shared + _tokens("late", 9), num_choices=2, min_tokens=3, max_tokens=5),
    )


def _constrained() -> tuple[PlannedRequest, ...]:
    """Two choices that their constraint completes, beside others that it does not touch, and two that it fails."""
    prompt = _tokens("constrained", 11)
    failing = ConstraintSpec(grammar="3 advance 5")
    return (
        _request("free", 0.0, _tokens("free", 9), max_tokens=16),
        _request("bound", 0.0, prompt, num_choices=2, max_tokens=20, constraint=_completing(prompt, 20)),
        _request("failing", 0.01, _tokens("failing", 6), num_choices=2, max_tokens=20, constraint=failing),
        _request("hopeless", 0.02, _tokens("hopeless", 6), constraint=ConstraintSpec(grammar="5 mask 0")),
        _request("late", 0.6, prompt, max_tokens=12, constraint=_completing(prompt, 12), logprobs=1),
    )


def _completing(prompt: tuple[int, ...], max_tokens: int) -> ConstraintSpec:
    """A constraint that ends the first choice of a plain request some tokens before that number."""
    params = SamplingParams(seed=len(prompt), max_tokens=max_tokens)
    for number in range(1000):
        constraint = ConstraintSpec(grammar=str(number))
        answer = expected_choice(prompt, msgspec.structs.replace(params, constraint=constraint), 0, ())
        if answer.finish == "stop" and len(answer.records) >= max_tokens // 2:
            return constraint
    raise AssertionError("no such constraint")


def _scored() -> tuple[PlannedRequest, ...]:
    """The same prompt with and without its logprobs, and a long one that is scored chunk by chunk."""
    prompt = _tokens("scored", 19)
    return (
        _request("plain", 0.0, prompt),
        _request("scored", 0.02, prompt, num_choices=2, prompt_logprobs=2, max_tokens=12),
        _request("again", 0.3, prompt, prompt_logprobs=0),
        _request("long", 0.3, _tokens("long", 61), prompt_logprobs=1, constraint=ConstraintSpec(grammar="8")),
    )


def _ranked() -> tuple[PlannedRequest, ...]:
    """More than there is room for at once, by their priorities, and some that have no time for all of it."""
    endless = {"max_tokens": 90, "timeout_s": 0.4}
    return (
        _request("endless", 0.0, _tokens("endless", 9), num_choices=2, **endless),
        _request("behind", 0.0, _tokens("behind", 9), num_choices=2, priority=7, **endless),
        *(
            _request(f"r{n}", 0.01, _tokens(f"r{n}", 9 + n), num_choices=2, priority=-n, max_tokens=12)
            for n in range(4)
        ),
    )


def _request(name: str, arrival_s: float, prompt: tuple[int, ...], **fields: object) -> PlannedRequest:
    own = {key: value for key, value in fields.items() if key in PlannedRequest.__struct_fields__}
    params = {"seed": len(prompt), "max_tokens": 8, **{key: fields[key] for key in fields.keys() - own.keys()}}
    built = PlannedRequest(
        request=name,
        arrival_s=arrival_s,
        prompt=prompt,
        params=msgspec.convert(params, SamplingParams),
        num_choices=1,
    )
    return msgspec.structs.replace(built, **own)


def _tokens(name: str, count: int) -> tuple[int, ...]:
    random = Random(name)
    return tuple(random.randrange(2, VOCAB_SIZE) for _ in range(count))


def _build(topology: str, **changes: object) -> Workload:
    built = Workload(seed=0, topology=topology, spec=_SPEC, requests=_requests(), step_timeout_s=TIMEOUT_S)
    return msgspec.structs.replace(built, **changes)


def _scenarios() -> dict[str, Scenario]:
    lost = ("kill:Reserved:decode:scheduler:5:0:receiver:after", "drop:PrefixesChanged:prefill:scheduler:2:0")
    altered = ("corrupt:KvChunkReady:transfer:decode:2:0", "corrupt:KvChunkReady:transfer:decode:9:0")
    return {
        "disaggregated": Scenario(_build("prefill=2,decode=2")),
        "mixed": Scenario(_build("mixed=2", requests=_requests(leave_at=("PrefillStarted", 1)))),
        "crowded": Scenario(
            msgspec.structs.replace(draw_workload(_CROWDED), step_timeout_s=TIMEOUT_S, max_queued=2),
            only=("Refused", "ReserveRefused", "Preempted"),
        ),
        "failing": Scenario(
            _build("prefill=2,decode=2", failing_steps={"prefill.0": (3,), "decode.0": (4,)}),
            only=("WorkerDown", "Preempted", "ChunkLost", "SchedulerReport", "StartDecode", "StartAcked"),
        ),
        "recovering": Scenario(
            _build("prefill=2,decode=2", faults=tuple(map(parse_fault, lost))),
            only=("ResendPrefixes", "SchedulerReport", "WorkerUp"),
        ),
        "draining": Scenario(_build("prefill=2,decode=2", orders=_ORDERS), only=("DrainWorker", "ResumeWorker")),
        "verified": Scenario(
            _build("prefill=2,decode=2", verify_kv=True, faults=tuple(map(parse_fault, altered))),
            only=("ChunkCorrupt", "ChunkLost", "KvChunkReady"),
        ),
        "constrained": Scenario(
            _build("prefill=2,decode=2", requests=_constrained()),
            only=("Rejected", "TokensSampled", "StartPrefill", "StartDecode"),
        ),
        "constrained-mixed": Scenario(
            _build("mixed=2", requests=_constrained(), failing_steps={"mixed.0": (9,)}),
            only=("Rejected", "TokensSampled", "StartPrefill"),
        ),
        "scored": Scenario(
            _build("prefill=2,decode=2", requests=_scored(), failing_steps={"decode.0": (3,)}),
            only=("TokensSampled", "Reserve", "StartPrefill"),
        ),
        "ranked": Scenario(
            _build("prefill=1,decode=1", spec=msgspec.structs.replace(_SPEC, num_rows=4), requests=_ranked()),
            only=("Admit", "Cancel", "AbortGroup"),
        ),
        "abandoned": Scenario(
            _build(
                "prefill=2,decode=2",
                seed=_SLUGGISH,
                spec=msgspec.structs.replace(_SPEC, num_pages=160, max_context_tokens=512),
                requests=(_request("long", 0.0, _tokens("long", 9), max_tokens=450, **_LEAVES_LATE),),
                faults=(parse_fault("kill:SchedulerReport:scheduler:gateway:1:0:sender:after"),),
            ),
            only=("AbortGroup",),
        ),
    }


SCENARIOS = _scenarios()
"""`disaggregated` and `mixed` run undisturbed but for the fault. `crowded` is short of pages and refuses. In `failing`
a device error of either side comes before the fault, in `recovering` the scheduler's death and a lost message, so that
faults strike at the messages of a recovery. In `draining` an operator takes workers out and back, in `verified` two
chunks change on their way before the fault, `constrained`, `scored` and `ranked` have requests of these kinds, and in
`abandoned` a client leaves a long answer that a new scheduler has taken over."""
