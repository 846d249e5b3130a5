"""Every message that actors exchange: frozen, tagged structs, one union per inbox.

Commands are imperatives (`StartPrefill`), events past tense (`PrefillFinished`). A message about a request carries its
`Key` and a deadline or answers one that did. Bulk arrays never ride in a message: `handle` names an entry of the
carrier's array table. Times are seconds on the carrier's clock.
"""

from typing import Literal, NewType

import msgspec

from actors.stage_clock import StageTimes
from runtime.prefix_cache import Digest, PrefixChain
from runtime.sampling_params import SamplingParams
from runtime.text_stream import TextOptions
from runtime.topology import Role

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


# --- client -> gateway


class Submit(Message, frozen=True, kw_only=True):
    """A validated request. All its events go to `client`; exactly one of them is terminal.

    Only requests with the same `cache_salt` share cached prefixes. The smaller its `priority`, the sooner it is placed.
    `timeout_s` bounds its whole time.
    """

    request: str
    client: Address
    prompt: tuple[int, ...]
    params: SamplingParams
    num_choices: int
    text: TextOptions = TextOptions()
    cache_salt: str | None = None
    priority: int = 0
    queue_timeout_s: float
    progress_timeout_s: float
    timeout_s: float | None = None


class Disconnect(Message, frozen=True, kw_only=True):
    """The client is gone: everything of the request is aborted, nothing more is sent to it."""

    request: str


class Drain(Message, frozen=True, kw_only=True):
    """Refuse new requests from now on; `Drained` goes to `reply_to` once none is left."""

    reply_to: Address


# --- gateway -> client


class Delta(Message, frozen=True, kw_only=True):
    """New accepted tokens of one choice and the text they release.

    Text is held back while it could be the beginning of a stop string or of an incomplete character, so a delta may
    carry tokens and no text. The delta with `finish` is the choice's last; `stop_match` names the matched stop string
    or token id. A choice's first delta brings the logprobs of the prompt behind its first token, if they were wanted.
    """

    request: str
    choice: int
    text: str
    tokens: tuple[TokenRecord, ...]
    finish: FinishReason | None = None
    stop_match: str | int | None = None
    prompt_logprobs: tuple[TokenRecord, ...] = ()


class Completed(Message, frozen=True, kw_only=True):
    """Terminal: every choice has finished. `completion_tokens` sums the choices, `timings` has one entry for each."""

    request: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    timings: tuple[StageTimes, ...]


class Failed(Message, frozen=True, kw_only=True):
    """Terminal: the request was refused or could not be finished."""

    request: str
    error: ErrorInfo


class Drained(Message, frozen=True, kw_only=True):
    """No request is left."""


# --- gateway <-> scheduler


class Admit(Message, frozen=True, kw_only=True):
    """Place a group of choices. `order` is the request's age: smaller is older and survives longer.

    The smaller its `priority`, the sooner it is placed. `tokens` is what to prefill: the prompt, and for a recovered
    choice its accepted tokens behind it; `prompt_tokens` tells where the prompt ends. `start_by` is when the first
    token has to be there; None for a group that is admitted again.
    """

    key: Key
    choices: tuple[int, ...]
    order: int
    tokens: tuple[int, ...]
    prompt_tokens: int
    params: SamplingParams
    cache_salt: str | None = None
    priority: int = 0
    start_by: float | None = None
    deadline: float


class Refused(Message, frozen=True, kw_only=True):
    """The scheduler will not place the group."""

    key: Key
    error: ErrorInfo


class AbortGroup(Message, frozen=True, kw_only=True):
    """Drop these choices of this attempt wherever they are. With `again` another attempt at them follows."""

    key: Key
    choices: tuple[int, ...]
    deadline: float
    again: bool = False


class SchedulerReport(Message, frozen=True, kw_only=True):
    """All groups that the scheduler has, queued or granted, told again and again.

    Workers in `draining` get nothing new; of these, those in `drained` hold nothing any more. `reads` counts how often
    it has found its inbox empty: what it does not have after that has not reached it.
    """

    held: tuple[Held, ...]
    reads: int
    draining: tuple[Address, ...] = ()
    drained: tuple[Address, ...] = ()


# --- scheduler <-> workers


