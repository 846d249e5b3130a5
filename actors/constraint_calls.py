"""A worker's calls on the constraints of its choices, on a thread of their own beside the slice's.

So the forward pass of a step goes on while the masks for its sample are made. Grammars are the clients': one that fails
costs its own choice and nobody else's, which is why errors come back as values here. A call that does not come back in
time costs all the choices that it was made for, and no others.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from actors.context import Context, EngineFailure, EngineTimeout
from actors.messages import ErrorInfo
from runtime.constraints import Constraint, ConstraintError, Constraints
from runtime.sampling_params import SamplingParams

T = TypeVar("T")


class Bound(msgspec.Struct, frozen=True):
    """Constraints of a group by choice, and the mask of each one's next sample."""

    constraints: dict[int, Constraint]
    mask: bytes


class ConstraintCalls:
    """The calls of one life of a worker. Each may take `timeout_s`."""

    def __init__(self, lane: str, constraints: Constraints | None, vocab_size: int, timeout_s: float) -> None:
        self._lane = lane
        self._constraints = constraints
        self._timeout_s = timeout_s
        self._hung = 0
        self._everything = _all_tokens(vocab_size)

    async def begin(
        self, ctx: Context, params: SamplingParams, output: tuple[int, ...], choices: Sequence[int]
    ) -> Bound | ErrorInfo:
        """Constraints behind these accepted tokens, one for each choice; they are alike."""
        known = self._constraints
        if known is None:
            return _failed("this server has none", 500)

        def begin() -> Bound:
            constraints = {choice: known.begin(params, output) for choice in choices}
            first = constraints[choices[0]]
            if first.is_complete:
                raise ConstraintError("nothing can follow")
            return Bound(constraints, self._or_everything(first.mask()))

        return await self._try(ctx, begin)

    async def advance(self, ctx: Context, tokens: Sequence[tuple[Constraint, int]]) -> list[bool | ErrorInfo]:
        """Tells each constraint its next token; whether it is complete now."""

        def advance() -> list[bool | ErrorInfo]:
            return [_advance(constraint, token) for constraint, token in tokens]

        told = await self._try(ctx, advance)
        return [told] * len(tokens) if isinstance(told, ErrorInfo) else told

    async def masks(self, ctx: Context, constraints: Sequence[Constraint]) -> list[bytes | ErrorInfo]:
        """The mask of each one's next sample."""
        known = self._constraints
        assert known is not None

        def masks() -> list[bytes | ErrorInfo]:
            found = zip(constraints, known.masks(constraints), strict=True)
            return [self._settle(constraint, mask) for constraint, mask in found]

        settled = await self._try(ctx, masks)
        return [settled] * len(constraints) if isinstance(settled, ErrorInfo) else settled

    def _settle(self, constraint: Constraint, mask: bytes | None) -> bytes | ErrorInfo:
        """A batch gives none where nothing is excluded, and none where the constraint fails."""
        try:
            return self._or_everything(constraint.mask() if mask is None else mask)
        except ConstraintError as error:
            return _failed(str(error), 400)

    def _or_everything(self, mask: bytes | None) -> bytes:
        """A mask takes the place of the one before it, so one that excludes nothing has to be said, too."""
        return self._everything if mask is None else mask

    async def _try(self, ctx: Context, call: Callable[[], T]) -> T | ErrorInfo:
        """Runs the call. One that hangs keeps its thread, and those behind it get another."""
        try:
            return await ctx.run_engine(f"{self._lane}/{self._hung}", call, self._timeout_s)
        except EngineTimeout:
            self._hung += 1
            return _failed(f"it was not worked out within {self._timeout_s:g} s", 500)
        except EngineFailure as error:
            cause = error.__cause__
            return _failed(str(error), 500) if not isinstance(cause, ConstraintError) else _failed(str(cause), 400)


def _advance(constraint: Constraint, token: int) -> bool | ErrorInfo:
    try:
        constraint.advance(token)
    except ConstraintError as error:
        return _failed(str(error), 400)
    return constraint.is_complete


def _failed(why: str, status: int) -> ErrorInfo:
    """A grammar that cannot go on is the request's fault, anything else is ours."""
    return ErrorInfo(status=status, message=f"The constraint on the output failed: {why}.", code="constraint_failed")


def _all_tokens(vocab_size: int) -> bytes:
    """The packed mask that allows every token."""
    return ((1 << vocab_size) - 1).to_bytes(-(-vocab_size // 32) * 4, "little")
