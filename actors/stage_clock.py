"""Where a choice's time goes: stages between its arrival at the gateway and its last token, owned by the gateway.

    queue     until the first chunk of its prompt was dispatched
    prefill   until its first token
    transfer  until all of its KV lay on the decode slice
    handoff   until the step that decodes it first was dispatched
    decode    until its last token

Marks may come in any order, for they come from several actors: a decode worker's may overtake the prefill worker's
first token. So nothing is added up before an attempt ends, and then each stage begins where the one before it ended at
the earliest. KV that arrives while the prompt is still computed therefore makes no transfer. Stages are never negative,
and those of all attempts add up to the whole time. Times are seconds on the carrier's clock, in steps of 2**-20 s: such
floats are added without rounding, in whatever order a reader adds them.
"""

import msgspec

_STEPS_PER_S = 2**20


class StageTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One choice's stages, seconds, over all attempts; the workers are the last attempt's, None where it never got."""

    queue_s: float
    prefill_s: float
    transfer_s: float
    handoff_s: float
    decode_s: float
    attempts: int
    prefill_worker: str | None
    decode_worker: str | None

    @property
    def total_s(self) -> float:
        """From the arrival at the gateway to the last token."""
        return self.queue_s + self.prefill_s + self.transfer_s + self.handoff_s + self.decode_s


class StageClock:
    """One choice's clock. The caller sees to it that marks are of the current attempt."""

    def __init__(self, now: float) -> None:
        self._sums = [0] * 5
        self._attempts = 0
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._attempts += 1
        self._began = now
        self._prefill_at: float | None = None
        self._first_at: float | None = None
        self._kv_at: float | None = None
        self._decode_at: float | None = None
        self._local = False
        self._prefill_worker: str | None = None
        self._decode_worker: str | None = None

    def prefill_started(self, worker: str, at: float, *, local: bool) -> None:
        """The first chunk was dispatched. A `local` choice is decoded where it was prefilled: nothing travels."""
        self._prefill_worker, self._prefill_at, self._local = worker, at, local

    def decode_started(self, worker: str, kv_at: float, at: float) -> None:
        """The first decode step was dispatched; the last of the KV has lain there since `kv_at`."""
        self._decode_worker, self._kv_at, self._decode_at = worker, kv_at, at

    def token(self, at: float, *, last: bool) -> None:
        """A token was accepted; `last` ends the choice."""
        if self._first_at is None:
            self._first_at = at
            if self._local and not last:
                self._decode_worker = self._prefill_worker
        if last:
            self._add_up(at)

    def give_up(self, now: float) -> None:
        """The attempt has ended without an answer: the choice queues again."""
        self._add_up(now)
        self._begin(now)

    def times(self) -> StageTimes:
        """The stages of all attempts that have ended."""
        queue_s, prefill_s, transfer_s, handoff_s, decode_s = (steps / _STEPS_PER_S for steps in self._sums)
        return StageTimes(
            queue_s=queue_s,
            prefill_s=prefill_s,
            transfer_s=transfer_s,
            handoff_s=handoff_s,
            decode_s=decode_s,
            attempts=self._attempts,
            prefill_worker=self._prefill_worker,
            decode_worker=self._decode_worker,
        )

    def _add_up(self, end: float) -> None:
        """Adds the attempt's stages to the sums. A mark that is missing means that its stage lasted to the end."""
        first_at = self._first_at
        kv_at, decode_at = (first_at, first_at) if self._local else (self._kv_at, self._decode_at)
        begin, end = self._began, max(self._began, end)
        for stage, mark in enumerate((self._prefill_at, first_at, kv_at, decode_at, end)):
            until = end if mark is None else min(max(mark, begin), end)
            self._sums[stage] += _steps(until) - _steps(begin)
            begin = until


def _steps(time_s: float) -> int:
    return round(time_s * _STEPS_PER_S)
