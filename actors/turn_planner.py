"""What a worker's next turn does: the phases' plans put together. Pure planning over the worker's own state."""

from collections.abc import Sequence as SequenceOf

from actors.decode import DecodePhase, Insert, Lease, Sequence
from actors.messages import Key
from actors.prefill import PlannedChunk, PrefillJob, PrefillPhase
from actors.turn import Slot, Turn
from runtime.engine import EngineSpec, PrefillSegment, RowState, Step
from runtime.topology import Role

Preemption = tuple[Key, tuple[int, ...]]
"""A group and those of its choices that were given up."""


class TurnPlanner:
    """Plans turns of one worker; `free_rows` is the worker's list, from which prefill borrows rows to sample with."""

    def __init__(
        self, spec: EngineSpec, role: Role, prefill: PrefillPhase, decode: DecodePhase, free_rows: list[int]
    ) -> None:
        self._spec = spec
        self._role = role
        self._prefill = prefill
        self._decode = decode
        self._free_rows = free_rows

    def plan(self, inserts: list[Insert], fence: int) -> tuple[Turn | None, list[Preemption]]:
        """The next turn (None when there is nothing to enqueue) and whom the pool gave up to make room.

        `inserts` have arrived and go first; pages given up while planning are quarantined until turn `fence`.
        """
        rows = self._decode.begin_covered(fence) if self._role != "prefill" else []
        sequences, table, victims = self._decode.plan(fence)
        preempted = [self._preempted(victim, fence) for victim in victims]
        chunks = self._prefill.plan() if self._role != "decode" else ()
        turn = Turn(
            inserts=inserts, rows=rows, chunks=(), step=None, slots=(), begun=[], deferred=(), gathers=[], copies=[]
        )
        segments, slots = self._plan_chunks(turn, chunks, fence)
        for sequence in sequences:
            slots.append(Slot(sequence.key, self._decode.dispatched(sequence), None))
            if sequence.kv_at is not None:
                turn.begun.append(sequence)
        if segments or sequences:
            turn.deferred = tuple(sequence for sequence in sequences if sequence.constraint is not None)
            turn.step = Step(
                prefill=tuple(segments),
                decode=tuple(sequence.row for sequence in sequences),
                table=tuple(table),
                deferred=bool(turn.deferred),
            )
        turn.slots = tuple(slots)
        has_work = turn.step is not None or inserts or turn.rows or turn.gathers
        return (turn if has_work else None), preempted

    def _preempted(self, victim: Lease | Sequence, fence: int) -> Preemption:
        """Names the victim's choices; a local prefill that was filling a lease ends with it."""
        if not isinstance(victim, Lease):
            return victim.group, (victim.key.choice,)
        key = victim.reserve.key
        job = self._prefill.jobs.get(key)
        if job is not None:
            self._prefill.end(job, fence)
        return key, tuple(choice for choice in victim.reserve.choices if choice not in victim.dropped)

    def _plan_chunks(
        self, turn: Turn, chunks: SequenceOf[PlannedChunk], fence: int
    ) -> tuple[list[PrefillSegment], list[Slot]]:
        segments, slots, kept = list[PrefillSegment](), list[Slot](), list[PlannedChunk]()
        for chunk in chunks:
            job = chunk.job
            sample_rows: tuple[int, ...] = ()
            if chunk.last:
                rows = self._sample_rows(job, fence)
                if rows is None:
                    continue
                turn.rows += rows
                sample_rows = tuple(row.row for row in rows)
                index = len(job.start.tokens) - job.start.prompt_tokens
                remote = None if job.local else job
                slots += [Slot(job.key.sibling(row.choice), index, remote) for row in rows]
            kept.append(chunk)
            if chunk.begin < chunk.end:
                segments.append(self._segment(chunk, sample_rows))
            self._plan_moves(turn, chunk)
            self._prefill.dispatched(chunk)
        turn.chunks = tuple(kept)
        return segments, slots

    def _segment(self, chunk: PlannedChunk, sample_rows: tuple[int, ...]) -> PrefillSegment:
        job, tokens = chunk.job, chunk.job.start.tokens
        return PrefillSegment(
            tokens=tokens[chunk.begin : chunk.end],
            start=chunk.begin,
            pages=job.pages[: self._spec.pages_for(chunk.end)],
            sample_rows=sample_rows,
            score=job.score,
            next_token=tokens[chunk.end] if job.score is not None and not chunk.last else None,
        )

    def _plan_moves(self, turn: Turn, chunk: PlannedChunk) -> None:
        """What leaves after the chunk's forward: pages for transfer, or tail copies for a local group's siblings."""
        job, page = chunk.job, self._spec.page_size
        if chunk.send is not None:
            begin, end = chunk.send
            turn.gathers.append((chunk, job.pages[begin // page : self._spec.pages_for(end)]))
        elif chunk.last and job.local and len(job.start.tokens) % page:
            column = len(job.start.tokens) // page
            keys = [job.key.sibling(choice) for choice in job.choices]
            tails = tuple(self._decode.sequences[key].pages[column] for key in keys)
            targets = tuple(tail for tail in tails if tail != job.pages[column])
            if targets:
                turn.copies.append((job.pages[column], targets))

    def _sample_rows(self, job: PrefillJob, fence: int) -> list[RowState] | None:
        """Row state for the tokens that the job's last chunk samples; None when rows are short this turn."""
        start = job.start
        if job.local:
            lease = self._decode.leases[job.key]
            return self._decode.begin_local(lease, job.choices, start.tokens, start.params, job.bound, fence)
        if len(self._free_rows) < len(job.choices):
            return None
        return [
            RowState(
                row=self._free_rows.pop(),
                sampling=start.params,
                choice=choice,
                prompt=start.tokens[: start.prompt_tokens],
                output=start.tokens[start.prompt_tokens :],
                pages=(),
                length=0,
                last_token=0,
                mask=job.bound.mask if job.bound is not None else None,
            )
            for choice in job.choices
        ]
