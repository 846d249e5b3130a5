"""What a prefill worker has sent and not heard back about: staged chunks, and groups handed over for decoding.

Both are sent again until they are acknowledged. Chunks and credits themselves are kept by the prefill phase.
"""

from actors.context import Context
from actors.messages import TRANSFER, Address, Key, MoveChunk, StartDecode
from actors.outbox import Outbox
from actors.prefill import PlannedChunk, PrefillJob, PrefillPhase
from actors.recovery import RecoveryOptions

_HAND_OVER = -1
"""Stands for the hand-over where chunks have their sequence numbers."""


class Deliveries:
    """See the module. `landing` are groups whose prompts are computed and whose first tokens are still to be read."""

    def __init__(self, address: Address, phase: PrefillPhase, recovery: RecoveryOptions) -> None:
        self._address = address
        self._phase = phase
        self._outbox = Outbox[tuple[Key, int]](recovery.resend_s, recovery.max_resends)
        self._choices: dict[Key, tuple[int, ...]] = {}
        self.landing: set[Key] = set()

    @property
    def groups(self) -> set[Key]:
        """Everything of which something is under way."""
        staged = {key for key, _ in self._phase.staged}
        return staged | self.landing | {key for key, number in self._outbox.waiting if number == _HAND_OVER}

    def next_due(self) -> float | None:
        """When something is to be sent again."""
        return self._outbox.next_due()

    def move(self, ctx: Context, planned: PlannedChunk, handle: int) -> None:
        """Stages a gathered chunk and has it moved."""
        job = planned.job
        sequence = self._phase.stage(planned, handle)
        assert planned.send is not None
        move = MoveChunk(
            key=job.key,
            sequence=sequence,
            token_start=planned.send[0],
            token_end=planned.send[1],
            handle=handle,
            sender=self._address,
            target=job.start.decode,
            deadline=job.start.deadline,
        )
        self._outbox.add((job.key, sequence), TRANSFER, move, ctx.now())
        ctx.post(TRANSFER, move)

    def hand_over(self, ctx: Context, job: PrefillJob, starts: tuple[tuple[int, int], ...]) -> None:
        """Tells the decode worker to begin; `starts` pairs choices with their first tokens."""
        start = job.start
        message = StartDecode(
            key=job.key,
            order=start.order,
            starts=starts,
            tokens=start.tokens,
            prompt_tokens=start.prompt_tokens,
            params=start.params,
            sender=self._address,
            deadline=start.deadline,
        )
        self.landing.discard(job.key)
        self._choices[job.key] = tuple(choice for choice, _ in starts)
        self._outbox.add((job.key, _HAND_OVER), start.decode, message, ctx.now())
        ctx.post(start.decode, message)

    def acked(self, ctx: Context, key: Key, sequence: int) -> None:
        """The chunk has arrived: its memory and its credit are free again."""
        self._outbox.remove((key, sequence))
        staged = self._phase.unstage(key, sequence)
        if staged is not None:
            ctx.arrays.drop(staged.handle)

    def start_acked(self, key: Key) -> None:
        """The decode worker has been told."""
        self._outbox.remove((key, _HAND_OVER))
        self._choices.pop(key, None)

    def lost(self, ctx: Context, key: Key, sequence: int) -> None:
        """The chunk did not arrive: it is sent again at once."""
        self._outbox.failed((key, sequence), ctx.now())

    def resend(self, ctx: Context) -> list[tuple[Key, tuple[int, ...]]]:
        """Sends again what is due; returns groups to give up, with the choices that waited for something."""
        again, given_up = self._outbox.take_due(ctx.now())
        for sent in again:
            if sent.name[1] == _HAND_OVER or sent.name in self._phase.staged:
                ctx.post(sent.to, sent.message)
            else:
                self._outbox.remove(sent.name)
        groups = dict[Key, tuple[int, ...]]()
        for key, number in [sent.name for sent in given_up]:
            staged = self._phase.staged.get((key, number))
            choices = self._choices.get(key, ()) if staged is None else staged.choices
            groups[key] = tuple(sorted({*groups.get(key, ()), *choices}))
        return list(groups.items())

    def forget(self, ctx: Context, key: Key) -> None:
        """Nobody wants anything of the group any more."""
        for staged_key, sequence in list(self._phase.staged):
            if staged_key == key:
                self.acked(ctx, key, sequence)
        self.start_acked(key)

    def forget_decode(self, ctx: Context, decode: Address, epoch: int) -> None:
        """A life of the decode worker has ended: it will acknowledge nothing."""
        self._phase.forget_decode(decode, epoch, ctx.arrays.drop)

    def drop_all(self, ctx: Context) -> None:
        """This worker ends."""
        for staged in self._phase.staged.values():
            ctx.arrays.drop(staged.handle)
