"""What the ledger accepts, in every order in which tokens can arrive."""

import itertools

import pytest

from actors.ledger import MAX_PARKED_TOKENS, Ledger, RequestRecord
from actors.messages import Address, Key, SampledToken, Submit, TokenRecord
from runtime.sampling_params import SamplingParams


class _Text:
    def push(self, token: int) -> tuple[str, str | None]:
        return str(token), None

    def finish(self) -> str:
        return ""


def _open(ledger: Ledger, num_choices: int = 1) -> RequestRecord:
    submit = Submit(
        request="r",
        client=Address("client/r"),
        prompt=(1, 2),
        params=SamplingParams(seed=0, max_tokens=8),
        num_choices=num_choices,
        queue_timeout_s=10.0,
        progress_timeout_s=5.0,
    )
    return ledger.open(submit, 100.0, tuple(_Text() for _ in range(num_choices)))


def _sampled(index: int, token: int, attempt: int = 1) -> SampledToken:
    return SampledToken(Key("r", 0, attempt), index, TokenRecord(token))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_tokens_are_accepted_in_order_whatever_order_they_come_in(order: tuple[int, ...]) -> None:
    choice = _open(Ledger()).choices[0]
    released = [accepted.index for index in order for accepted in choice.accept(_sampled(index, 10 + index))]
    assert released == [0, 1, 2, 3]
    assert [record.token for record in choice.accepted] == [10, 11, 12, 13]
    assert not choice.parked


def test_a_repeated_token_is_dropped() -> None:
    choice = _open(Ledger()).choices[0]
    assert len(list(choice.accept(_sampled(0, 7)))) == 1
    assert list(choice.accept(_sampled(0, 8))) == []
    assert [record.token for record in choice.accepted] == [7]


def test_a_new_attempt_freezes_the_prefix_and_fences_the_old_one() -> None:
    choice = _open(Ledger()).choices[0]
    list(choice.accept(_sampled(0, 7)))
    list(choice.accept(_sampled(2, 9)))
    assert choice.raise_attempt(101.0) == Key("r", 0, 2)
    assert list(choice.accept(_sampled(1, 8, attempt=1))) == [], "stale"
    assert [accepted.index for accepted in choice.accept(_sampled(1, 8, attempt=2))] == [1], "the parked one is gone"


def test_only_unfinished_choices_of_the_current_attempt_are_running() -> None:
    record = _open(Ledger(), num_choices=3)
    record.choices[0].end("stop")
    record.choices[1].raise_attempt(101.0)
    assert [choice.choice for choice in record.running(Key("r", 0, 1))] == [2]
    assert [choice.choice for choice in record.running(Key("r", 1, 2))] == [1]
    record.choices[1].raise_attempt(102.0)
    assert list(record.running(Key("r", 1, 2))) == [], "stale"


def test_attempts_are_per_choice() -> None:
    record = _open(Ledger(), num_choices=3)
    record.choices[1].raise_attempt(101.0)
    assert record.open_groups() == {Key("r", 0, 1): (0, 2), Key("r", 1, 2): (1,)}
    record.choices[0].end("stop")
    assert record.open_groups() == {Key("r", 0, 1): (2,), Key("r", 1, 2): (1,)}
    assert not record.finished


def test_nothing_is_accepted_after_the_end() -> None:
    choice = _open(Ledger()).choices[0]
    list(choice.accept(_sampled(0, 7)))
    choice.end("length")
    assert list(choice.accept(_sampled(1, 8))) == []


def test_parking_is_bounded_and_a_gap_that_does_not_close_is_noticed() -> None:
    choice = _open(Ledger()).choices[0]
    for index in range(1, MAX_PARKED_TOKENS + 9):
        assert choice.is_stuck == (index > MAX_PARKED_TOKENS)
        assert list(choice.accept(_sampled(index, index))) == []
    assert len(choice.parked) == MAX_PARKED_TOKENS
    choice.raise_attempt(101.0)
    assert not choice.is_stuck


def test_deadlines_bound_the_queue_then_the_lack_of_progress() -> None:
    record = _open(Ledger())
    assert record.deadline == 110.0
    list(record.choices[0].accept(_sampled(0, 7)))
    record.progressed = 104.0
    assert record.deadline == 109.0