class Reserve(Message, frozen=True, kw_only=True):
    """Lease pages and rows for a group: its prompt's pages once, a tail and `reserve_tokens` more for each choice.

    Pages of `prefix` that the worker has cached are pinned instead of leased anew; None uses and fills no cache. It is
    for the worker's life `epoch` alone.
    """

    epoch: int
    key: Key
    choices: tuple[int, ...]
    order: int
    num_tokens: int
    prompt_tokens: int
    reserve_tokens: int
    prefix: PrefixChain | None = None
    deadline: float


class Inventory(Message, frozen=True, kw_only=True):
    """A worker's own page and row accounting: the truth that the scheduler's view is rebuilt from.

    `epoch` counts the worker's lives and `version` its inventories within one: what is older than the newest is not
    news. `available_pages` are those that a lease could take: free ones, and cached ones that nobody uses.
    """

    worker: Address
    epoch: int
    version: int
    available_pages: int
    free_rows: int
    num_groups: int
    queued_prefill_tokens: int


class PrefixesChanged(Message, frozen=True, kw_only=True):
    """Prefixes that the worker has come to hold, and those that it holds no more; by these requests are routed.

    `version` counts these messages within an epoch. `whole` tells that `added` is everything, whatever was told before.
    """

    worker: Address
    epoch: int
    version: int
    added: tuple[Digest, ...]
    removed: tuple[Digest, ...]
    whole: bool = False


class ResendPrefixes(Message, frozen=True, kw_only=True):
    """The scheduler has missed some of the worker's prefixes: it is to tell all of them."""


class Reserved(Message, frozen=True, kw_only=True):
    """The lease is held from here until its choices end. The first `cached_tokens` tokens need no transfer."""

    key: Key
    cached_tokens: int
    inventory: Inventory


class ReserveRefused(Message, frozen=True, kw_only=True):
    """Not enough pages or rows now; try again when the inventory has grown.

    Choices in `cancelled` it will refuse for good: they have ended there, or were cancelled.
    """

    key: Key
    cancelled: tuple[int, ...] = ()
    inventory: Inventory


class StartPrefill(Message, frozen=True, kw_only=True):
    """Prefill the group's tokens for the decode worker that holds its lease, skipping `cached_tokens` of transfer.

    What the prefill worker itself has cached of `prefix` it need not compute. It is for the worker's life `epoch`.
    `decode_epoch` is the life of the decode worker that granted the lease; after it there is nobody to prefill for.
    """

    epoch: int
    key: Key
    choices: tuple[int, ...]
    order: int
    tokens: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    prefix: PrefixChain | None = None
    params: SamplingParams
    decode: Address
    decode_epoch: int
    deadline: float


class Cancel(Message, frozen=True, kw_only=True):
    """Stop these choices of this attempt and remember that until `deadline`, so that a late start makes no zombie.

    `whole` tells that no choice of the group is wanted any more.
    """

    key: Key
    choices: tuple[int, ...]
    deadline: float
    whole: bool


class Released(Message, frozen=True, kw_only=True):
    """Choices of this attempt ended on this decode worker; an `Inventory` follows when their pages are free."""

    worker: Address
    key: Key
    choices: tuple[int, ...]


# --- prefill -> transfer -> decode


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


# --- workers -> gateway


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


# --- supervision


class WorkerDown(Message, frozen=True, kw_only=True):
    """This life of a worker has ended; whatever it held is gone. `final` when the worker is not coming back."""

    worker: Address
    epoch: int
    reason: str
    final: bool = False


