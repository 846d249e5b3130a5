"""How groups find their places: the gateway and the scheduler, the scheduler and the workers."""

from actors.messages.base import Address, ErrorInfo, Held, Key, Message
from runtime.prefix_cache import Digest, PrefixChain
from runtime.sampling_params import SamplingParams

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
