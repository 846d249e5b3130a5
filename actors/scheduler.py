"""The scheduler: admits or refuses at once, and gives each group a decode lease before its prefill starts.

In: `Admit`, `AbortGroup` from the gateway; `Reserved`, `ReserveRefused`, `Released`, `Inventory`, `PrefixesChanged`,
`WorkerUp` from workers; `WorkerDown` from the supervisor. Out: `Reserve`, `StartPrefill`, `Cancel` to workers;
`Refused`, `Preempted` to the gateway. Decode first: nobody prefills for a group whose pages are not promised, so nobody
holds one thing and waits for another. The oldest waiting group goes first and is never overtaken; a recovered group
keeps its request's age and so goes before newer ones.
"""

import bisect

import msgspec

from actors.context import Context
from actors.messages import (
    GATEWAY,
    TRANSFER,
    AbortGroup,
    Address,
    Admit,
    Cancel,
    ErrorInfo,
    Inventory,
    Key,
    Message,
    Preempted,
    PrefixesChanged,
    Refused,
    Released,
    Reserve,
    Reserved,
    ReserveRefused,
    SchedulerMessage,
    StartPrefill,
    WorkerDown,
    WorkerUp,
)
from actors.placement import (
    DrainRate,
    WorkerView,
    cached_tokens,
    choose_decode,
    choose_prefill,
    has_path,
    need,
    never_fits,
)
from actors.tombstones import Tombstones
from runtime.prefix_cache import PrefixChain, chain_of


class Grant:
    """A group that a decode worker was asked to hold; `prefill` is set once the lease is there."""

    def __init__(self, admit: Admit, decode: Address, prefix: PrefixChain | None) -> None:
        self.admit = admit
        self.decode = decode
        self.prefix = prefix
        self.prefill: Address | None = None
        self.open = set(admit.choices)


