"""What a worker does about its choices' constraints: begins them, tells them tokens, and gets masks for the next ones.

It keeps none of them itself: they belong to jobs, leases and sequences and end with these.
"""

from collections import deque
from collections.abc import Callable, Iterable

from actors.constraint_calls import ConstraintCalls
from actors.context import Context
from actors.decode import DecodePhase, Lease, Sequence
from actors.messages import ErrorInfo, Key
from actors.prefill import PrefillJob, PrefillPhase
from actors.turn import Slot
from runtime.constraints import Constraint
from runtime.engine import Sampled

Reject = Callable[[Context, Key, tuple[int, ...], int, ErrorInfo], None]
"""Gives choices of a group up for good, behind so many tokens of their answers."""

_BIND_S = 0.01
"""After so long no further constraint is begun in a turn; a step is in flight meanwhile."""


class ConstraintWork:
    """See the module. `waiting` are jobs and leases whose constraints are to be begun."""

    def __init__(self, calls: ConstraintCalls, prefill: PrefillPhase, decode: DecodePhase, reject: Reject) -> None:
        self._calls = calls
        self._prefill = prefill
        self._decode = decode
        self._reject = reject
        self.waiting: deque[PrefillJob | Lease] = deque()

    def add(self, held: PrefillJob | Lease) -> None:
        """Something new has come; what has no constraint waits for none."""
        if not held.is_bound:
            self.waiting.append(held)

    async def begin(self, ctx: Context) -> None:
        """Begins what waits, as much of it as there is time for."""
        until = ctx.now() + _BIND_S
        while self.waiting and ctx.now() < until:
            held = self.waiting.popleft()
            if isinstance(held, PrefillJob):
                await self._begin_job(ctx, held)
            else:
                await self._begin_lease(ctx, held)

    async def _begin_job(self, ctx: Context, job: PrefillJob) -> None:
        if self._prefill.jobs.get(job.key) is not job:
            return  # it was cancelled
        start, choices = job.start, tuple(job.choices)
        output = start.tokens[start.prompt_tokens :]
        bound = await self._calls.begin(ctx, start.params, output, choices)
        if isinstance(bound, ErrorInfo):
            self._reject(ctx, job.key, choices, len(output), bound)
        else:
            job.bound = bound

    async def _begin_lease(self, ctx: Context, lease: Lease) -> None:
        """Each choice goes on behind the token that its prefill has sampled."""
        start, key = lease.start, lease.reserve.key
        assert start is not None
        begun = dict[int, Constraint]()
        for choice, token in start.starts:
            if self._decode.leases.get(key) is not lease or choice in lease.dropped:
                continue
            output = (*start.tokens[start.prompt_tokens :], token)
            bound = await self._calls.begin(ctx, start.params, output, (choice,))
            if isinstance(bound, ErrorInfo):
                self._reject(ctx, key, (choice,), len(output), bound)
            else:
                begun |= bound.constraints
        lease.constraints = begun

    async def advance(
        self, ctx: Context, slots: Iterable[Slot], sampled: Iterable[Sampled]
    ) -> dict[Key, bool | ErrorInfo]:
        """Tells constraints what was sampled: which are complete now, and which cannot go on.

        A token that ends its choice by its id is nothing to them.
        """
        told = dict[Key, tuple[Constraint, int]]()
        for slot, result in zip(slots, sampled, strict=True):
            constraint = self._constraint_of(slot, result.token)
            if constraint is not None:
                told[slot.key] = (constraint, result.token)
        outcomes = await self._calls.advance(ctx, tuple(told.values())) if told else []
        return dict(zip(told, outcomes, strict=True))

    def _constraint_of(self, slot: Slot, token: int) -> Constraint | None:
        if slot.job is not None:
            params, bound = slot.job.start.params, slot.job.bound
            constraint = bound.constraints.get(slot.key.choice) if bound is not None else None
        else:
            sequence = self._decode.sequences.get(slot.key)
            if sequence is None:
                return None
            params, constraint = sequence.params, sequence.constraint
        return None if token in params.stop_token_ids else constraint

    async def masks(self, ctx: Context, deferred: Iterable[Sequence]) -> dict[int, bytes]:
        """Masks by row for those of the sequences that still run."""
        running = [
            (sequence, sequence.constraint)
            for sequence in deferred
            if sequence.constraint is not None and self._decode.sequences.get(sequence.key) is sequence
        ]
        masks = await self._calls.masks(ctx, [constraint for _, constraint in running]) if running else []
        found = dict[int, bytes]()
        for (sequence, _), mask in zip(running, masks, strict=True):
            if isinstance(mask, ErrorInfo):
                self._reject(ctx, sequence.group, (sequence.key.choice,), sequence.outputs - 1, mask)
            else:
                found[sequence.row] = mask
        return found
