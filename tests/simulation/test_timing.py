"""Stage times in the simulator: a delay that is planted in one stage shows there and nowhere else.

That stages add up in every run whatever happens is `TimingWatch`'s to see: it watches all simulations.
"""

from collections.abc import Callable
from functools import partial

import pytest

from actors.gateway import GatewayActor
from actors.messages import (
    GATEWAY,
    SCHEDULER,
    Address,
    Completed,
    DecodeStarted,
    Key,
    KvChunkReady,
    Message,
    Preempted,
    PrefillStarted,
    SampledToken,
    StartPrefill,
    Submit,
    TokenRecord,
    TokensSampled,
)
from actors.recovery import RecoveryOptions
from actors.stage_clock import StageTimes
from actors.wiring import CLIENT_CAPACITY
from runtime.sampling_params import SamplingParams
from tests.simulation.carrier import Carrier, SimContext
from tests.simulation.fake_tokens import FakeText
from tests.simulation.system import SimSystem
from tests.simulation.test_simulation import planned, workload

SEEDS = range(12)
DELAY_S = 8.0
"""Of which everything else in a run takes a small part, and after which nobody is taken for dead."""

STAGES = ("queue_s", "prefill_s", "transfer_s", "handoff_s", "decode_s")
TRANSFER_LANES = tuple(f"transfer/prefill.0->decode.0/{lane}" for lane in range(2))


def served(topology: str, seed: int, lanes: tuple[str, ...], moment: Callable[[Message], bool]) -> list[StageTimes]:
    """The stage times of a request of two choices whose `lanes` hang until `DELAY_S` after `moment`."""
    system = SimSystem(workload(topology, (planned("r0", seed, num_choices=2),), seed))
    loop = system.carrier.loop

    def observe(source: Address, target: Address, message: Message) -> None:
        if moment(message):
            for name in lanes:
                system.carrier.lane(name).hold(True)
                loop.after(DELAY_S, partial(system.carrier.lane(name).hold, False))

    system.carrier.observers.append(observe)
    loop.run_until(system.clients_done, 1000.0, 100_000)
    (completed,) = system.clients[0].terminals
    assert isinstance(completed, Completed)
    return list(completed.timings)


def first(kind: type[Message]) -> Callable[[Message], bool]:
    """True for the first message of this kind."""
    seen: list[Message] = []

    def matches(message: Message) -> bool:
        seen.extend([message] if isinstance(message, kind) else [])
        return len(seen) == 1 and seen[0] is message

    return matches


def last_chunk(num_tokens: int) -> Callable[[Message], bool]:
    """True for the chunk with which all tokens have come."""
    sizes: list[int] = []

    def matches(message: Message) -> bool:
        if not isinstance(message, KvChunkReady):
            return False
        sizes.append(message.token_end - message.token_start)
        return sum(sizes) == num_tokens

    return matches


def check(timings: list[StageTimes], delayed: str) -> None:
    assert len(timings) == 2
    for times in timings:
        long = [stage for stage in STAGES if getattr(times, stage) >= DELAY_S * 0.9]
        short = [stage for stage in STAGES if getattr(times, stage) < DELAY_S * 0.1]
        assert long == [delayed], times
        assert len(short) == 4, times


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("topology", ["prefill=1,decode=1", "mixed=1"])
def test_a_slice_that_is_busy_before_the_first_chunk_delays_the_queue(topology: str, seed: int) -> None:
    lane = "mixed.0" if topology == "mixed=1" else "prefill.0"
    check(served(topology, seed, (lane,), first(StartPrefill)), "queue_s")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("topology", ["prefill=1,decode=1", "mixed=1"])
def test_a_slow_prompt_delays_prefill(topology: str, seed: int) -> None:
    lane = "mixed.0" if topology == "mixed=1" else "prefill.0"
    check(served(topology, seed, (lane,), first(PrefillStarted)), "prefill_s")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_link_delays_the_transfer(seed: int) -> None:
    timings = served("prefill=1,decode=1", seed, TRANSFER_LANES, first(PrefillStarted))
    check(timings, "transfer_s")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_decode_slice_that_is_busy_delays_the_handoff(seed: int) -> None:
    check(served("prefill=1,decode=1", seed, ("decode.0",), last_chunk(num_tokens=11)), "handoff_s")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("topology", ["prefill=1,decode=1", "mixed=1"])
def test_slow_steps_delay_decode(topology: str, seed: int) -> None:
    lane, moment = ("decode.0", first(DecodeStarted)) if topology != "mixed=1" else ("mixed.0", first(TokensSampled))
    check(served(topology, seed, (lane,), moment), "decode_s")