class SchedulerActor:
    """See the module. `max_queued` bounds the groups that wait; recovered ones are always let in."""

    def __init__(self, max_queued: int, decode_reserve_tokens: int, *, prefix_cache: bool) -> None:
        self._max_queued = max_queued
        self._decode_reserve_tokens = decode_reserve_tokens
        self._prefix_cache = prefix_cache
        self._head: tuple[Key, PrefixChain] | None = None
        self.queue: list[Admit] = []
        self.grants: dict[Key, Grant] = {}
        self.workers: dict[Address, WorkerView] = {}
        self._lost: set[Address] = set()
        self._tombstones = Tombstones()
        self._rate = DrainRate()

    async def run(self, ctx: Context) -> None:
        """Handles messages until cancelled; places what can be placed after each."""
        while True:
            message = await ctx.receive()
            if message is not None:
                self._handle(ctx, message)
            self._place(ctx)

    def _handle(self, ctx: Context, message: Message) -> None:
        assert isinstance(message, SchedulerMessage), message
        match message:
            case Admit():
                self._admit(ctx, message)
            case AbortGroup():
                self._abort(ctx, message)
            case Reserved():
                self._reserved(ctx, message)
            case ReserveRefused():
                self._not_reserved(message)
            case Released():
                self._end(ctx, message.key, message.choices)
            case Inventory():
                if message.worker in self.workers:
                    self.workers[message.worker].update(message)
            case PrefixesChanged():
                if message.worker in self.workers:
                    self.workers[message.worker].change_prefixes(message.added, message.removed)
            case WorkerUp():
                self._worker_up(message)
            case WorkerDown():
                self._worker_down(ctx, message)

    # --- admission

    def _reserve_tokens(self, admit: Admit) -> int:
        remaining = admit.params.max_tokens - (len(admit.tokens) - admit.prompt_tokens)
        return max(1, min(remaining, self._decode_reserve_tokens))

    def _admit(self, ctx: Context, admit: Admit) -> None:
        if not self._tombstones.alive(admit.key, admit.choices):
            return  # its abort came first: cancels overtake work in an inbox
        if self._refuse_too_large(ctx, admit):
            return
        if admit.key.attempt == 1 and len(self.queue) >= self._max_queued:
            retry_after_s = self._rate.retry_after_s(len(self.queue), ctx.now())
            message = f"{len(self.queue)} requests are waiting, the limit."
            error = ErrorInfo(status=429, message=message, code="queue_full", retry_after_s=retry_after_s)
            self._refuse(ctx, admit.key, error)
            return
        self._enqueue(admit)

    def _refuse_too_large(self, ctx: Context, admit: Admit) -> bool:
        reason = never_fits(self.workers.values(), admit, self._reserve_tokens(admit))
        if reason is not None:
            param = "n" if len(admit.choices) > 1 else None
            self._refuse(ctx, admit.key, ErrorInfo(status=400, message=reason, code="too_large", param=param))
        return reason is not None

    def _enqueue(self, admit: Admit) -> None:
        bisect.insort(self.queue, admit, key=lambda waiting: (waiting.order, waiting.key))

    def _refuse(self, ctx: Context, key: Key, error: ErrorInfo) -> None:
        ctx.post(GATEWAY, Refused(key=key, error=error))

    def _place(self, ctx: Context) -> None:
        """Reserves for waiting groups, oldest first, until one does not fit."""
        while self.queue:
            admit = self.queue[0]
            if not self._has_path():
                if self._lost:
                    self._refuse_all(ctx)
                return
            reserve_tokens = self._reserve_tokens(admit)
            prefix = self._prefix(admit)
            view = choose_decode(self.workers.values(), admit, reserve_tokens, prefix)
            if view is None:
                if self._refuse_too_large(ctx, admit):  # admitted before any worker was up
                    self.queue.pop(0)
                    continue
                return
            self.queue.pop(0)
            view.pending[admit.key] = need(view, admit, reserve_tokens, prefix)
            self.grants[admit.key] = Grant(admit, view.address, prefix)
            ctx.post(
                view.address,
                Reserve(
                    key=admit.key,
                    choices=admit.choices,
                    order=admit.order,
                    num_tokens=len(admit.tokens),
                    prompt_tokens=admit.prompt_tokens,
                    reserve_tokens=reserve_tokens,
                    prefix=prefix,
                    deadline=admit.deadline,
                ),
            )

    def _prefix(self, admit: Admit) -> PrefixChain | None:
        """The chain of the group at the head of the queue, computed once; page sizes are alike on all workers."""
        if not self._prefix_cache:
            return None
        if self._head is None or self._head[0] != admit.key:
            page_size = next(iter(self.workers.values())).page_size
            self._head = (admit.key, chain_of(admit.tokens, page_size, admit.cache_salt))
        return self._head[1]

    def _has_path(self) -> bool:
        """Whether some living worker decodes and some living worker prefills."""
        return has_path(view.role for view in self.workers.values() if view.alive)

    def _refuse_all(self, ctx: Context) -> None:
        """Workers were lost for good and no path is left: nothing that waits can ever run."""
        down = [view.address for view in self.workers.values() if not view.alive]
        if set(down) <= self._lost:
            message = f"No worker is left to serve this: {', '.join(sorted(down))} failed."
            for admit in self.queue:
                self._refuse(ctx, admit.key, ErrorInfo(status=503, message=message, code="no_workers"))
            self.queue.clear()

    # --- answers of workers

    def _reserved(self, ctx: Context, message: Reserved) -> None:
        view = self.workers[message.inventory.worker]
        view.pending.pop(message.key, None)
        view.update(message.inventory)
        grant = self.grants.get(message.key)
        if grant is None or grant.decode != view.address:
            return
        prefill = choose_prefill(self.workers.values(), view, grant.admit, grant.prefix)
        if prefill is None:
            self._take_back(ctx, message.key, grant, "no prefill worker is up")
            return
        grant.prefill = prefill.address
        prefill.prefill_tokens += len(grant.admit.tokens) - cached_tokens(prefill, grant.admit, grant.prefix)
        admit = grant.admit
        ctx.post(
            prefill.address,
            StartPrefill(
                key=admit.key,
                choices=tuple(sorted(grant.open)),
                order=admit.order,
                tokens=admit.tokens,
                prompt_tokens=admit.prompt_tokens,
                cached_tokens=message.cached_tokens,
                prefix=grant.prefix,
                params=admit.params,
                decode=grant.decode,
                deadline=admit.deadline,
            ),
        )

    def _not_reserved(self, message: ReserveRefused) -> None:
        view = self.workers[message.inventory.worker]
        view.pending.pop(message.key, None)
        view.refuse(message.key, message.inventory)
        grant = self.grants.get(message.key)
        if grant is not None and grant.decode == view.address and grant.prefill is None:
            del self.grants[message.key]
            self._enqueue(msgspec.structs.replace(grant.admit, choices=tuple(sorted(grant.open))))

    def _end(self, ctx: Context, key: Key, choices: tuple[int, ...]) -> None:
        """Choices have ended; the grant ends with its last one."""
        grant = self.grants.get(key)
        if grant is None:
            return
        grant.open.difference_update(choices)
        if not grant.open:
            del self.grants[key]
            self._rate.ended(ctx.now())

    # --- aborts and deaths

    def _abort(self, ctx: Context, message: AbortGroup) -> None:
        """Takes the choices away from queue, prefill, transfer and decode."""
        for index, waiting in enumerate(self.queue):
            if waiting.key == message.key:
                left = tuple(choice for choice in waiting.choices if choice not in message.choices)
                self.queue[index : index + 1] = [msgspec.structs.replace(waiting, choices=left)] if left else []
                return
        grant = self.grants.get(message.key)
        if grant is None:
            self._tombstones.bury(message.key, message.choices, message.deadline, ctx.now())
            return
        whole = grant.open <= set(message.choices)
        cancel = Cancel(key=message.key, choices=message.choices, deadline=message.deadline, whole=whole)
        for address in self._holders(grant):
            ctx.post(address, cancel)
        self._end(ctx, message.key, message.choices)

    def _holders(self, grant: Grant) -> list[Address]:
        holders = [grant.decode]
        if grant.prefill is not None and grant.prefill != grant.decode:
            holders += [grant.prefill, TRANSFER]
        return holders

    def _take_back(self, ctx: Context, key: Key, grant: Grant, reason: str) -> None:
        """Ends the attempt on all its workers; the gateway decides on another."""
        choices = tuple(sorted(grant.open))
        cancel = Cancel(key=key, choices=choices, deadline=grant.admit.deadline, whole=True)
        for address in self._holders(grant):
            if address == TRANSFER or self.workers[address].alive:
                ctx.post(address, cancel)
        del self.grants[key]
        ctx.post(GATEWAY, Preempted(worker=grant.decode, key=key, choices=choices, reason=reason))

    def _worker_up(self, message: WorkerUp) -> None:
        address = message.inventory.worker
        self._lost.discard(address)
        self.workers[address] = WorkerView(message)

    def _worker_down(self, ctx: Context, message: WorkerDown) -> None:
        view = self.workers.get(message.worker)
        if view is not None:
            view.alive = False
            view.pending.clear()
        if message.final:
            self._lost.add(message.worker)
        for key, grant in list(self.grants.items()):
            if message.worker in (grant.decode, grant.prefill):
                self._take_back(ctx, key, grant, f"{message.worker} failed: {message.reason}")
