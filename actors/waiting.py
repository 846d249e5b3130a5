"""Groups that wait for a place: who is next, what they will be leased, and by which prefix they are routed. Pure."""

import bisect

import msgspec

from actors.messages import Admit, Key
from runtime.prefix_cache import PrefixChain, chain_of


class WaitingGroups:
    """The scheduler's queue: recovered groups first, then by priority, the oldest of each first.

    What has begun is not kept from going on by anybody who has not. `max_queued` bounds the queue for newcomers.
    """

    def __init__(self, max_queued: int, decode_reserve_tokens: int, *, prefix_cache: bool) -> None:
        self._max_queued = max_queued
        self._decode_reserve_tokens = decode_reserve_tokens
        self._prefix_cache = prefix_cache
        self._head: tuple[Key, PrefixChain] | None = None
        self.queue: list[Admit] = []

    def is_full_for(self, admit: Admit) -> bool:
        """Whether there is no room for the group; recovered ones are always let in."""
        return admit.key.attempt == 1 and len(self.queue) >= self._max_queued

    def enter(self, admit: Admit) -> None:
        """Puts the group where it belongs."""
        bisect.insort(self.queue, admit, key=_rank)

    def ahead_of(self, admit: Admit) -> int:
        """Groups that would be placed before this one."""
        return bisect.bisect_left(self.queue, _rank(admit), key=_rank)

    def find(self, key: Key) -> Admit | None:
        """The group, if it waits."""
        return next((waiting for waiting in self.queue if waiting.key == key), None)

    def remove(self, key: Key, choices: tuple[int, ...]) -> None:
        """Takes choices away, and the group with its last one."""
        for index, waiting in enumerate(self.queue):
            if waiting.key == key:
                left = tuple(choice for choice in waiting.choices if choice not in choices)
                self.queue[index : index + 1] = [msgspec.structs.replace(waiting, choices=left)] if left else []
                return

    def reserve_tokens(self, admit: Admit) -> int:
        """Tokens of answer that each choice is leased room for."""
        remaining = admit.params.max_tokens - (len(admit.tokens) - admit.prompt_tokens)
        return max(1, min(remaining, self._decode_reserve_tokens))

    def prefix(self, admit: Admit, page_size: int) -> PrefixChain | None:
        """The chain of the group at the head of the queue, computed once; None without a prefix cache.

        What is cached has no logprobs, so a group whose prompt is to get some uses no cache and fills none.
        """
        if not self._prefix_cache or admit.params.prompt_logprobs is not None:
            return None
        if self._head is None or self._head[0] != admit.key:
            self._head = (admit.key, chain_of(admit.tokens, page_size, admit.cache_salt))
        return self._head[1]


def _rank(admit: Admit) -> tuple[bool, int, int, Key]:
    return (admit.key.attempt == 1, admit.priority, admit.order, admit.key)