# --- the gateway alone

CLIENT = Address("client/r")
PAUSE_S = 100.0
"""Between two messages; links delay them by a small part of it."""


def completed(script: list[Callable[[float], Message]], seed: int) -> Completed:
    """What a gateway says after it was sent these messages one by one, each made with the time of its sending."""
    carrier, ended = Carrier(seed), list[Completed]()
    carrier.on_death = lambda address, error: None
    room = {**CLIENT_CAPACITY, "work": 4}

    async def send(ctx: SimContext) -> None:
        for make in script:
            await ctx.send(GATEWAY, make(ctx.now()))
            await ctx.sleep(PAUSE_S)

    async def forget(ctx: SimContext) -> None:
        while True:
            await ctx.receive()

    def observe(source: Address, target: Address, message: Message) -> None:
        ended.extend([message] if isinstance(message, Completed) else [])

    carrier.observers.append(observe)
    carrier.start(GATEWAY, GatewayActor(FakeText, 4, {}, RecoveryOptions()).run, room)
    carrier.start(SCHEDULER, forget, room)
    carrier.start(CLIENT, send, room)
    carrier.loop.run_until(lambda: bool(ended), 10_000.0, 10_000)
    return ended[0]


def submit(num_choices: int) -> Callable[[float], Message]:
    return lambda now: Submit(
        request="r", client=CLIENT, prompt=(1, 2), params=SamplingParams(seed=0, max_tokens=2),
        num_choices=num_choices, queue_timeout_s=1e6, progress_timeout_s=1e6,
    )  # fmt: skip


def prefill_started(key: Key, worker: str) -> Callable[[float], Message]:
    decode = Address("decode.0")
    return lambda now: PrefillStarted(worker=Address(worker), key=key, cached_tokens=0, decode=decode, at=now)


def decode_started(key: Key, choices: tuple[int, ...], worker: str) -> Callable[[float], Message]:
    return lambda now: DecodeStarted(worker=Address(worker), key=key, choices=choices, kv_at=now - 25.0, at=now)


def token(key: Key, index: int) -> Callable[[float], Message]:
    sampled = SampledToken(key, index, TokenRecord(5), "length" if index else None)
    return lambda now: TokensSampled(worker=Address("any"), tokens=(sampled,))


def preempted(key: Key, choice: int) -> Callable[[float], Message]:
    return lambda now: Preempted(worker=Address("decode.0"), key=key, choices=(choice,), reason="test")


def in_pauses(times: StageTimes) -> list[float]:
    """The stages in units of `PAUSE_S`, less what links add."""
    return [round(getattr(times, stage) / PAUSE_S, 2) for stage in STAGES]


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_of_an_old_attempt_change_nothing(seed: int) -> None:
    old, new = Key("r", 0, 1), Key("r", 0, 2)
    end = completed(
        [
            submit(1),
            prefill_started(old, "prefill.8"),
            preempted(old, 0),
            prefill_started(old, "prefill.9"),
            decode_started(old, (0,), "decode.9"),
            prefill_started(new, "prefill.0"),
            token(new, 0),
            decode_started(old, (0,), "decode.9"),
            decode_started(new, (0,), "decode.0"),
            prefill_started(old, "prefill.9"),
            token(new, 1),
        ],
        seed,
    )
    (times,) = end.timings
    assert in_pauses(times) == [1 + 3, 1 + 1, 1.75, 0.25, 2]
    assert (times.attempts, times.prefill_worker, times.decode_worker) == (2, "prefill.0", "decode.0")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_choice_that_goes_its_own_way_leaves_its_siblings_times_alone(seed: int) -> None:
    group, alone = Key("r", 0, 1), Key("r", 1, 2)
    end = completed(
        [
            submit(2),
            prefill_started(group, "prefill.0"),
            token(group, 0),
            token(group.sibling(1), 0),
            preempted(group, 1),
            decode_started(group, (0, 1), "decode.0"),
            token(group, 1),
            prefill_started(alone, "prefill.1"),
            token(alone, 1),
        ],
        seed,
    )
    first, second = end.timings
    assert in_pauses(first) == [1, 1, 2.75, 0.25, 1]
    assert (first.attempts, first.prefill_worker, first.decode_worker) == (1, "prefill.0", "decode.0")
    assert in_pauses(second) == [1 + 3, 2 + 1, 1, 0, 0]
    assert (second.attempts, second.prefill_worker, second.decode_worker) == (2, "prefill.1", None)
