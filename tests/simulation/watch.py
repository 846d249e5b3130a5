"""Watches the messages of a run for rules that no answer shows, because stale tokens equal fresh ones here.

A worker that was given up may still report tokens. The fake sampler gives every attempt the same tokens, so a ledger
that took them would go unnoticed by its clients. This watcher knows the current attempt of each choice from what the
gateway itself admits, and demands that each delivered token was sampled under that attempt. It also demands that work
nobody wants any more ends at once instead of running to its natural end.
"""

from collections.abc import Callable

from actors.messages import (
    Address,
    Admit,
    Completed,
    Delta,
    Disconnect,
    Failed,
    Key,
    Message,
    MoveChunk,
    PrefillStarted,
    PrefixesChanged,
    Reserve,
    Reserved,
    StartPrefill,
    TokensSampled,
)

Choice = tuple[str, int]

_PLACED_S = 0.35
"""Longest way of an abort to the scheduler through the slowest links."""

_SAMPLED_S = 0.8
"""Longest way of an abort to the workers, and the steps in flight when it arrives."""


class AttemptWatch:
    """One run's attempts: `sampled` holds (choice, attempt, index) of every token that a worker reported.

    `slack_s` is how much longer than in an undisturbed run unwanted work may go on; until `forgiven_until()` it may.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.slack_s = 0.0
        self.forgiven_until: Callable[[], float] = lambda: 0.0
        self._now = now
        self._unwanted: dict[Choice, float] = {}
        self._left: dict[str, float] = {}
        self._attempts: dict[Choice, int] = {}
        self._delivered: dict[Choice, int] = {}
        self._sampled: set[tuple[Choice, int, int]] = set()
        self._ended: set[str] = set()
        self._prefilled: set[Key] = set()

    def observe(self, source: Address, target: Address, message: Message) -> None:
        """Raises AssertionError when the gateway delivers what it must not."""
        match message:
            case Admit():
                for choice in message.choices:
                    self._admitted((message.key.request, choice), message)
            case Reserve() | StartPrefill():
                for choice in message.choices:
                    self._check_wanted((message.key.request, choice), _PLACED_S)
            case TokensSampled():
                for token in message.tokens:
                    whose = (token.key.request, token.key.choice)
                    self._sampled.add((whose, token.key.attempt, token.index))
                    self._check_wanted(whose, _SAMPLED_S)
            case PrefillStarted():
                assert message.key not in self._prefilled, f"{message.key} is prefilled twice"
                self._prefilled.add(message.key)
            case Disconnect():
                self._left[message.request] = self._now()
            case Delta():
                self._deliver(message)
            case Completed() | Failed():
                assert message.request not in self._ended, f"a second terminal record: {message}"
                self._ended.add(message.request)
                if isinstance(message, Failed):
                    self._left[message.request] = self._now()

    def _admitted(self, choice: Choice, admit: Admit) -> None:
        last, attempt = self._attempts.get(choice, 0), admit.key.attempt
        assert attempt == last + 1, f"choice {choice} goes from attempt {last} to {attempt}"
        accepted = len(admit.tokens) - admit.prompt_tokens
        delivered = self._delivered.get(choice, 0)
        assert accepted == delivered, f"attempt {attempt} of {choice} brings {accepted} tokens, not {delivered}"
        self._attempts[choice] = attempt

    def _deliver(self, delta: Delta) -> None:
        choice = (delta.request, delta.choice)
        assert delta.request not in self._ended, f"a delta behind the terminal record: {delta}"
        for _ in delta.tokens:
            index, attempt = self._delivered.get(choice, 0), self._attempts[choice]
            assert (choice, attempt, index) in self._sampled, f"{choice} token {index} is not of attempt {attempt}"
            self._delivered[choice] = index + 1
        if isinstance(delta.stop_match, str):
            self._unwanted[choice] = self._now()

    def _check_wanted(self, choice: Choice, within_s: float) -> None:
        ended = min(self._unwanted.get(choice, float("inf")), self._left.get(choice[0], float("inf")))
        assert self._now() <= max(ended + within_s + self.slack_s, self.forgiven_until()), (
            f"{choice} is still served {self._now() - ended:.2f} s after its end"
        )


class ReuseWatch:
    """Watches that no page travels which the decode side has, and none twice; counts what the prefix caches do."""

    def __init__(self) -> None:
        self.cached_tokens = 0
        self.moved_tokens = 0
        self.evicted_pages = 0
        self._prompts: dict[Key, int] = {}
        self._arrived: dict[Key, int] = {}
        self._moved: set[tuple[Key, int]] = set()

    def observe(self, source: Address, target: Address, message: Message) -> None:
        """Raises AssertionError when a chunk does not begin where the one before it ended."""
        match message:
            case Reserve():
                self._prompts[message.key] = message.num_tokens
            case Reserved():
                assert message.cached_tokens < self._prompts[message.key], f"nothing is left to compute: {message}"
                self._arrived.setdefault(message.key, message.cached_tokens)
            case MoveChunk():
                if (message.key, message.sequence) in self._moved:
                    return  # sent again
                self._moved.add((message.key, message.sequence))
                known = self._arrived[message.key]
                assert message.token_start == known, f"{message} although the decode side has {known} tokens"
                self._arrived[message.key] = message.token_end
                self.moved_tokens += message.token_end - message.token_start
            case PrefillStarted():
                assert message.cached_tokens < self._prompts[message.key], message
                self.cached_tokens += message.cached_tokens
            case PrefixesChanged():
                self.evicted_pages += len(message.removed)
