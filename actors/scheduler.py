"""The scheduler: admits or refuses at once, and gives each group a decode lease before its prefill starts.

In: `Admit`, `AbortGroup`, `DrainWorker`, `ResumeWorker` from the gateway; `Reserved`, `ReserveRefused`, `Released`,
`Inventory`, `PrefixesChanged`, `WorkerUp` from workers; `WorkerDown` from the supervisor. Out: `Reserve`,
`StartPrefill`, `Cancel`, `ResendPrefixes` to workers; `Refused`, `Preempted`, `SchedulerReport` to the gateway. Decode
first: nobody prefills for a group whose pages are not promised, so nobody holds one thing and waits for another. The
first waiting group is never overtaken by those behind it: recovered ones go first, then the smaller priority, then the
older request.

Any message may be lost. Workers tell every so often what they hold, which is compared with the grants; the scheduler
tells the gateway as often what it has. So it may die, too: the next one has nothing, and learns it from the workers.
"""

from collections.abc import Iterable

import msgspec

from actors.admission import DrainRate, refusal
from actors.context import Context
from actors.drains import Drains
from actors.grants import BURIED_S, Grant, Grants
from actors.messages import (
    GATEWAY,
    TRANSFER,
    AbortGroup,
    Address,
    Admit,
    Cancel,
    DrainWorker,
    ErrorInfo,
    Held,
    Inventory,
    Key,
    Message,
    Preempted,
    PrefixesChanged,
    Refused,
    Released,
    ResendPrefixes,
    Reserve,
    Reserved,
    ReserveRefused,
    ResumeWorker,
    SchedulerMessage,
    SchedulerReport,
    StartPrefill,
    WorkerDown,
    WorkerUp,
)
from actors.placement import (
    WorkerView,
    cached_tokens,
    choose_decode,
    choose_prefill,
    has_path,
    need,
    never_fits,
)
from actors.recovery import RecoveryOptions
from actors.telemetry import NO_TELEMETRY, Telemetry
from actors.waiting import WaitingGroups


