"""A mover that loses, fails, delays or corrupts chunks on order."""

from collections.abc import Callable

from runtime.chaos.campaign import Chaos
from runtime.chaos.engine import ChaosError
from runtime.engine import ChunkVanished, KvChunk, KvMover

Corrupt = Callable[[KvChunk, Callable[[int], int]], KvChunk]
"""Returns the chunk with one bit of its first page changed; the second argument draws a number below a limit."""


class ChaosMover:
    """`KvMover` around another one. Thread safe if that is."""

    def __init__(self, mover: KvMover, chaos: Chaos, corrupt: Corrupt) -> None:
        self._mover = mover
        self._chaos = chaos
        self._corrupt = corrupt

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        """The chunk on slice `target`, if nothing was ordered. Raises ChunkVanished for one that is dropped."""
        campaign = self._chaos.campaign
        if campaign is None:
            return self._mover.move(chunk, target)
        corrupts = False
        for strike in campaign.transfer:
            if strike.kind == "delay":
                campaign.hit(strike)
                campaign.over.wait(strike.duration_s)
            elif campaign.drawn(strike):
                if strike.kind == "drop":
                    raise ChunkVanished(strike.text)
                if strike.kind == "fail":
                    raise ChaosError(strike.text)
                corrupts = True
        moved = self._mover.move(chunk, target)
        return self._corrupt(moved, campaign.draw_below) if corrupts else moved
