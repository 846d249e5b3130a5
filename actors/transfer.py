"""The transfer actor: moves staged chunks from prefill slices to decode slices, at most two at a time per pair.

In: `MoveChunk` from prefill workers, `Cancel` from the scheduler. Out: `KvChunkReady` to decode workers, `ChunkLost`
back to the sender. A chunk belongs to its sender until the decode worker acknowledges it, so this actor may forget or
die: what is not acknowledged is sent again. What it makes, the copy on the target slice, lies in the array table until
the decode worker takes it, and is dropped when nobody has for a while. It never reorders the chunks of a pair on
purpose, but promises no order: coverage is checked where they are inserted.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

from actors.context import Context, EngineFailure, EngineTimeout
from actors.messages import (
    Address,
    Cancel,
    ChunkLost,
    Key,
    KvChunkReady,
    Message,
    MoveChunk,
    TransferMessage,
    WorkerDown,
)
from actors.telemetry import NO_TELEMETRY, Telemetry
from runtime.engine import ChunkVanished, KvMover

Pair = tuple[Address, Address]
Name = tuple[Address, Key, int]
"""A chunk's sender, group and sequence number."""

MOVES_PER_PAIR = 2


class TransferActor:
    """See the module. Each pair of slices has lanes of its own, so a slow pair delays no other.

    A copy that nobody takes is dropped after `untaken_s`.
    """

    def __init__(
        self,
        mover: KvMover,
        untaken_s: float,
        move_timeout_s: float = 120.0,
        *,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._mover = mover
        self._telemetry = telemetry
        self._untaken_s = untaken_s
        self._move_timeout_s = move_timeout_s
        self.waiting: dict[Pair, deque[MoveChunk]] = {}
        self._idle_lanes: dict[Pair, list[str]] = {}
        self._known: set[Name] = set()
        self._made: dict[Name, tuple[float, KvChunkReady]] = {}
        self._ended = False

    async def run(self, ctx: Context) -> None:
        """Handles messages until cancelled; moves run in child tasks."""
        try:
            while True:
                oldest_s = next((until for until, _ in self._made.values()), None)
                message = await ctx.receive(None if oldest_s is None else max(0.0, oldest_s - ctx.now()))
                if message is not None:
                    self._handle(ctx, message)
                self._drop_made(ctx, ctx.now())
        finally:
            self._ended = True
            self._drop_made(ctx, float("inf"))

    def _drop_made(self, ctx: Context, now: float) -> None:
        """Drops copies that nobody has taken in time; they are in the order of their making."""
        for name, (until, ready) in list(self._made.items()):
            if until > now:
                return
            del self._made[name]
            ctx.arrays.drop(ready.handle)

    def _handle(self, ctx: Context, message: Message) -> None:
        assert isinstance(message, TransferMessage), message
        match message:
            case MoveChunk():
                self._enter(ctx, message)
            case Cancel():
                self._cancel(message)
            case WorkerDown():
                self._drop_pairs(message.worker)

    def _enter(self, ctx: Context, move: MoveChunk) -> None:
        """Takes a chunk in, unless it waits or is under way already, or lies there untaken: that is told again."""
        if _name(move) in self._known:
            return
        _, ready = self._made.get(_name(move), (0.0, None))
        if ready is not None and ready.handle in ctx.arrays:
            ctx.post(move.target, ready)
            return
        self._known.add(_name(move))
        pair = (move.sender, move.target)
        self.waiting.setdefault(pair, deque()).append(move)
        self._start_moves(ctx, pair)

    def _start_moves(self, ctx: Context, pair: Pair) -> None:
        lanes = self._idle_lanes.setdefault(
            pair, [f"transfer/{pair[0]}->{pair[1]}/{lane}" for lane in range(MOVES_PER_PAIR)]
        )
        while lanes and self.waiting[pair]:
            move, lane = self.waiting[pair].popleft(), lanes.pop()
            ctx.spawn(lane, partial(self._move, ctx, pair, move, lane))

    async def _move(self, ctx: Context, pair: Pair, move: MoveChunk, lane: str) -> None:
        """One move, from the lane's taking to its return."""
        began = ctx.now()
        try:
            chunk = ctx.arrays.get(move.handle)
            moved = await ctx.run_engine(lane, lambda: self._mover.move(chunk, move.target), self._move_timeout_s)
        except (KeyError, EngineFailure, EngineTimeout) as error:
            self._known.discard(_name(move))
            self._telemetry.move_failed(*pair)
            if not isinstance(error.__cause__, ChunkVanished):
                self._lost(ctx, move, f"{type(error).__name__}: {error}")
            if isinstance(error, EngineTimeout):
                await self._until_back(ctx, lane)
        else:
            self._known.discard(_name(move))
            self._telemetry.moved(*pair, move.token_end - move.token_start, ctx.now() - began)
            if self._ended:
                return
            self._ready(ctx, move, ctx.arrays.put(moved))
        self._idle_lanes[pair].append(lane)
        self._start_moves(ctx, pair)

    async def _until_back(self, ctx: Context, lane: str) -> None:
        """Waits until the call that hangs in the lane has returned: whatever is given to it until then waits, too."""
        while not self._ended:
            try:
                return await ctx.run_engine(lane, lambda: None, self._move_timeout_s)
            except EngineTimeout:
                pass

    def _ready(self, ctx: Context, move: MoveChunk, handle: int) -> None:
        ready = KvChunkReady(
            key=move.key,
            sequence=move.sequence,
            token_start=move.token_start,
            token_end=move.token_end,
            handle=handle,
            sender=move.sender,
            moved_at=ctx.now(),
            checksums=move.checksums,
        )
        if ctx.post(move.target, ready):
            self._made.pop(_name(move), None)
            self._made[_name(move)] = (ctx.now() + self._untaken_s, ready)
        else:
            ctx.arrays.drop(handle)
            self._lost(ctx, move, f"{move.target} takes no chunks")

    def _lost(self, ctx: Context, move: MoveChunk, reason: str) -> None:
        ctx.post(move.sender, ChunkLost(key=move.key, sequence=move.sequence, worker=move.target, reason=reason))

    def _cancel(self, message: Cancel) -> None:
        """Forgets what waits for a group that nobody wants any more; moves under way arrive unwanted."""
        if message.whole:
            self._forget(lambda move: move.key == message.key)

    def _drop_pairs(self, worker: Address) -> None:
        self._forget(lambda move: worker in (move.sender, move.target))

    def _forget(self, is_unwanted: Callable[[MoveChunk], bool]) -> None:
        """What waits is its sender's, who hears of cancels and deaths as well, or will send it again."""
        for queue in self.waiting.values():
            for move in [move for move in queue if is_unwanted(move)]:
                queue.remove(move)
                self._known.discard(_name(move))


def _name(move: MoveChunk) -> Name:
    return move.sender, move.key, move.sequence
