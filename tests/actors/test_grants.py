"""The scheduler's grants against what workers report."""

from actors.grants import Grant, Grants
from actors.messages import Address, Held, Inventory, Key, WorkerUp
from actors.placement import WorkerView
from runtime.topology import Role

A, B = Key("a", 0, 1), Key("b", 0, 1)
DECODE, PREFILL = Address("decode.0"), Address("prefill.0")


def _up(
    worker: Address = DECODE,
    version: int = 1,
    leases: tuple[Held, ...] = (),
    running: tuple[Held, ...] = (),
    prefills: tuple[Key, ...] = (),
) -> WorkerUp:
    role: Role = "decode" if worker == DECODE else "prefill"
    inventory = Inventory(
        worker=worker, epoch=1, version=version, available_pages=9, free_rows=4, num_groups=0, queued_prefill_tokens=0
    )
    return WorkerUp(
        inventory=inventory,
        role=role,
        page_size=4,
        usable_pages=9,
        num_rows=4,
        leases=leases,
        running=running,
        prefills=prefills,
        reads=version,
    )


def _views(*ups: WorkerUp) -> dict[Address, WorkerView]:
    return {up.inventory.worker: WorkerView(up, 0.0) for up in ups}


def _granted(grants: Grants, key: Key, *choices: int) -> Grant:
    grant = grants.by_key[key] = Grant(key, choices, 100.0, DECODE, 0.0, None)
    grant.answered, grant.prefill = True, PREFILL
    return grant


def test_what_is_held_without_a_grant_is_taken_over() -> None:
    grants = Grants(3.0)
    grants.adopt(_up(leases=(Held(A, (0, 1)),), running=(Held(B, (2,)),)), 1.0)
    assert [(grant.held, grant.decode, grant.answered) for grant in grants.by_key.values()] == [
        (Held(A, (0, 1)), DECODE, True),
        (Held(B, (2,)), DECODE, True),
    ]
    grants.adopt(_up(PREFILL, prefills=(A, Key("c", 0, 1))), 1.0)
    assert grants.by_key[A].prefill == PREFILL
    assert len(grants.by_key) == 2, "a prefill alone is no grant"


def test_what_has_ended_is_cancelled_again_and_not_taken_over() -> None:
    grants = Grants(3.0)
    _granted(grants, A, 0, 1)
    grants.end(A, (1,), 50.0, 1.0)
    up = _up(running=(Held(A, (0, 1)),))
    assert grants.unwanted(up) == [(Held(A, (1,)), False)]
    grants.end(A, (0,), 50.0, 1.0)
    assert grants.unwanted(up) == [(Held(A, (0, 1)), True)]
    assert grants.unwanted(_up(PREFILL, prefills=(A,))) == [(Held(A, (0,)), True)]
    grants.adopt(up, 1.0)
    assert not grants.by_key


def test_a_grant_that_its_worker_does_not_have_is_lost_after_a_while() -> None:
    grants = Grants(3.0)
    grant = _granted(grants, A, 0, 1)
    _granted(grants, B, 0)
    for now, version, lost in ((1.0, 1, []), (3.9, 4, []), (4.0, 5, [(grant, (1,))])):
        views = _views(_up(version=version, running=(Held(A, (0,)), Held(B, (0,)))))
        assert grants.lost(views, now) == lost


def test_a_lease_that_nobody_prefills_is_lost_although_it_is_held() -> None:
    grants = Grants(3.0)
    grant = _granted(grants, A, 0)
    for now, prefills, lost in ((1.0, (A,), []), (2.0, (), []), (5.0, (), [(grant, (0,))])):
        views = _views(_up(leases=(Held(A, (0,)),)), _up(PREFILL, version=int(now), prefills=prefills))
        assert grants.lost(views, now) == lost


def test_a_reservation_without_an_answer_is_asked_for_again_at_intervals() -> None:
    grants = Grants(3.0)
    grant = grants.by_key[A] = Grant(A, (0,), 100.0, DECODE, 10.0, None)
    assert grants.unanswered(11.9, 2.0) == []
    assert grants.unanswered(12.0, 2.0) == [grant]
    assert grants.unanswered(13.0, 2.0) == []
    assert grants.lost(_views(_up(version=1)), 14.0) == []
    assert grants.lost(_views(_up(version=1)), 30.0) == [], "it has not read its inbox: the answer may be yet to come"
    assert grants.lost(_views(_up(version=2, leases=(Held(A, (0,)),))), 31.0) == [], "the answer is lost"
    assert grants.lost(_views(_up(version=3)), 32.0) == []
    assert grants.lost(_views(_up(version=4)), 35.0) == [(grant, (0,))]


def test_a_prefill_for_nobody_is_found_after_a_while() -> None:
    grants = Grants(3.0)
    _granted(grants, B, 0)
    for now, orphans in ((1.0, []), (4.0, [(PREFILL, A)])):
        assert grants.orphans(_views(_up(PREFILL, version=int(now), prefills=(A, B))), now) == orphans
