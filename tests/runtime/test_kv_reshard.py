"""Reshard plans against heads named one by one."""

import pytest

from runtime.kv_heads import KvHeads
from runtime.kv_reshard import Shard, fragment_heads, plan_reshard

WIDTHS = [
    (k, tp) for k in (1, 2, 3, 4, 6, 8, 12, 16) for tp in (1, 2, 3, 4, 6, 8, 12, 16) if k % tp == 0 or tp % k == 0
]
PAIRS = [(k, a, b) for k, a in WIDTHS for other, b in WIDTHS if k == other]


def held(layout: KvHeads, device: int) -> list[int]:
    """A device's heads: those that its share of 96 query heads per kv head attends with."""
    queries = range(device * 96 * layout.num_heads // layout.tp, (device + 1) * 96 * layout.num_heads // layout.tp)
    return sorted({query // 96 for query in queries})


@pytest.mark.parametrize(("num_heads", "tp"), WIDTHS)
def test_a_device_holds_the_heads_that_its_queries_attend_with(num_heads: int, tp: int) -> None:
    layout = KvHeads(num_heads, tp)
    for device in range(tp):
        first = layout.first_on(device)
        assert held(layout, device) == list(range(first, first + layout.local))
    assert layout.pool_heads == sum(len(held(layout, device)) for device in range(tp))


@pytest.mark.parametrize(("num_heads", "source_tp", "target_tp"), PAIRS)
def test_every_target_device_gets_its_heads(num_heads: int, source_tp: int, target_tp: int) -> None:
    source, target = KvHeads(num_heads, source_tp), KvHeads(num_heads, target_tp)
    heads = fragment_heads([source, target])
    plan = plan_reshard(source, target, heads)

    def content(shard: Shard) -> list[int]:
        return held(source, shard.device)[shard.fragment * heads : (shard.fragment + 1) * heads]

    for device in range(target_tp):
        arrived = [head for fragment in plan.sources for head in content(fragment[device])]
        assert arrived == held(target, device)


@pytest.mark.parametrize(("num_heads", "source_tp", "target_tp"), PAIRS)
def test_replicas_share_the_sending(num_heads: int, source_tp: int, target_tp: int) -> None:
    source, target = KvHeads(num_heads, source_tp), KvHeads(num_heads, target_tp)
    plan = plan_reshard(source, target, fragment_heads([source, target]))
    sent = [shard.device for fragment in plan.sources for shard in fragment]
    for head in range(num_heads):
        holders = [device for device in range(source_tp) if held(source, device) == [head]]
        loads = [sent.count(device) for device in holders]
        assert max(loads, default=0) - min(loads, default=0) <= 1


def test_equal_widths_keep_every_shard_on_its_device() -> None:
    plan = plan_reshard(KvHeads(2, 4), KvHeads(2, 4), 1)
    assert {shard.device // 2 for shard in plan.sources[0][:2]} == {0}
    assert plan_reshard(KvHeads(8, 2), KvHeads(8, 2), 4).sources == ((Shard(0, 0), Shard(1, 0)),)


def test_two_kv_heads_on_four_devices_from_one() -> None:
    assert fragment_heads([KvHeads(2, 1), KvHeads(2, 4)]) == 1
    plan = plan_reshard(KvHeads(2, 1), KvHeads(2, 4), 1)
    assert plan.sources == ((Shard(0, 0), Shard(0, 0), Shard(0, 1), Shard(0, 1)),)
    back = plan_reshard(KvHeads(2, 4), KvHeads(2, 1), 1)
    assert back.sources == ((Shard(0, 0),), (Shard(2, 0),))


def test_three_and_two_devices_meet_in_single_heads() -> None:
    assert fragment_heads([KvHeads(6, 3), KvHeads(6, 2)]) == 1
    assert fragment_heads([KvHeads(8, 2), KvHeads(8, 1), KvHeads(8, 4)]) == 2


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 kv heads and TP 2"):
        KvHeads(3, 2)
    with pytest.raises(ValueError, match="do not lead from"):
        plan_reshard(KvHeads(8, 2), KvHeads(4, 2), 1)
    with pytest.raises(ValueError, match="3 heads at a time do not lead"):
        plan_reshard(KvHeads(8, 2), KvHeads(8, 1), 3)
