"""Which shards of gathered KV go where when two slices split the kv heads differently. Pure, no jax.

Heads travel in *fragments*: as many consecutive heads as divide what a device of any slice holds. A chunk is one array
per local fragment, each split over the slice's devices: array f holds fragment f of every device. So moving a chunk
only relabels whole shards: the one of (source device, source array) becomes the one of (target device, target array),
and neither slice needs programs that the other's width decides.
"""

import math
from collections import Counter
from collections.abc import Iterable

import msgspec

from runtime.kv_heads import KvHeads


class Shard(msgspec.Struct, frozen=True, array_like=True):
    """One fragment of one device of a slice."""

    device: int
    fragment: int


class ReshardPlan(msgspec.Struct, frozen=True):
    """`sources[f][d]` is the source's shard that becomes fragment f of device d of the target."""

    sources: tuple[tuple[Shard, ...], ...]


def fragment_heads(layouts: Iterable[KvHeads]) -> int:
    """Heads of one fragment for slices of these layouts: the most that divides what each of their devices holds."""
    return math.gcd(*(layout.local for layout in layouts))


def plan_reshard(source: KvHeads, target: KvHeads, heads: int) -> ReshardPlan:
    """Where each fragment of `heads` heads comes from.

    Where several devices of the source hold a fragment, the target's devices that want it take turns among them.
    Raises ValueError for layouts of different models, or heads that do not divide what a device holds.
    """
    if source.num_heads != target.num_heads or source.local % heads or target.local % heads:
        raise ValueError(f"{heads} heads at a time do not lead from {source} to {target}")
    holders: dict[int, list[Shard]] = {}
    for device in range(source.tp):
        for fragment in range(source.local // heads):
            holders.setdefault(source.first_on(device) + fragment * heads, []).append(Shard(device, fragment))
    turns: Counter[int] = Counter()

    def pick(head: int) -> Shard:
        turns[head] += 1
        return holders[head][(turns[head] - 1) % len(holders[head])]

    return ReshardPlan(
        tuple(
            tuple(pick(target.first_on(device) + fragment * heads) for device in range(target.tp))
            for fragment in range(target.local // heads)
        )
    )
