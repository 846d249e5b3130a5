"""Where the time goes, for marks in every order and attempts of every kind. Times are exact in binary."""

import itertools

import pytest

from actors.stage_clock import StageClock, StageTimes


def _stages(times: StageTimes) -> tuple[float, ...]:
    return (times.queue_s, times.prefill_s, times.transfer_s, times.handoff_s, times.decode_s)


def _workers(times: StageTimes) -> tuple[str | None, str | None]:
    return (times.prefill_worker, times.decode_worker)


def test_each_stage_ends_with_its_event() -> None:
    clock = StageClock(100.0)
    clock.prefill_started("prefill.0", 101.0, local=False)
    clock.token(103.0, last=False)
    clock.decode_started("decode.1", 107.0, 115.0)
    clock.token(120.0, last=False)
    clock.token(131.0, last=True)
    times = clock.times()
    assert _stages(times) == (1.0, 2.0, 4.0, 8.0, 16.0)
    assert times.total_s == 31.0
    assert (times.attempts, *_workers(times)) == (1, "prefill.0", "decode.1")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_marks_may_come_in_any_order(order: tuple[int, ...]) -> None:
    clock = StageClock(0.0)
    marks = (
        lambda: clock.prefill_started("prefill.0", 1.0, local=False),
        lambda: clock.token(3.0, last=False),
        lambda: clock.decode_started("decode.0", 7.0, 15.0),
    )
    for index in order:
        marks[index]()
    clock.token(31.0, last=True)
    assert _stages(clock.times()) == (1.0, 2.0, 4.0, 8.0, 16.0)


def test_what_overlaps_with_an_earlier_stage_costs_nothing() -> None:
    clock = StageClock(0.0)
    clock.prefill_started("prefill.0", 1.0, local=False)
    clock.token(8.0, last=False)
    clock.decode_started("decode.0", 5.0, 10.0)
    clock.token(16.0, last=True)
    assert _stages(clock.times()) == (1.0, 7.0, 0.0, 2.0, 6.0), "the KV lay there before the first token"


def test_nothing_had_to_come_and_the_step_was_dispatched_before_the_first_token_was_read() -> None:
    clock = StageClock(4.0)
    clock.prefill_started("prefill.0", 5.0, local=False)
    clock.token(8.0, last=False)
    clock.decode_started("decode.0", 0.0, 7.0)
    clock.token(16.0, last=True)
    assert _stages(clock.times()) == (1.0, 3.0, 0.0, 0.0, 8.0)


def test_a_local_choice_has_neither_transfer_nor_handoff() -> None:
    clock = StageClock(0.0)
    clock.prefill_started("mixed.0", 1.0, local=True)
    clock.token(3.0, last=False)
    clock.token(7.0, last=True)
    assert _stages(clock.times()) == (1.0, 2.0, 0.0, 0.0, 4.0)
    assert _workers(clock.times()) == ("mixed.0", "mixed.0")


@pytest.mark.parametrize("local", [True, False])
def test_a_first_token_that_ends_the_choice_reaches_no_decode_worker(local: bool) -> None:
    clock = StageClock(0.0)
    clock.prefill_started("mixed.0", 1.0, local=local)
    clock.token(3.0, last=True)
    assert _stages(clock.times()) == (1.0, 2.0, 0.0, 0.0, 0.0)
    assert _workers(clock.times()) == ("mixed.0", None)


def test_attempts_add_up_and_the_last_one_names_the_workers() -> None:
    clock = StageClock(0.0)
    clock.prefill_started("prefill.0", 1.0, local=False)
    clock.token(2.0, last=False)
    clock.decode_started("decode.0", 3.0, 4.0)
    clock.token(5.0, last=False)
    clock.give_up(6.0)
    assert _workers(clock.times()) == (None, None)
    clock.prefill_started("prefill.1", 16.0, local=False)
    clock.token(36.0, last=False)
    clock.decode_started("decode.1", 76.0, 156.0)
    clock.token(316.0, last=True)
    assert _stages(clock.times()) == (11.0, 21.0, 41.0, 81.0, 162.0)
    assert (clock.times().attempts, *_workers(clock.times())) == (2, "prefill.1", "decode.1")


@pytest.mark.parametrize(
    ("reached", "stages"),
    [
        (0, (16.0, 0.0, 0.0, 0.0, 0.0)),
        (1, (1.0, 15.0, 0.0, 0.0, 0.0)),
        (2, (1.0, 1.0, 14.0, 0.0, 0.0)),
        (3, (1.0, 1.0, 2.0, 4.0, 8.0)),
    ],
)
def test_the_rest_of_an_attempt_that_is_given_up_belongs_to_the_stage_it_was_in(
    reached: int, stages: tuple[float, ...]
) -> None:
    clock = StageClock(0.0)
    if reached > 0:
        clock.prefill_started("prefill.0", 1.0, local=False)
    if reached > 1:
        clock.token(2.0, last=False)
    if reached > 2:
        clock.decode_started("decode.0", 4.0, 8.0)
    clock.give_up(16.0)
    assert _stages(clock.times()) == stages


def test_stages_add_up_without_rounding_in_any_order() -> None:
    clock = StageClock(123456.1)
    clock.prefill_started("prefill.0", 123456.2, local=False)
    clock.token(123456.3, last=False)
    clock.decode_started("decode.0", 123456.4, 123456.7)
    clock.give_up(123457.1)
    clock.prefill_started("prefill.0", 123457.2, local=False)
    clock.token(123458.9, last=True)
    times = clock.times()
    assert {sum(order) for order in itertools.permutations(_stages(times))} == {times.total_s}
    assert times.total_s == pytest.approx(2.8, abs=1e-6)


def test_marks_that_lie_outside_the_attempt_make_no_stage_negative() -> None:
    clock = StageClock(10.0)
    clock.prefill_started("prefill.0", 9.0, local=False)
    clock.token(12.0, last=False)
    clock.decode_started("decode.0", 99.0, 98.0)
    clock.token(16.0, last=True)
    assert _stages(clock.times()) == (0.0, 2.0, 4.0, 0.0, 0.0)
    assert clock.times().total_s == 6.0