class WorkerUp(Message, frozen=True, kw_only=True):
    """A worker runs: said when it begins, with an empty pool, and again and again while it lives.

    `leases` have not begun, `running` are sequences; `prefills` are groups of which it has a job, a chunk that was not
    acknowledged or a hand-over that was not. `prefixes_version` is that of its last `PrefixesChanged`. `reads` counts
    how often it has read its inbox to the end.
    """

    inventory: Inventory
    role: Role
    page_size: int
    usable_pages: int
    num_rows: int
    leases: tuple[Held, ...] = ()
    running: tuple[Held, ...] = ()
    prefills: tuple[Key, ...] = ()
    prefixes_version: int = 0
    reads: int = 0


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as operators see it; `reason` is one line where it is not simply up.

    A worker that is down comes back, one that is lost does not. One that is draining gets nothing new, and is drained
    once it holds nothing. `corrupt_chunks` counts what arrived there with another checksum than it had left with.
    """

    name: Address
    role: Role
    state: WorkerState
    reason: str | None = None
    corrupt_chunks: int = 0


# --- operators -> gateway -> scheduler


class DrainWorker(Message, frozen=True, kw_only=True):
    """Give the worker nothing new; what still runs on it at `deadline` gets another attempt elsewhere."""

    worker: Address
    deadline: float


class ResumeWorker(Message, frozen=True, kw_only=True):
    """Give the worker work again."""

    worker: Address


class AskDrain(Message, frozen=True, kw_only=True):
    """An operator wants a worker drained, or with None for a time resumed; answered with `DrainAnswer`."""

    worker: Address
    timeout_s: float | None
    reply_to: Address


class DrainAnswer(Message, frozen=True, kw_only=True):
    """It has been ordered, unless there is an error; `worker` is as it is then, None where there is no such worker."""

    worker: WorkerStatus | None
    error: ErrorInfo | None = None


class ChunkCorrupt(Message, frozen=True, kw_only=True):
    """A chunk arrived at `worker` with another checksum than it had left with; its sender is told that it is lost."""

    worker: Address
    key: Key
    sequence: int


class ForgetPrefixes(Message, frozen=True, kw_only=True):
    """An operator wants the worker's prefix cache emptied, as far as nobody uses it; answered with the next one."""

    reply_to: Address


class PrefixesForgotten(Message, frozen=True, kw_only=True):
    """So many pages of the worker's prefix cache were given up."""

    worker: Address
    num_pages: int


class GetStatus(Message, frozen=True, kw_only=True):
    """Ask the gateway for its counts; answered with `Status`."""

    reply_to: Address


class Status(Message, frozen=True, kw_only=True):
    """Requests in the ledger and workers that are down."""

    running: int
    draining: bool
    workers_down: tuple[str, ...]


GatewayMessage = (
    Submit
    | Disconnect
    | Drain
    | Refused
    | SchedulerReport
    | PrefillStarted
    | DecodeStarted
    | TokensSampled
    | Preempted
    | Rejected
    | WorkerDown
    | WorkerUp
    | GetStatus
    | AskDrain
    | ChunkCorrupt
)
SchedulerMessage = (
    Admit
    | AbortGroup
    | Reserved
    | ReserveRefused
    | Released
    | Inventory
    | PrefixesChanged
    | WorkerDown
    | WorkerUp
    | DrainWorker
    | ResumeWorker
)
WorkerMessage = (
    Reserve
    | StartPrefill
    | Cancel
    | ResendPrefixes
    | ForgetPrefixes
    | KvChunkReady
    | ChunkAcked
    | ChunkLost
    | StartDecode
    | StartAcked
    | WorkerDown
)
TransferMessage = MoveChunk | Cancel | WorkerDown
ClientMessage = Delta | Completed | Failed | Drained | Status | DrainAnswer | PrefixesForgotten
AnyMessage = GatewayMessage | SchedulerMessage | WorkerMessage | TransferMessage | ClientMessage

_CONTROL = (
    Drain, Refused, SchedulerReport, Reserved, ReserveRefused, Released, Inventory, PrefixesChanged, ResendPrefixes,
    PrefillStarted, ChunkAcked, ChunkLost, StartAcked, WorkerDown, WorkerUp, GetStatus, Status, Drained, Preempted,
    DrainWorker, ResumeWorker, AskDrain, DrainAnswer, ChunkCorrupt,
    ForgetPrefixes, PrefixesForgotten,
)  # fmt: skip
_CANCEL = (Disconnect, AbortGroup, Cancel)
_TOKEN = (TokensSampled, Rejected, DecodeStarted, StartDecode, KvChunkReady, Delta, Completed, Failed)


def mailbox_class(message: Message) -> MailboxClass:
    """The class by which an inbox orders and bounds this message: control, then cancel, then token, then work."""
    if isinstance(message, _CONTROL):
        return "control"
    if isinstance(message, _CANCEL):
        return "cancel"
    if isinstance(message, _TOKEN):
        return "token"
    return "work"
