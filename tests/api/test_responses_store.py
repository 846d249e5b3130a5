"""The store by itself: bounded by number, bytes and age, and true about its size under any use."""

from random import Random

import pytest

from api.responses.items import InputText, MessageItem
from api.responses.store import Block, Kept, ResponseStore, StoreLimits
from runtime.errors import RequestError


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def items(text: str) -> tuple[MessageItem, ...]:
    return (MessageItem(id=f"msg_{text}", role="user", content=(InputText(text),)),)


def kept(name: str, *, size: int = 100, after: tuple[Block, ...] = ()) -> Kept:
    return Kept(
        id=name,
        body=b"x" * size,
        status="completed",
        background=False,
        input=(*after, Block.of_input(items(f"in {name}"))),
        output=Block.of_output(items(f"out {name}")),
    )


def is_there(store: ResponseStore, name: str) -> bool:
    return name in store


def test_items_come_back_as_they_were() -> None:
    assert Block.of_input(items("a\u2028b")).items() == items("a\u2028b")


def test_number() -> None:
    store = ResponseStore(StoreLimits(max_responses=2), Clock())
    for name in "abc":
        assert store.put(kept(name))
    assert [is_there(store, name) for name in "abc"] == [False, True, True]
    store.get("id", "b")
    store.put(kept("d"))
    assert [is_there(store, name) for name in "bcd"] == [True, False, True]


def test_bytes() -> None:
    store = ResponseStore(StoreLimits(max_bytes=2500), Clock())
    for name in "abc":
        assert store.put(kept(name, size=900))
    assert [is_there(store, name) for name in "abc"] == [False, True, True]
    assert not store.put(kept("d", size=2500))
    assert [is_there(store, name) for name in "bcd"] == [True, True, False]


def test_age() -> None:
    clock = Clock()
    store = ResponseStore(StoreLimits(max_age_s=10), clock)
    store.put(kept("a"))
    clock.now_s += 9
    store.put(kept("b"))
    store.get("id", "a")
    clock.now_s += 10
    store.get("id", "a")
    clock.now_s += 1
    with pytest.raises(RequestError) as refused:
        store.get("id", "b")
    assert refused.value.status == 404
    assert (len(store), is_there(store, "a")) == (1, True)
    clock.now_s += 100
    with pytest.raises(RequestError):
        store.get("id", "a")
    assert (len(store), store.size_bytes) == (0, 0)


def test_what_is_kept_can_be_continued() -> None:
    store = ResponseStore(StoreLimits(max_responses=1), Clock())
    store.put(kept("a"))
    first = store.get("id", "a")
    store.put(kept("b", after=first.conversation))
    assert not is_there(store, "a")
    texts = [item.id for part in store.get("id", "b").conversation for item in part.items()]
    assert texts == ["msg_in a", "msg_out a", "msg_in b", "msg_out b"]


def test_only_an_answers_items_can_be_referred_to() -> None:
    store = ResponseStore(StoreLimits(max_responses=1), Clock())
    store.put(kept("a"))
    assert store.find_item("msg_out a") == items("out a")[0]
    assert store.find_item("msg_in a") is None
    store.put(kept("b", after=store.get("id", "a").conversation))
    assert store.find_item("msg_out a") == items("out a")[0]
    store.put(kept("c"))
    assert store.find_item("msg_out a") is None


@pytest.mark.parametrize("seed", range(5))
def test_its_size_is_that_of_all_different_blocks(seed: int) -> None:
    random = Random(seed)
    clock = Clock()
    store = ResponseStore(StoreLimits(max_responses=20, max_bytes=8000, max_age_s=50), clock)
    model: dict[str, Kept] = {}
    for number in range(500):
        known = [name for name in model if name in store]
        action = random.random()
        clock.now_s += random.random() * 3
        if action < 0.2 and known:
            store.delete(random.choice(known))
        else:
            after = model[random.choice(known)].conversation if action < 0.7 and known else ()
            name = str(number)
            model[name] = kept(name, size=random.randrange(600), after=after)
            store.put(model[name])
        there = [one for name, one in model.items() if name in store]
        blocks = {id(part): len(part.data) for one in there for part in one.conversation}
        assert store.size_bytes == sum(len(one.body) for one in there) + sum(blocks.values())
        assert len(there) == len(store) <= 20
        assert store.size_bytes <= 8000
        answers = {item_id for one in there for part in one.conversation for item_id in part.ids}
        assert {item_id for name in model if store.find_item(item_id := f"msg_out {name}")} == answers
