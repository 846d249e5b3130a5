"""The transfer actor: moves staged chunks from prefill slices to decode slices, at most two at a time per pair.

In: `MoveChunk` from prefill workers, `Cancel` from the scheduler. Out: `KvChunkReady` to decode workers, `ChunkLost`
back to the sender. A chunk belongs to its sender until the decode worker acknowledges it; what this actor makes, the
copy on the target slice, belongs to whoever gets the `KvChunkReady`. It never reorders the chunks of a pair on purpose,
but promises no order: coverage is checked where they are inserted.
"""

from collections import deque
from functools import partial

from actors.context import Context, EngineFailure, EngineTimeout
from actors.messages import (
    Address,
    Cancel,
    ChunkLost,
    KvChunkReady,
    Message,
    MoveChunk,
    TransferMessage,
    WorkerDown,
)
from runtime.engine import ChunkVanished, KvMover

Pair = tuple[Address, Address]

MOVES_PER_PAIR = 2


class TransferActor:
    """See the module. Each pair of slices has lanes of its own, so a slow pair delays no other."""

    def __init__(self, mover: KvMover, move_timeout_s: float = 120.0) -> None:
        self._mover = mover
        self._move_timeout_s = move_timeout_s
        self.waiting: dict[Pair, deque[MoveChunk]] = {}
        self._idle_lanes: dict[Pair, list[str]] = {}

    async def run(self, ctx: Context) -> None:
        """Handles messages until cancelled; moves run in child tasks."""
        while True:
            message = await ctx.receive()
            if message is not None:
                self._handle(ctx, message)

    def _handle(self, ctx: Context, message: Message) -> None:
        assert isinstance(message, TransferMessage), message
        match message:
            case MoveChunk():
                pair = (message.sender, message.target)
                self.waiting.setdefault(pair, deque()).append(message)
                self._start_moves(ctx, pair)
            case Cancel():
                self._cancel(ctx, message)
            case WorkerDown():
                self._drop_pairs(ctx, message.worker)

    def _start_moves(self, ctx: Context, pair: Pair) -> None:
        lanes = self._idle_lanes.setdefault(
            pair, [f"transfer/{pair[0]}->{pair[1]}/{lane}" for lane in range(MOVES_PER_PAIR)]
        )
        while lanes and self.waiting[pair]:
            move, lane = self.waiting[pair].popleft(), lanes.pop()
            ctx.spawn(lane, partial(self._move, ctx, pair, move, lane))

    async def _move(self, ctx: Context, pair: Pair, move: MoveChunk, lane: str) -> None:
        """One move, from the lane's taking to its return."""
        try:
            chunk = ctx.arrays.get(move.handle)
            moved = await ctx.run_engine(lane, lambda: self._mover.move(chunk, move.target), self._move_timeout_s)
        except (KeyError, EngineFailure, EngineTimeout) as error:
            if not isinstance(error.__cause__, ChunkVanished):
                self._lost(ctx, move, f"{type(error).__name__}: {error}")
        else:
            self._ready(ctx, move, ctx.arrays.put(moved))
        self._idle_lanes[pair].append(lane)
        self._start_moves(ctx, pair)

    def _ready(self, ctx: Context, move: MoveChunk, handle: int) -> None:
        ready = KvChunkReady(
            key=move.key,
            sequence=move.sequence,
            token_start=move.token_start,
            token_end=move.token_end,
            handle=handle,
            sender=move.sender,
            moved_at=ctx.now(),
        )
        if not ctx.post(move.target, ready):
            ctx.arrays.drop(handle)
            self._lost(ctx, move, f"{move.target} takes no chunks")

    def _lost(self, ctx: Context, move: MoveChunk, reason: str) -> None:
        ctx.post(move.sender, ChunkLost(key=move.key, sequence=move.sequence, worker=move.target, reason=reason))

    def _cancel(self, ctx: Context, message: Cancel) -> None:
        """Gives back what waits for a group that nobody wants any more; moves under way arrive unwanted."""
        if not message.whole:
            return
        for queue in self.waiting.values():
            for move in [move for move in queue if move.key == message.key]:
                queue.remove(move)
                self._lost(ctx, move, "cancelled")

    def _drop_pairs(self, ctx: Context, worker: Address) -> None:
        for pair, queue in self.waiting.items():
            if worker in pair:
                for move in queue:
                    self._lost(ctx, move, f"{worker} is down")
                queue.clear()
