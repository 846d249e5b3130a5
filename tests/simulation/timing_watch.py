"""Watches that stage times say what happened: the same stages, taken from when messages were sent.

The stages of every choice that completes must add up to the time from its admission to its last token. One that had a
single attempt is compared stage by stage.
"""

from collections import Counter
from collections.abc import Callable

from actors.messages import (
    Address,
    Admit,
    Completed,
    DecodeStarted,
    Delta,
    Key,
    KvChunkReady,
    Message,
    PrefillStarted,
    StartPrefill,
)
from actors.stage_clock import StageTimes

Choice = tuple[str, int]

_ROUNDING_S = 2.0**-19
"""An attempt's stages are whole steps of half of this."""


class TimingWatch:
    """One run's moments, each the first of its kind unless it says otherwise.

    `exact` is for runs in which no message is lost or repeated: a mark that is lost moves the stage's border.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.exact = True
        self._now = now
        self._admitted: dict[str, float] = {}
        self._groups: dict[Choice, Key] = {}
        self._placed: dict[Key, tuple[Address, Address]] = {}
        self._prefilled: dict[Key, float] = {}
        self._last_chunk: dict[Key, float] = {}
        self._chunks: set[tuple[Key, int]] = set()
        self._decoded: dict[tuple[Key, int], float] = {}
        self._first: dict[Choice, float] = {}
        self._last: dict[Choice, float] = {}
        self._tokens: Counter[Key] = Counter()

    def observe(self, source: Address, target: Address, message: Message) -> None:
        """Raises AssertionError when a completed request's stage times are wrong."""
        now = self._now()
        match message:
            case Admit():
                self._admitted.setdefault(message.key.request, now)
                self._groups.update(((message.key.request, choice), message.key) for choice in message.choices)
            case StartPrefill():
                self._placed[message.key] = (target, message.decode)
            case PrefillStarted():
                assert not self.exact or message.key not in self._prefilled, f"a second start: {message}"
                self._prefilled[message.key] = now
            case KvChunkReady():
                if (message.key, message.sequence) not in self._chunks:  # else it was moved once more
                    self._last_chunk[message.key] = now
                self._chunks.add((message.key, message.sequence))
            case DecodeStarted():
                for choice in message.choices:
                    assert not self.exact or (message.key, choice) not in self._decoded, f"a second start: {message}"
                    self._decoded[message.key, choice] = now
            case Delta():
                self._first.setdefault((message.request, message.choice), now)
                self._last[message.request, message.choice] = now
                self._tokens[self._groups[message.request, message.choice].sibling(message.choice)] += 1
            case Completed():
                for choice, times in enumerate(message.timings):
                    self._check((message.request, choice), times)

    def _check(self, choice: Choice, times: StageTimes) -> None:
        stages = (times.queue_s, times.prefill_s, times.transfer_s, times.handoff_s, times.decode_s)
        assert min(stages) >= 0.0, f"{choice} has a negative stage: {times}"
        assert times.total_s == sum(stages), f"{choice}: {times.total_s} is not the sum of {times}"
        whole_s = self._last[choice] - self._admitted[choice[0]]
        assert abs(times.total_s - whole_s) < _ROUNDING_S, f"{choice} took {whole_s} s, not {times.total_s}: {times}"
        group = self._groups[choice]
        assert times.attempts == group.attempt, f"{choice} had {group.attempt} attempts: {times}"
        if not self.exact:
            return
        prefill, decode = self._placed[group]
        assert times.prefill_worker == prefill, f"{choice} was prefilled on {prefill}: {times}"
        decoded = self._tokens[group.sibling(choice[1])] > 1
        assert times.decode_worker in ((decode,) if decoded else (decode, None)), f"{choice} went to {decode}: {times}"
        if group.attempt == 1:
            told = self._stages(choice, local=prefill == decode)
            wrong = [(mine, its) for mine, its in zip(told, stages, strict=True) if abs(mine - its) > _ROUNDING_S]
            assert not wrong, f"{choice} spent {told}, not {stages}"

    def _stages(self, choice: Choice, *, local: bool) -> tuple[float, ...]:
        """The stages of a choice with one attempt."""
        group, first, last = self._groups[choice], self._first[choice], self._last[choice]
        covered = begun = first
        if not local and last > first:
            covered = min(max(first, self._last_chunk[group]), last)
            begun = min(max(covered, self._decoded[group, choice[1]]), last)
        moments = (self._admitted[choice[0]], self._prefilled[group], first, covered, begun, last)
        return tuple(later - earlier for earlier, later in zip(moments[:-1], moments[1:], strict=True))
