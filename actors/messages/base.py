"""What every message is made of: addresses, keys, records of tokens and errors."""

from typing import Literal, NewType

import msgspec

Address = NewType("Address", str)
"""Name of an inbox: `gateway`, `scheduler`, `transfer`, `prefill.0`, `decode.1`, `mixed.0`, `client/ID`."""

GATEWAY = Address("gateway")
SCHEDULER = Address("scheduler")
TRANSFER = Address("transfer")

FinishReason = Literal["stop", "length"]
WorkerState = Literal["up", "down", "lost", "draining", "drained"]
MailboxClass = Literal["control", "cancel", "token", "work"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Root of all messages."""


class Key(msgspec.Struct, frozen=True, order=True, array_like=True):
    """One attempt at one choice of one request. A group of choices that share a prefill is known by its first one."""

    request: str
    choice: int
    attempt: int

    def sibling(self, choice: int) -> "Key":
        """The same attempt's key of another choice in the group."""
        return Key(self.request, choice, self.attempt)


class Held(msgspec.Struct, frozen=True, array_like=True):
    """Choices of a group that somebody has."""

    key: Key
    choices: tuple[int, ...]


class TokenRecord(msgspec.Struct, frozen=True, array_like=True):
    """One accepted token with its logprob record; `top` is (token id, logprob), best first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A failure as the HTTP edge will tell it. `retry_after_s` goes with 429 and 503."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: int | None = None
