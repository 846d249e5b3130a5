"""Stage times in the simulator: a delay that is planted in one stage shows there and nowhere else.

That stages add up in every run whatever happens is `TimingWatch`'s to see: it watches all simulations.
"""

from collections.abc import Callable
from functools import partial

import pytest

from actors.messages import (
    Address,
    Completed,
    DecodeStarted,
    KvChunkReady,
    Message,
    PrefillStarted,
    StartPrefill,
    TokensSampled,
)
from actors.stage_clock import StageTimes
from tests.simulation.system import SimSystem
from tests.simulation.test_simulation import planned, workload

SEEDS = range(12)
DELAY_S = 50.0
"""Of which everything else in a run takes a small part."""

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
