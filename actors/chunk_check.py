"""Compares checksums of KV before and behind its transfer, with `--verify-kv`.

A chunk that has arrived waits here until the slice has summed it; only then is it placed, so that nothing that changed
on its way is read or named in the prefix cache.
"""

import logging

from actors.context import Context
from actors.messages import GATEWAY, Address, ChunkCorrupt, ChunkLost, KvChunkReady
from runtime.engine import Engine, KvChunk

logger = logging.getLogger(__name__)


class ChunkCheck:
    """One life's chunks that have arrived and were not looked at."""

    def __init__(self, worker: Address, engine: Engine) -> None:
        self._worker = worker
        self._engine = engine
        self.waiting: list[tuple[KvChunkReady, KvChunk]] = []

    def add(self, ready: KvChunkReady, chunk: KvChunk) -> None:
        """A chunk has arrived."""
        self.waiting.append((ready, chunk))

    def compare(self) -> list[tuple[KvChunkReady, KvChunk | None]]:
        """Sums what waits, on the slice's thread; without the chunk where its checksums are others. Nothing waits then.

        A sender that took no checksums is believed.
        """
        arrived, self.waiting = self.waiting, []
        return [
            (ready, chunk if ready.checksums in (None, self._engine.checksum(chunk)) else None)
            for ready, chunk in arrived
        ]

    def report(self, ctx: Context, ready: KvChunkReady) -> None:
        """A chunk has changed on its way: its sender still has it and sends it again."""
        reason = f"tokens {ready.token_start} to {ready.token_end} of {ready.key} arrived changed"
        logger.warning("%s: %s from %s; they are sent again", self._worker, reason, ready.sender)
        ctx.post(ready.sender, ChunkLost(key=ready.key, sequence=ready.sequence, worker=self._worker, reason=reason))
        ctx.post(GATEWAY, ChunkCorrupt(worker=self._worker, key=ready.key, sequence=ready.sequence))
