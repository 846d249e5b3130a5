"""A worker's calls on its slice, each with a deadline that follows from how long such calls have taken."""

from collections.abc import Callable, Hashable
from typing import TypeVar

from actors.call_deadlines import CallDeadlines, size_class
from actors.context import Context
from actors.decode import DecodePhase
from actors.messages import Address
from actors.turn import Turn

T = TypeVar("T")


class SliceCalls:
    """The calls of one worker."""

    def __init__(self, lane: Address, deadlines: CallDeadlines) -> None:
        self._lane = lane
        self._deadlines = deadlines

    async def call(self, ctx: Context, kind: Hashable, call: Callable[[], T]) -> T:
        """Runs the call. Raises EngineTimeout when it takes much longer than its like have, or EngineFailure."""
        begun = ctx.now()
        result = await ctx.run_engine(self._lane, call, self._deadlines.of(kind))
        self._deadlines.measured(kind, ctx.now() - begun)
        return result


def size_of(turn: Turn, decode: DecodePhase) -> tuple[int, ...]:
    """Turns of one class take about as long: like many prompt tokens (scored ones too), rows, context and copies."""
    segments, rows = (turn.step.prefill, turn.step.decode) if turn.step is not None else ((), ())
    sequences = [decode.sequences.get(slot.key) for slot in turn.slots if slot.job is None]
    context = sum(segment.start for segment in segments)
    context += sum(sequence.length for sequence in sequences if sequence is not None)
    copies = len(turn.inserts) + len(turn.gathers) + len(turn.copies)
    prompt_tokens = sum(len(segment.tokens) for segment in segments)
    scored = sum(len(segment.tokens) for segment in segments if segment.score is not None)
    return tuple(size_class(size) for size in (prompt_tokens, len(rows), context, copies, scored))
