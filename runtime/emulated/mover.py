"""`KvMover` between emulated slices: a move begins when its chunk is gathered and lasts as long as the table says.

The transfer actor calls it from threads of its own; there is no shared state. Moves do not slow each other down.
"""

from typing import cast

from runtime.emulated.engine import EmulatedChunk
from runtime.emulated.table import Linear
from runtime.emulated.timeline import Clock
from runtime.engine import KvChunk


class EmulatedMover:
    """See the module. Thread safe."""

    def __init__(self, transfer: Linear, clock: Clock) -> None:
        self._transfer = transfer
        self._clock = clock

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        """Returns the chunk on slice `target`, after the copy is done. The source chunk is left alone."""
        source = cast(EmulatedChunk, chunk)
        end = max(self._clock.now(), source.ready) + self._transfer.of(source.num_tokens)
        self._clock.sleep_until(end)
        return cast(KvChunk, source._replace(ready=end))
