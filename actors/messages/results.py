"""What workers tell the gateway of the groups that they serve."""

import msgspec

from actors.messages.base import Address, ErrorInfo, FinishReason, Key, Message, TokenRecord


class PrefillStarted(Message, frozen=True, kw_only=True):
    """The first chunk of the group was dispatched, at `at`; `cached_tokens` of its tokens were found cached.

    `decode` is the worker that will decode it.
    """

    worker: Address
    key: Key
    cached_tokens: int
    decode: Address
    at: float


class DecodeStarted(Message, frozen=True, kw_only=True):
    """The first decode step of these choices was dispatched, at `at`; the last KV chunk has lain there since `kv_at`.

    `kv_at` is 0 where no chunk had to come. A mixed worker, to which the first token is a step like any other, sends
    none.
    """

    worker: Address
    key: Key
    choices: tuple[int, ...]
    kv_at: float
    at: float


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """One token of one choice at its output index; `finish` tells that the worker ended the choice with it."""

    key: Key
    index: int
    record: TokenRecord
    finish: FinishReason | None = None


class TokensSampled(Message, frozen=True, kw_only=True):
    """All tokens of one step of one worker.

    `cached` repeats what `PrefillStarted` told of the groups whose prefill this step has ended; `prompt_logprobs` are
    those of whole prompts that it has ended.
    """

    worker: Address
    tokens: tuple[SampledToken, ...]
    cached: tuple[tuple[Key, int], ...] = ()
    prompt_logprobs: tuple[tuple[Key, tuple[TokenRecord, ...]], ...] = ()


class Preempted(Message, frozen=True, kw_only=True):
    """The worker gave these choices up; the gateway starts a new attempt for each from what it has accepted."""

    worker: Address
    key: Key
    choices: tuple[int, ...]
    reason: str


class Rejected(Message, frozen=True, kw_only=True):
    """The worker cannot go on with these choices behind their first `index` tokens, and no other one could."""

    worker: Address
    key: Key
    choices: tuple[int, ...]
    index: int
    error: ErrorInfo
