"""The ledger: which token of which choice has been accepted, under which attempt. Owned by the gateway alone.

Nothing reaches a client that was not accepted here as exactly the next index of the current attempt. A token ahead of a
gap is parked; a stale or repeated one is dropped. Text, stop strings and everything else that a client sees is derived
from accepted tokens. The ledger decides nothing about placement and sends nothing.
"""

from collections.abc import Iterator
from typing import Protocol

from actors.messages import FinishReason, Key, SampledToken, Submit, TokenRecord
from actors.stage_clock import StageClock

MAX_PARKED_TOKENS = 64
"""Most tokens of one choice that wait behind a gap; more means that the gap will not close."""


class TextStream(Protocol):
    """Detokenizer and stop scanner of one choice."""

    def push(self, token: int) -> tuple[str, str | None]:
        """Text that the token releases, and the stop string that it completes, if any."""
        ...

    def end(self, token: int) -> str:
        """Text that is left once the token has stopped the choice by its id."""
        ...

    def finish(self) -> str:
        """Text that was still held back."""
        ...


class ChoiceRecord:
    """One choice: its attempt, its accepted tokens and how it ended.

    `group` is the key under which its current attempt was admitted; a recovered choice is a group of its own. `clock`
    tells where the time since its arrival went.
    """

    def __init__(self, request: str, choice: int, group: Key, text: TextStream, now: float) -> None:
        self.request = request
        self.choice = choice
        self.group = group
        self.text = text
        self.clock = StageClock(now)
        self.accepted: list[TokenRecord] = []
        self.parked: dict[int, SampledToken] = {}
        self.finish: FinishReason | None = None

    @property
    def attempt(self) -> int:
        """The current attempt; tokens of others are stale."""
        return self.group.attempt

    @property
    def is_stuck(self) -> bool:
        """Whether so many tokens wait behind a gap that it will not close: the attempt has to be given up."""
        return len(self.parked) >= MAX_PARKED_TOKENS

    def accept(self, sampled: SampledToken) -> Iterator[SampledToken]:
        """Yields the tokens that become acceptable with this one, in order; the caller records each."""
        expected = len(self.accepted)
        if self.finish is not None or sampled.key.attempt != self.attempt or sampled.index < expected:
            return
        if sampled.index > expected:
            if not self.is_stuck:
                self.parked[sampled.index] = sampled
            return
        following: SampledToken | None = sampled
        while following is not None and self.finish is None:
            self.accepted.append(following.record)
            yield following
            following = self.parked.pop(len(self.accepted), None)

    def end(self, finish: FinishReason) -> None:
        """Closes the choice; later tokens are dropped."""
        self.finish = finish
        self.parked.clear()

    def raise_attempt(self, now: float) -> Key:
        """Freezes the accepted prefix under a new attempt, in which the choice stands alone."""
        self.group = Key(self.request, self.choice, self.attempt + 1)
        self.parked.clear()
        self.clock.give_up(now)
        return self.group


class RequestRecord:
    """One request from its submission to its terminal record. `order` is its age among all requests.

    `prompt_logprobs` are there, if wanted, once a first token is.
    """

    def __init__(self, submit: Submit, order: int, now: float, choices: tuple[ChoiceRecord, ...]) -> None:
        self.submit = submit
        self.order = order
        self.choices = choices
        self.submitted = now
        self.progressed = now
        self.cached_tokens: int | None = None
        self.prompt_logprobs: tuple[TokenRecord, ...] = ()

    @property
    def started(self) -> bool:
        """Whether a token was accepted."""
        return any(choice.accepted for choice in self.choices)

    @property
    def deadline(self) -> float:
        """When the request fails for want of its first token, of another one, or of its end."""
        submit = self.submit
        next_token = (
            self.progressed + submit.progress_timeout_s if self.started else self.submitted + submit.queue_timeout_s
        )
        return next_token if submit.timeout_s is None else min(next_token, self.submitted + submit.timeout_s)

    def look_at(self, now: float) -> float:
        """No deadline that the request has or can get from now on is earlier than this."""
        return min(self.deadline, now + self.submit.progress_timeout_s)

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish is not None for choice in self.choices)

    def running(self, group: Key) -> Iterator[ChoiceRecord]:
        """The unfinished choices whose current attempt is this group's."""
        return (choice for choice in self.choices if choice.group == group and choice.finish is None)

    @property
    def completion_tokens(self) -> int:
        """Accepted tokens of all choices."""
        return sum(len(choice.accepted) for choice in self.choices)

    def open_groups(self) -> dict[Key, tuple[int, ...]]:
        """The unfinished choices by the group that runs them."""
        groups: dict[Key, tuple[int, ...]] = {}
        for choice in self.choices:
            if choice.finish is None:
                groups[choice.group] = (*groups.get(choice.group, ()), choice.choice)
        return groups


class Ledger:
    """All requests in flight, oldest first."""

    def __init__(self) -> None:
        self.requests: dict[str, RequestRecord] = {}
        self._next_order = 0

    def open(self, submit: Submit, now: float, texts: tuple[TextStream, ...]) -> RequestRecord:
        """Enters a request; its choices begin as one group under attempt 1."""
        assert submit.request not in self.requests, submit.request
        group = Key(submit.request, 0, 1)
        choices = tuple(ChoiceRecord(submit.request, i, group, text, now) for i, text in enumerate(texts))
        record = RequestRecord(submit, self._next_order, now, choices)
        self._next_order += 1
        self.requests[submit.request] = record
        return record

    def close(self, request: str) -> RequestRecord:
        """Removes the request: its terminal record has been written."""
        return self.requests.pop(request)