class SchedulerActor:
    """See the module. `max_queued` bounds the groups that wait; recovered ones are always let in.

    Nothing is placed before each of `known` has been heard from, or has had its time to be.
    """

    def __init__(
        self,
        max_queued: int,
        decode_reserve_tokens: int,
        known: Iterable[Address],
        recovery: RecoveryOptions,
        *,
        prefix_cache: bool,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._telemetry = telemetry
        self._waiting = WaitingGroups(max_queued, decode_reserve_tokens, prefix_cache=prefix_cache)
        self._recovery = recovery
        self._unheard = set(known)
        self._dead: dict[Address, int] = {}
        self._lost: set[Address] = set()
        self._rate = DrainRate()
        self._reads = 0
        self._tick_at = 0.0
        self.book = Grants(recovery.grace_s)
        self.workers: dict[Address, WorkerView] = {}
        self.drains = Drains()

    @property
    def queue(self) -> list[Admit]:
        """Groups that wait for a place, the next one first."""
        return self._waiting.queue

    @property
    def grants(self) -> dict[Key, Grant]:
        """All grants by group."""
        return self.book.by_key

    async def run(self, ctx: Context) -> None:
        """Handles messages until cancelled; places what can be placed after each."""
        self._tick_at = ctx.now() + self._recovery.heartbeat_s
        patience_ends = ctx.now() + self._recovery.grace_s
        while True:
            message = ctx.receive_nowait()
            if message is None:
                self._reads += 1
                message = await ctx.receive(max(0.0, self._tick_at - ctx.now()))
            if message is not None:
                self._handle(ctx, message)
            if ctx.now() >= patience_ends:
                self._unheard.clear()
            if ctx.now() >= self._tick_at:
                self._tick(ctx)
            self._place(ctx)
            self._rate.waits(bool(self.queue), ctx.now())
            self._telemetry.queued(len(self.queue), len(self.grants))

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
                self._not_reserved(ctx, message)
            case Released():
                self._end(ctx, message.key, message.choices)
            case Inventory():
                if message.worker in self.workers:
                    self.workers[message.worker].update(message)
            case PrefixesChanged():
                if message.worker in self.workers:
                    self.workers[message.worker].change_prefixes(message)
            case WorkerUp():
                self._worker_up(ctx, message)
            case WorkerDown():
                self._worker_down(ctx, message)
            case DrainWorker():
                self.drains.order(message.worker, message.deadline, ctx.now())
            case ResumeWorker():
                self.drains.resume(message.worker)

    # --- admission

    def _admit(self, ctx: Context, admit: Admit) -> None:
        choices = self.book.tombstones.alive(admit.key, admit.choices)
        if not choices:
            return  # its abort came first: cancels overtake work in an inbox
        if admit.key in self.grants or self._waiting.find(admit.key) is not None:
            return
        if not self._unheard and self._refuse_too_large(ctx, admit):
            return
        error = self._refusal(admit, ctx.now())
        if error is not None:
            self._refuse(ctx, admit.key, error)
            return
        self._telemetry.admitted(again=admit.key.attempt > 1)
        self._waiting.enter(msgspec.structs.replace(admit, choices=choices))

    def _refusal(self, admit: Admit, now: float) -> ErrorInfo | None:
        """What gets its first token earlier is what is queued before it, and what workers said they prefill."""
        prefilling = sum(len(view.prefills) for view in self.workers.values() if view.alive)
        return refusal(
            queued=len(self.queue),
            ahead=self._waiting.ahead_of(admit) + prefilling,
            is_full=self._waiting.is_full_for(admit),
            patience_s=None if admit.start_by is None else admit.start_by - now,
            per_s=self._rate.per_s(now),
        )

    def _refuse_too_large(self, ctx: Context, admit: Admit) -> bool:
        reason = never_fits(self.workers.values(), admit, self._waiting.reserve_tokens(admit))
        if reason is not None:
            param = "n" if len(admit.choices) > 1 else None
            self._refuse(ctx, admit.key, ErrorInfo(status=400, message=reason, code="too_large", param=param))
        return reason is not None

    def _refuse(self, ctx: Context, key: Key, error: ErrorInfo) -> None:
        ctx.post(GATEWAY, Refused(key=key, error=error))

    def _place(self, ctx: Context) -> None:
        """Reserves for waiting groups, in their order, until one does not fit."""
        while self.queue and not self._unheard:
            admit = self.queue[0]
            if not self._has_path():
                if self._lost:
                    self._refuse_all(ctx)
                return
            reserve_tokens = self._waiting.reserve_tokens(admit)
            page_size = next(iter(self.workers.values())).page_size  # alike on all workers
            prefix = self._waiting.prefix(admit, page_size)
            view = choose_decode(self._open(), admit, reserve_tokens, prefix)
            if view is None:
                if self._refuse_too_large(ctx, admit):  # admitted before any worker was up
                    self.queue.pop(0)
                    continue
                return
            self.queue.pop(0)
            view.pending[admit.key] = need(view, admit, reserve_tokens, prefix)
            grant = Grant(admit.key, admit.choices, admit.deadline, view.address, ctx.now(), admit)
            grant.prefix = prefix
            self.grants[admit.key] = grant
            self._ask(ctx, grant, admit)

    def _ask(self, ctx: Context, grant: Grant, admit: Admit) -> None:
        reserve = Reserve(
            epoch=self.workers[grant.decode].epoch,
            key=admit.key,
            choices=tuple(sorted(grant.open)),
            order=admit.order,
            num_tokens=len(admit.tokens),
            prompt_tokens=admit.prompt_tokens,
            reserve_tokens=self._waiting.reserve_tokens(admit),
            prefix=grant.prefix,
            deadline=admit.deadline,
        )
        ctx.post(grant.decode, reserve)

    def _open(self) -> list[WorkerView]:
        """Workers that are not being drained."""
        return self.drains.open(self.workers.values())

    def _has_path(self) -> bool:
        """Whether some living worker decodes and some living worker prefills."""
        return has_path(view.role for view in self._open() if view.alive)

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
        view = self._view_of(message.inventory)
        if view is None:
            return
        view.pending.pop(message.key, None)
        view.update(message.inventory)
        grant = self.grants.get(message.key)
        if grant is None or grant.decode != view.address:
            self._unexpected(ctx, message, view.address)
        elif not grant.answered and grant.admit is not None:
            grant.answered = True
            self._start(ctx, grant, grant.admit, message.cached_tokens, view)

    def _start(self, ctx: Context, grant: Grant, admit: Admit, known_tokens: int, decode: WorkerView) -> None:
        """Lets a prefill worker begin."""
        prefill = choose_prefill(self._open(), decode, admit, grant.prefix)
        if prefill is None:
            self._take_back(ctx, grant, tuple(sorted(grant.open)), "no prefill worker is up")
            return
        grant.prefill = prefill.address
        prefill.prefill_tokens += len(admit.tokens) - cached_tokens(prefill, admit, grant.prefix)
        start = StartPrefill(
            epoch=prefill.epoch,
            key=admit.key,
            choices=tuple(sorted(grant.open)),
            order=admit.order,
            tokens=admit.tokens,
            prompt_tokens=admit.prompt_tokens,
            cached_tokens=known_tokens,
            prefix=grant.prefix,
            params=admit.params,
            decode=grant.decode,
            decode_epoch=decode.epoch,
            deadline=admit.deadline,
        )
        ctx.post(prefill.address, start)

    def _view_of(self, inventory: Inventory) -> WorkerView | None:
        """The worker that answers, unless that life of it is over or unknown."""
        view = self.workers.get(inventory.worker)
        return view if view is not None and view.alive and view.epoch == inventory.epoch else None

    def _unexpected(self, ctx: Context, message: Reserved, worker: Address) -> None:
        """A lease that nobody here waits for: unwanted, or asked for by an earlier scheduler, or one too many."""
        key = message.key
        waiting = self._waiting.find(key)
        grant = self.grants.get(key)
        if grant is None and waiting is not None:
            self._waiting.remove(key, waiting.choices)
            grant = Grant(key, waiting.choices, waiting.deadline, worker, ctx.now(), waiting)
        if grant is not None:
            self._take_back(ctx, grant, tuple(sorted(grant.open)), f"{worker} holds it unasked")
        elif self.book.tombstones.alive(key, (key.choice,)):
            return  # the worker's next report tells all of it
        cancel = Cancel(key=key, choices=(key.choice,), deadline=ctx.now() + BURIED_S, whole=True)
        ctx.post(worker, cancel)

    def _not_reserved(self, ctx: Context, message: ReserveRefused) -> None:
        view = self._view_of(message.inventory)
        if view is None or not view.is_news(message.inventory):
            return  # said twice; whoever is not answered is asked again
        view.pending.pop(message.key, None)
        view.refuse(message.key, message.inventory)
        grant = self.grants.get(message.key)
        if grant is None or grant.decode != view.address or grant.answered or grant.admit is None:
            return
        if grant.open & set(message.cancelled):
            self._take_back(ctx, grant, tuple(sorted(grant.open)), f"{view.address} had it before")
            return
        del self.grants[message.key]
        self._waiting.enter(msgspec.structs.replace(grant.admit, choices=tuple(sorted(grant.open))))

    def _end(self, ctx: Context, key: Key, choices: tuple[int, ...]) -> None:
        """Choices have ended; the grant ends with its last one."""
        if self.book.end(key, choices, ctx.now() + BURIED_S, ctx.now()) is not None:
            self._rate.ended(ctx.now())

    # --- aborts and deaths

    def _abort(self, ctx: Context, message: AbortGroup) -> None:
        """Takes the choices away from queue, prefill, transfer and decode."""
        self._waiting.remove(message.key, message.choices)
        grant = self.grants.get(message.key)
        if grant is None:
            self.book.tombstones.bury(message.key, message.choices, message.deadline, ctx.now())
            return
        self._cancel(ctx, grant, message.choices, message.deadline)
        if not grant.open and not message.again:
            self._rate.ended(ctx.now())

    def _cancel(self, ctx: Context, grant: Grant, choices: tuple[int, ...], deadline: float) -> None:
        """Ends choices of a grant on all its workers."""
        self.book.end(grant.key, choices, deadline, ctx.now())
        grant.open.difference_update(choices)
        if grant.decode in self.workers:
            self.workers[grant.decode].pending.pop(grant.key, None)
        cancel = Cancel(key=grant.key, choices=choices, deadline=deadline, whole=not grant.open)
        for address in self._holders(grant):
            ctx.post(address, cancel)

    def _holders(self, grant: Grant) -> list[Address]:
        holders = [grant.decode]
        if grant.prefill is not None and grant.prefill != grant.decode:
            holders += [grant.prefill, TRANSFER]
        return [address for address in holders if address == TRANSFER or self._is_alive(address)]

    def _is_alive(self, worker: Address) -> bool:
        view = self.workers.get(worker)
        return view is not None and view.alive

    def _take_back(self, ctx: Context, grant: Grant, choices: tuple[int, ...], reason: str) -> None:
        """Ends choices of the attempt on all its workers; the gateway decides on another."""
        self._cancel(ctx, grant, choices, grant.deadline)
        ctx.post(GATEWAY, Preempted(worker=grant.decode, key=grant.key, choices=choices, reason=reason))

    def _worker_up(self, ctx: Context, message: WorkerUp) -> None:
        """A worker begins a life, or tells what it holds in the one that it has."""
        inventory, now = message.inventory, ctx.now()
        address, epoch = inventory.worker, inventory.epoch
        view = self.workers.get(address)
        if epoch <= self._dead.get(address, 0) or (view is not None and epoch < view.epoch):
            return
        if view is not None and epoch == view.epoch:
            if not view.is_news(inventory):
                return
            view.update(inventory)
            view.report(message, now)
        else:
            if view is not None:
                self._take_all_back(ctx, view, "it was started again")
            view = self.workers[address] = WorkerView(message, now)
        self._lost.discard(address)
        self._unheard.discard(address)
        self._compare(ctx, message, view)

    def _compare(self, ctx: Context, message: WorkerUp, view: WorkerView) -> None:
        """Cancels again what has ended and takes over what a scheduler before this one has granted."""
        for held, whole in self.book.unwanted(message):
            deadline = ctx.now() + BURIED_S
            ctx.post(view.address, Cancel(key=held.key, choices=held.choices, deadline=deadline, whole=whole))
        self.book.adopt(message, ctx.now())
        if not view.prefixes_known:
            ctx.post(view.address, ResendPrefixes())

    def _worker_down(self, ctx: Context, message: WorkerDown) -> None:
        view = self.workers.get(message.worker)
        if view is not None and message.epoch < view.epoch:
            return
        self._unheard.discard(message.worker)
        self._dead[message.worker] = max(message.epoch, self._dead.get(message.worker, 0))
        if message.final:
            self._lost.add(message.worker)
        if view is not None:
            self._take_all_back(ctx, view, message.reason)

    def _take_all_back(self, ctx: Context, view: WorkerView, reason: str) -> None:
        view.alive = False
        view.pending.clear()
        for grant in list(self.grants.values()):
            if view.address in (grant.decode, grant.prefill):
                self._take_back(ctx, grant, tuple(sorted(grant.open)), f"{view.address} failed: {reason}")

    # --- time

    def _tick(self, ctx: Context) -> None:
        """Asks again, takes back what is lost, and tells the gateway what is here."""
        now, recovery = ctx.now(), self._recovery
        late_s = now - self._tick_at
        self._tick_at = now + recovery.heartbeat_s
        for view in self.workers.values():
            if late_s > recovery.heartbeat_s:
                view.heard += late_s  # whoever is late himself has not listened
            if view.alive and now - view.heard > recovery.dead_after_s:
                self._take_all_back(ctx, view, f"nothing was heard of it for {recovery.dead_after_s:g} s")
        for grant in self.book.unanswered(now, recovery.resend_s):
            if grant.admit is not None:
                self._ask(ctx, grant, grant.admit)
        for grant, choices in self.book.lost(self.workers, now):
            self._take_back(ctx, grant, choices, f"{grant.decode} and {grant.prefill} do not have it")
        for worker, key in self.book.orphans(self.workers, now):
            ctx.post(worker, Cancel(key=key, choices=(key.choice,), deadline=now + BURIED_S, whole=True))
        for grant in self.drains.look(self.grants.values(), self.workers, now):
            self._take_back(ctx, grant, tuple(sorted(grant.open)), "its worker is drained and its time there is over")
        if not self._unheard:
            queued = tuple(Held(admit.key, admit.choices) for admit in self.queue)
            held = queued + tuple(grant.held for grant in self.grants.values())
            drained = tuple(sorted(self.drains.drained))
            report = SchedulerReport(held=held, reads=self._reads, draining=self.drains.workers, drained=drained)
            ctx.post(GATEWAY, report)
