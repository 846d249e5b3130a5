"""What is missing, what is sent again, which gaps stay open and which calls hang: pure plans."""

import pytest

from actors.call_deadlines import FLOOR_S, CallDeadlines, deadline_s, size_class
from actors.gaps import Gaps
from actors.messages import TRANSFER, Cancel, Held, Key
from actors.outbox import Outbox
from actors.reconcile import Overdue, choice_keys
from actors.tombstones import Recent

A, B = Key("a", 0, 1), Key("b", 0, 1)
MESSAGE = Cancel(key=A, choices=(0,), deadline=1.0, whole=True)


def test_every_choice_is_found_with_its_group() -> None:
    held = (Held(A, (0, 2)), Held(B, (0,)))
    assert choice_keys(held) == {A: A, A.sibling(2): A, B: B}


def test_what_is_missing_counts_as_lost_after_its_grace() -> None:
    overdue = Overdue()
    assert overdue.note({A: 1}, 10.0, grace_s=3.0) == ()
    assert overdue.note({A: 2, B: 2}, 12.9, grace_s=3.0) == ()
    assert overdue.note({A: 3, B: 3}, 13.0, grace_s=3.0) == (A,)


def test_what_is_back_in_between_begins_anew() -> None:
    overdue = Overdue()
    overdue.note({A: 1}, 10.0, grace_s=3.0)
    assert overdue.note({}, 12.0, grace_s=3.0) == ()
    assert len(overdue) == 0
    assert overdue.note({A: 3}, 14.0, grace_s=3.0) == ()
    assert overdue.note({A: 4}, 17.0, grace_s=3.0) == (A,)


def test_who_has_not_read_his_inbox_lacks_nothing() -> None:
    overdue = Overdue()
    overdue.note({A: 7}, 10.0, grace_s=3.0)
    assert overdue.note({A: 7}, 60.0, grace_s=3.0) == (), "it is inside a long call: the message may lie unread"
    assert overdue.note({A: 8}, 61.0, grace_s=3.0) == (A,)


def test_an_unanswered_message_is_sent_again_at_growing_intervals_and_then_given_up() -> None:
    outbox = Outbox[str](resend_s=2.0, max_resends=3)
    outbox.add("x", TRANSFER, MESSAGE, 0.0)
    sent, moment = [], 0.0
    while outbox.waiting:
        due = outbox.next_due()
        assert due is not None
        assert outbox.take_due(due - 0.1) == ([], [])
        again, given_up = outbox.take_due(due)
        sent.append((due - moment, [entry.to for entry in again], [entry.name for entry in given_up]))
        moment = due
    assert sent == [(2.0, [TRANSFER], []), (4.0, [TRANSFER], []), (8.0, [TRANSFER], []), (16.0, [], ["x"])]
    assert outbox.next_due() is None


def test_what_is_answered_is_not_sent_again_and_what_is_lost_is_at_once() -> None:
    outbox = Outbox[str](resend_s=2.0, max_resends=1)
    outbox.add("x", TRANSFER, MESSAGE, 0.0)
    outbox.add("y", TRANSFER, MESSAGE, 0.0)
    outbox.remove("x")
    outbox.remove("x")
    outbox.failed("x", 0.5)
    outbox.failed("y", 0.5)
    again, _ = outbox.take_due(0.5)
    assert [entry.name for entry in again] == ["y"]
    outbox.failed("y", 0.6)
    assert [entry.name for entry in outbox.take_due(0.6)[1]] == ["y"], "also what fails at once fails so often only"


def test_a_gap_is_overdue_when_the_same_token_is_missed_for_long() -> None:
    gaps = Gaps()
    gaps.note(("a", 0), 3, True, 10.0)
    gaps.note(("a", 0), 3, True, 14.0)
    gaps.note(("b", 0), 1, True, 11.0)
    gaps.note(("b", 0), 5, True, 14.0)
    gaps.note(("c", 0), 5, True, 10.0)
    gaps.note(("c", 0), 9, False, 12.0)
    assert gaps.oldest() == 10.0
    assert gaps.take_overdue(14.9, 5.0) == []
    assert gaps.take_overdue(15.0, 5.0) == [("a", 0)]
    assert gaps.oldest() == 14.0
    assert len(gaps) == 1


@pytest.mark.parametrize(
    ("slowest_s", "expected"), [(None, 600.0), (0.01, FLOOR_S), (0.5, FLOOR_S), (2.0, 40.0), (100.0, 600.0)]
)
def test_a_call_may_take_many_times_what_its_like_took(slowest_s: float | None, expected: float) -> None:
    assert deadline_s(slowest_s, 600.0) == expected


def test_calls_are_compared_with_their_like() -> None:
    deadlines = CallDeadlines(600.0)
    deadlines.measured("short", 0.1)
    deadlines.measured("long", 3.0)
    deadlines.measured("long", 1.0)
    assert (deadlines.of("short"), deadlines.of("long"), deadlines.of("new")) == (10.0, 60.0, 600.0)
    assert [size_class(tokens) for tokens in (0, 1, 2, 3, 4, 255, 256)] == [0, 1, 2, 2, 3, 8, 9]


def test_a_limit_below_the_floor_holds() -> None:
    assert deadline_s(0.1, 1.0) == 1.0


def test_recent_keys_are_remembered_and_old_ones_are_not() -> None:
    recent = Recent()
    for number in range(5000):
        recent.add(Key(str(number), 0, 1))
    assert Key("4999", 0, 1) in recent
    assert Key("904", 0, 1) in recent
    assert Key("903", 0, 1) not in recent
