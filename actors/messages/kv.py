"""How a group gets from its prefill worker to its decode worker: chunks of KV, and the hand-over."""

from actors.messages.base import Address, Key, Message
from runtime.sampling_params import SamplingParams


class MoveChunk(Message, frozen=True, kw_only=True):
    """Move a staged chunk to the decode worker's slice. It stays the sender's until the decode worker acknowledges.

    `checksums` are the chunk's, where they are to be compared behind the move.
    """

    key: Key
    sequence: int
    token_start: int
    token_end: int
    handle: int
    sender: Address
    target: Address
    deadline: float
    checksums: tuple[int, ...] | None = None


class KvChunkReady(Message, frozen=True, kw_only=True):
    """The chunk lies on the decode worker's slice, since `moved_at`, under `handle`, which the receiver now owns."""

    key: Key
    sequence: int
    token_start: int
    token_end: int
    handle: int
    sender: Address
    moved_at: float
    checksums: tuple[int, ...] | None = None


class ChunkAcked(Message, frozen=True, kw_only=True):
    """The chunk was inserted, or is not wanted any more: its staging credit is the sender's again."""

    key: Key
    sequence: int
    worker: Address


class ChunkLost(Message, frozen=True, kw_only=True):
    """The transfer failed; the staged chunk is still the sender's."""

    key: Key
    sequence: int
    worker: Address
    reason: str


class StartDecode(Message, frozen=True, kw_only=True):
    """Decode these choices from their first tokens once KV for `num_tokens` tokens is covered.

    `tokens` is what was prefilled (prompt, then accepted tokens); `starts` pairs each choice that goes on with the
    token that prefill sampled. Choices of the group that are missing here have ended: their part of the lease goes.
    """

    key: Key
    order: int
    starts: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    prompt_tokens: int
    params: SamplingParams
    sender: Address
    deadline: float


class StartAcked(Message, frozen=True, kw_only=True):
    """The decode worker has the `StartDecode`, or nobody wants the group any more: it need not be sent again."""

    key: Key
    worker: Address
