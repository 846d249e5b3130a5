"""Who is drained by what the scheduler knows, and whose time is over."""

import msgspec

from actors.drains import Drains
from actors.grants import Grant
from actors.messages import Address, Held, Inventory, Key, WorkerUp
from actors.placement import WorkerView
from runtime.topology import Role

P0, D0, D1 = Address("prefill.0"), Address("decode.0"), Address("decode.1")
KEY = Key("r", 0, 1)


def _view(name: Address, role: Role, now: float = 0.0, version: int = 1, **holds: object) -> WorkerView:
    inventory = Inventory(
        worker=name, epoch=1, version=version, available_pages=9, free_rows=9, num_groups=0, queued_prefill_tokens=0
    )
    up = WorkerUp(inventory=inventory, role=role, page_size=4, usable_pages=9, num_rows=9)
    return WorkerView(msgspec.structs.replace(up, **holds), now)


def _grant(decode: Address = D0, prefill: Address | None = P0) -> Grant:
    grant = Grant(KEY, (0,), 99.0, decode, 0.0, None)
    grant.answered, grant.prefill = True, prefill
    return grant


def test_draining_workers_are_not_open() -> None:
    drains, views = Drains(), [_view(P0, "prefill"), _view(D0, "decode"), _view(D1, "decode")]
    drains.order(D0, 5.0, 0.0)
    assert [view.address for view in drains.open(views)] == [P0, D1]
    drains.resume(D0)
    assert drains.open(views) == views


def test_a_decode_worker_is_drained_once_it_says_so_after_its_last_grant() -> None:
    drains = Drains()
    drains.order(D0, 5.0, 1.0)
    busy = {D0: _view(D0, "decode", 1.5)}
    assert drains.look([_grant()], busy, 2.0) == []
    assert drains.look([], busy, 3.0) == []
    assert drains.drained == set(), "its report is from before its last grant ended"
    assert drains.look([], {D0: _view(D0, "decode", 3.5, running=(Held(KEY, (0,)),))}, 4.0) == []
    assert drains.drained == set()
    assert drains.look([], {D0: _view(D0, "decode", 4.5)}, 5.0) == []
    assert drains.drained == {D0}
    drains.look([_grant()], {D0: _view(D0, "decode", 4.5)}, 5.5)
    assert drains.drained == set(), "it has been given something by an earlier scheduler"


def test_a_prefill_worker_is_done_with_groups_that_decode() -> None:
    drains, grant = Drains(), _grant()
    drains.order(P0, 5.0, 1.0)
    waits = {P0: _view(P0, "prefill", 2.0), D0: _view(D0, "decode", 2.0, leases=(Held(KEY, (0,)),))}
    sends = {P0: _view(P0, "prefill", 3.0, prefills=(KEY,)), D0: _view(D0, "decode", 3.0, running=(Held(KEY, (0,)),))}
    for workers in (waits, sends):
        assert drains.look([grant], workers, 4.0) == []
        assert drains.drained == set()
        assert drains.look([grant], workers, 5.0) == [grant], "its time is over"
    runs = {P0: _view(P0, "prefill", 6.0), D0: _view(D0, "decode", 6.0, running=(Held(KEY, (0,)),))}
    assert drains.look([grant], runs, 7.0) == [], "it decodes elsewhere and is left alone"
    assert drains.drained == {P0}


def test_a_grant_between_two_draining_workers_is_moved_once() -> None:
    drains, grant = Drains(), _grant()
    for worker in (P0, D0):
        drains.order(worker, 1.0, 0.0)
    workers = {P0: _view(P0, "prefill"), D0: _view(D0, "decode")}
    assert drains.look([grant], workers, 2.0) == [grant]


def test_a_worker_that_is_dead_holds_nothing() -> None:
    drains, view = Drains(), _view(D0, "decode", running=(Held(KEY, (0,)),))
    view.alive = False
    drains.order(D0, 5.0, 0.0)
    drains.look([], {D0: view}, 1.0)
    assert drains.drained == {D0}
