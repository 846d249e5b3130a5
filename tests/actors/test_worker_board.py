"""What the gateway tells operators of workers, and which drains it refuses."""

from collections.abc import Mapping

from actors.messages import Address, DrainWorker, ErrorInfo, ResumeWorker, WorkerState
from actors.worker_board import STARTING, WorkerBoard
from runtime.topology import parse_topology

P0, P1, D0, D1, M0 = (Address(name) for name in ("prefill.0", "prefill.1", "decode.0", "decode.1", "mixed.0"))


def _board(topology: str = "prefill=2,decode=2", up: bool = True) -> WorkerBoard:
    board = WorkerBoard({Address(part.name): part.role for part in parse_topology(topology).slices})
    for status in board.statuses() if up else ():
        board.up(status.name, 1)
    return board


def _states(board: WorkerBoard) -> Mapping[str, WorkerState]:
    return {status.name: status.state for status in board.statuses() if status.state != "up"}


def _code(error: ErrorInfo | None) -> tuple[int, str]:
    assert error is not None
    return error.status, error.code


def test_a_worker_is_down_until_it_was_heard_of() -> None:
    board = _board(up=False)
    assert {(status.state, status.reason) for status in board.statuses()} == {("down", STARTING)}
    assert board.down_names() == ()
    board.up(P0, 1)
    assert P0 not in _states(board)


def test_news_of_earlier_lives_are_no_news() -> None:
    board = _board()
    board.down(D0, 1, "it broke", final=False)
    board.up(D0, 1)
    assert _states(board) == {D0: "down"}
    assert board.down_names() == (D0,)
    board.up(D0, 2)
    board.down(D0, 1, "told late", final=False)
    assert _states(board) == {}
    board.down(D0, 2, "broken for good", final=True)
    assert _states(board) == {D0: "lost"}
    status = board.status(D0)
    assert status is not None
    assert status.reason == "broken for good"


def test_a_drain_ends_when_nothing_is_held_and_is_taken_back() -> None:
    board = _board()
    assert board.drain(D0, 30.0) is None
    assert _states(board) == {D0: "draining"}
    assert board.corrections((D0,), (D0,)) == []
    assert _states(board) == {D0: "drained"}
    assert board.resume(D0) is None
    assert _states(board) == {}
    assert board.resume(D0) is None, "twice does no harm"


def test_a_drain_outlives_the_worker() -> None:
    board = _board()
    board.drain(D0, 30.0)
    board.down(D0, 1, "it broke", final=False)
    assert _states(board) == {D0: "down"}
    board.up(D0, 2)
    assert _states(board) == {D0: "draining"}


def test_the_last_of_a_role_is_not_drained() -> None:
    board = _board()
    assert board.drain(P0, 30.0) is None
    error = board.drain(P1, 30.0)
    assert _code(error) == (409, "last_worker")
    assert error is not None
    assert "prefill.0 is draining" in error.message
    assert board.drain(D0, 30.0) is None, "the other role has its own"
    board.resume(P0)
    board.down(P0, 1, "it broke", final=False)
    assert _code(board.drain(P1, 30.0)) == (409, "last_worker"), "one that is down is nobody to rely on"
    assert _code(_board("mixed=1").drain(M0, 30.0)) == (409, "last_worker")
    assert _board("mixed=2").drain(M0, 30.0) is None


def test_what_is_lost_or_unknown_is_not_drained() -> None:
    board = _board()
    board.down(D0, 1, "burnt", final=True)
    assert _code(board.drain(D0, 30.0)) == (409, "worker_lost")
    assert _code(board.drain(Address("decode.7"), 30.0)) == (404, "worker_not_found")
    assert _code(board.resume(Address("gateway"))) == (404, "worker_not_found")


def test_a_scheduler_that_reports_other_drains_is_told_again() -> None:
    board = _board()
    board.drain(D0, 30.0)
    assert board.corrections((), ()) == [DrainWorker(worker=D0, deadline=30.0)]
    assert board.corrections((D0,), ()) == []
    assert board.corrections((D0,), (D0,)) == []
    assert _states(board) == {D0: "drained"}
    board.resume(D0)
    assert board.corrections((D0,), (D0,)) == [ResumeWorker(worker=D0)]
    assert _states(board) == {}
