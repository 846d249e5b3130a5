"""Order and bounds of an inbox."""

from actors.mailbox import Mailbox
from actors.messages import (
    Address,
    Cancel,
    Disconnect,
    GetStatus,
    Key,
    Message,
    Reserve,
    TokensSampled,
)

KEY = Key("r", 0, 1)


def _work(order: int) -> Reserve:
    return Reserve(
        epoch=1, key=KEY, choices=(0,), order=order, num_tokens=1, prompt_tokens=1, reserve_tokens=1, deadline=1.0
    )


def _box(**capacity: int) -> Mailbox:
    return Mailbox({"control": 2, "cancel": 2, "token": 2, "work": 2} | capacity)


def test_classes_go_before_age() -> None:
    box = _box()
    control, token = GetStatus(reply_to=Address("x")), TokensSampled(worker=Address("w"), tokens=())
    cancel = Cancel(key=KEY, choices=(0,), deadline=1.0, whole=True)
    sent: list[Message] = [_work(1), token, _work(2), cancel, control]
    assert all(box.put(message) for message in sent)
    assert [box.take() for _ in sent] == [control, cancel, token, sent[0], sent[2]]
    assert box.take() is None


def test_each_class_has_its_own_room() -> None:
    box = _box(work=1)
    assert box.put(_work(1))
    assert not box.put(_work(2))
    assert box.overflowed
    assert box.put(Disconnect(request="r")), "a flood of work leaves room for a cancel"
    assert len(box) == 2
