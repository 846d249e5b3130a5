"""The gateway: owner of the ledger, the only actor that clients see and the only one that raises an attempt.

In: `Submit`, `Disconnect`, `Drain` from clients; `Refused`, `SchedulerReport` from the scheduler; `PrefillStarted`,
`DecodeStarted`, `TokensSampled`, `Preempted`, `Rejected` from workers. Out: `Admit`, `AbortGroup` to the scheduler;
deltas and exactly one terminal event to each client. It never waits for anybody but its inbox: a client that does not
keep up loses its own stream.

What the scheduler reports is compared with the ledger: what it does not have any more starts another attempt, and what
the ledger does not want any more is aborted again. So is an attempt of which a token was lost on its way here.
"""

import heapq
from collections.abc import Callable, Mapping

from actors.context import Context
from actors.gaps import Gaps
from actors.ledger import ChoiceRecord, Ledger, RequestRecord, TextStream
from actors.messages import (
    SCHEDULER,
    AbortGroup,
    Address,
    Admit,
    AskDrain,
    ChunkCorrupt,
    Completed,
    DecodeStarted,
    Delta,
    Disconnect,
    Drain,
    DrainAnswer,
    Drained,
    DrainWorker,
    ErrorInfo,
    Failed,
    FinishReason,
    GatewayMessage,
    GetStatus,
    Key,
    Message,
    Preempted,
    PrefillStarted,
    Refused,
    Rejected,
    ResumeWorker,
    SampledToken,
    SchedulerReport,
    Status,
    Submit,
    TokenRecord,
    TokensSampled,
    WorkerDown,
    WorkerUp,
)
from actors.reconcile import Overdue, choice_keys
from actors.recovery import RecoveryOptions
from actors.telemetry import NO_TELEMETRY, RecoveryCause, Telemetry
from actors.tombstones import Tombstones
from actors.worker_board import WorkerBoard
from runtime.text_stream import TextOptions
from runtime.topology import Role

TextStreamFactory = Callable[[TextOptions], TextStream]
"""Makes the text stream of one choice."""

STRAY_TIMEOUT_S = 600.0
"""By then nothing of an attempt that a worker gave up is still under way."""

OVERTAKEN_S = 10.0
"""By then a `Submit` that its own `Disconnect` has overtaken has arrived."""


class GatewayActor:
    """See the module. `max_requests` bounds the ledger, and with it every message that can be under way."""

    def __init__(
        self,
        make_text: TextStreamFactory,
        max_requests: int,
        roles: Mapping[Address, Role],
        recovery: RecoveryOptions,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._telemetry = telemetry
        self._make_text = make_text
        self._recovery = recovery
        self._max_requests = max_requests
        self.ledger = Ledger()
        self.board = WorkerBoard(roles)
        self._deadlines: list[tuple[float, str]] = []
        self._drain_to: list[Address] = []
        self._draining = False
        self._gaps = Gaps()
        self._missing = Overdue()
        self._unwanted = Overdue()
        self._gone = Tombstones()

    async def run(self, ctx: Context) -> None:
        """Handles messages and deadlines until cancelled."""
        while True:
            message = await ctx.receive(self._until_deadline(ctx.now()))
            if message is not None:
                self._handle(ctx, message)
            self._expire(ctx)
            self._leave_gaps(ctx)
            self._report_drained(ctx)

    def _handle(self, ctx: Context, message: Message) -> None:
        assert isinstance(message, GatewayMessage), message
        match message:
            case Submit():
                self._submit(ctx, message)
            case TokensSampled():
                for key, cached_tokens in message.cached:
                    self._note_cached(key, cached_tokens)
                for key, scores in message.prompt_logprobs:
                    self._note_scores(key, scores)
                for sampled in message.tokens:
                    self._token(ctx, sampled)
            case PrefillStarted():
                self._prefill_started(message)
            case DecodeStarted():
                self._decode_started(message)
            case Preempted():
                self._retry(ctx, message.key, message.choices, "taken back")
            case Rejected():
                self._rejected(ctx, message)
            case Refused():
                self._refused(ctx, message)
            case SchedulerReport():
                self._compare(ctx, message)
            case Disconnect():
                self._disconnect(ctx, message.request)
            case Drain():
                self._draining = True
                self._drain_to.append(message.reply_to)
            case WorkerDown():
                self.board.down(message.worker, message.epoch, message.reason, final=message.final)
            case WorkerUp():
                self.board.up(message.inventory.worker, message.inventory.epoch)
            case GetStatus():
                ctx.post(message.reply_to, self._status())
            case AskDrain():
                self._ask_drain(ctx, message)
            case ChunkCorrupt():
                self.board.corrupt(message.worker)

    # --- a request comes and goes

    def _disconnect(self, ctx: Context, request: str) -> None:
        """Aborts the request; cancels overtake work in an inbox, so its `Submit` may be yet to come."""
        if request not in self.ledger.requests:
            self._gone.bury(_whole(request), (0,), ctx.now() + OVERTAKEN_S, ctx.now())
        self._abort(ctx, request)

    def _submit(self, ctx: Context, submit: Submit) -> None:
        if not self._gone.alive(_whole(submit.request), (0,)) or submit.request in self.ledger.requests:
            return
        refusal = self._refusal()
        if refusal is not None:
            ctx.post(submit.client, Failed(request=submit.request, error=refusal))
            return
        texts = tuple(self._make_text(submit.text) for _ in range(submit.num_choices))
        record = self.ledger.open(submit, ctx.now(), texts)
        heapq.heappush(self._deadlines, (record.look_at(ctx.now()), submit.request))
        self._admit(ctx, record, record.choices[0].group, tuple(range(submit.num_choices)))

    def _refusal(self) -> ErrorInfo | None:
        if self._draining:
            return ErrorInfo(status=503, message="The server is shutting down.", code="draining", retry_after_s=30)
        if len(self.ledger.requests) >= self._max_requests:
            message = f"The server holds {self._max_requests} requests, its limit."
            return ErrorInfo(status=429, message=message, code="queue_full", retry_after_s=5)
        return None

    def _admit(self, ctx: Context, record: RequestRecord, key: Key, choices: tuple[int, ...]) -> None:
        """Asks for a place; a recovered choice brings its accepted tokens along behind the prompt."""
        submit = record.submit
        accepted = tuple(token.token for token in record.choices[key.choice].accepted)
        admit = Admit(
            key=key,
            choices=choices,
            order=record.order,
            tokens=submit.prompt + accepted,
            prompt_tokens=len(submit.prompt),
            params=submit.params,
            cache_salt=submit.cache_salt,
            priority=submit.priority,
            start_by=record.deadline if key.attempt == 1 else None,
            deadline=self._give_up_at(record, ctx.now()),
        )
        if not ctx.post(SCHEDULER, admit):
            self._fail(
                ctx,
                record,
                ErrorInfo(status=503, message="The scheduler does not answer.", code="overloaded"),
            )

    def _give_up_at(self, record: RequestRecord, now: float) -> float:
        """After this time nobody needs to remember an attempt that is started or cancelled now."""
        return now + record.submit.queue_timeout_s + record.submit.progress_timeout_s

    def _complete(self, ctx: Context, record: RequestRecord) -> None:
        submit = record.submit
        self.ledger.close(submit.request)
        ctx.post(
            submit.client,
            Completed(
                request=submit.request,
                prompt_tokens=len(submit.prompt),
                completion_tokens=record.completion_tokens,
                cached_tokens=record.cached_tokens or 0,
                timings=tuple(choice.clock.times() for choice in record.choices),
            ),
        )

    def _fail(self, ctx: Context, record: RequestRecord, error: ErrorInfo) -> None:
        self._abort(ctx, record.submit.request)
        ctx.post(record.submit.client, Failed(request=record.submit.request, error=error))

    def _abort(self, ctx: Context, request: str) -> None:
        """Closes the request without telling the client and takes it away from the workers."""
        record = self.ledger.requests.get(request)
        if record is None:
            return
        for key, choices in record.open_groups().items():
            self._abort_group(ctx, record, key, choices)
        self.ledger.close(request)

    def _abort_group(self, ctx: Context, record: RequestRecord, key: Key, choices: tuple[int, ...]) -> None:
        deadline = self._give_up_at(record, ctx.now())
        ctx.post(SCHEDULER, AbortGroup(key=key, choices=choices, deadline=deadline))

    # --- starts and tokens

    def _prefill_started(self, message: PrefillStarted) -> None:
        self._note_cached(message.key, message.cached_tokens)
        record = self.ledger.requests.get(message.key.request)
        for choice in record.running(message.key) if record is not None else ():
            choice.clock.prefill_started(message.worker, message.at, local=message.decode == message.worker)

    def _decode_started(self, message: DecodeStarted) -> None:
        record = self.ledger.requests.get(message.key.request)
        for choice in record.running(message.key) if record is not None else ():
            if choice.choice in message.choices:
                choice.clock.decode_started(message.worker, message.kv_at, message.at)

    def _note_cached(self, key: Key, cached_tokens: int) -> None:
        """What the first prefill that was heard of had found cached; one that brings tokens along is not the first."""
        record = self.ledger.requests.get(key.request)
        if record is not None and record.cached_tokens is None and not record.choices[key.choice].accepted:
            record.cached_tokens = cached_tokens

    def _note_scores(self, key: Key, scores: tuple[TokenRecord, ...]) -> None:
        """Logprobs of the prompt, of whichever attempt brings them first; they come with its first tokens."""
        record = self.ledger.requests.get(key.request)
        if record is not None and not record.prompt_logprobs and any(record.running(key)):
            record.prompt_logprobs = scores

    def _token(self, ctx: Context, sampled: SampledToken) -> None:
        record = self.ledger.requests.get(sampled.key.request)
        if record is None:
            return
        choice = record.choices[sampled.key.choice]
        for accepted in choice.accept(sampled):
            record.progressed = ctx.now()
            self._deliver(ctx, record, choice, accepted)
            if record.submit.request not in self.ledger.requests:
                return
        self._gaps.note((choice.request, choice.choice), len(choice.accepted), bool(choice.parked), ctx.now())
        if record.finished:
            self._complete(ctx, record)
        elif choice.is_stuck:
            self._retry(ctx, choice.group, (choice.choice,), "gap")

    def _deliver(self, ctx: Context, record: RequestRecord, choice: ChoiceRecord, sampled: SampledToken) -> None:
        text, finish, stop_match = self._derive(record, choice, sampled)
        choice.clock.token(record.progressed, last=finish is not None)
        if finish is not None:
            choice.end(finish)
        if isinstance(stop_match, str):
            self._abort_group(ctx, record, choice.group, (choice.choice,))
        delta = Delta(
            request=record.submit.request,
            choice=choice.choice,
            text=text,
            tokens=(sampled.record,),
            finish=finish,
            stop_match=stop_match,
            prompt_logprobs=record.prompt_logprobs if sampled.index == 0 else (),
        )
        if not ctx.post(record.submit.client, delta):
            self._abort(ctx, record.submit.request)

    def _derive(
        self, record: RequestRecord, choice: ChoiceRecord, sampled: SampledToken
    ) -> tuple[str, FinishReason | None, str | int | None]:
        """Text, finish reason and what matched, from one accepted token.

        One that completes what a constraint allows is a token like any other.
        """
        token = sampled.record.token
        if sampled.finish == "stop" and token in record.submit.params.stop_token_ids:
            return choice.text.end(token), "stop", token
        text, stop_string = choice.text.push(token)
        if stop_string is not None:
            return text, "stop", stop_string
        if sampled.finish is not None:
            return text + choice.text.finish(), sampled.finish, None
        return text, None, None

    # --- setbacks

    def _retry(self, ctx: Context, key: Key, choices: tuple[int, ...], cause: RecoveryCause) -> None:
        """Ends the attempt everywhere, then starts a new one for each choice that is still wanted."""
        deadline = ctx.now() + STRAY_TIMEOUT_S
        ctx.post(SCHEDULER, AbortGroup(key=key, choices=choices, deadline=deadline, again=True))
        record = self.ledger.requests.get(key.request)
        for index in choices if record is not None else ():
            assert record is not None
            choice = record.choices[index]
            if choice.group == key and choice.finish is None:
                self._telemetry.recovered(cause)
                self._admit(ctx, record, choice.raise_attempt(ctx.now()), (index,))
            if record.submit.request not in self.ledger.requests:
                return

    def _refused(self, ctx: Context, message: Refused) -> None:
        record = self.ledger.requests.get(message.key.request)
        if record is None:
            return
        choice = record.choices[message.key.choice]
        if choice.group == message.key and choice.finish is None:
            self._fail(ctx, record, message.error)

    def _rejected(self, ctx: Context, message: Rejected) -> None:
        """Fails the request, unless tokens before that place are missing: with them the choice may have ended."""
        record = self.ledger.requests.get(message.key.request)
        for index in message.choices if record is not None else ():
            assert record is not None
            choice = record.choices[index]
            if choice.group == message.key and choice.finish is None and len(choice.accepted) == message.index:
                self._fail(ctx, record, message.error)
                return
        self._retry(ctx, message.key, message.choices, "gap")

    def _compare(self, ctx: Context, report: SchedulerReport) -> None:
        """Starts again what the scheduler has lost, and aborts again what it should not have any more."""
        held, now = choice_keys(report.held), ctx.now()
        for order in self.board.corrections(report.draining, report.drained):
            ctx.post(SCHEDULER, order)
        open_choices = {
            key.sibling(choice): key
            for record in self.ledger.requests.values()
            for key, choices in record.open_groups().items()
            for choice in choices
        }
        missing = {key: report.reads for key in open_choices if key not in held}
        for key in self._missing.note(missing, now, self._recovery.grace_s):
            self._retry(ctx, open_choices[key], (key.choice,), "lost")
        unwanted = {key: report.reads for key in held if key not in open_choices}
        for key in self._unwanted.note(unwanted, now, self._recovery.heartbeat_s / 2):
            ctx.post(SCHEDULER, AbortGroup(key=held[key], choices=(key.choice,), deadline=now + STRAY_TIMEOUT_S))

    def _leave_gaps(self, ctx: Context) -> None:
        """A token that later ones have overtaken by so much is lost."""
        for request, index in self._gaps.take_overdue(ctx.now(), self._recovery.gap_timeout_s):
            record = self.ledger.requests.get(request)
            if record is not None and record.choices[index].parked:
                self._retry(ctx, record.choices[index].group, (index,), "gap")

    # --- time

    def _until_deadline(self, now: float) -> float | None:
        gap = self._gaps.oldest()
        times = [self._deadlines[0][0]] if self._deadlines else []
        times += [gap + self._recovery.gap_timeout_s] if gap is not None else []
        return max(0.0, min(times) - now) if times else None

    def _expire(self, ctx: Context) -> None:
        """Fails requests past their deadline. Progress moves deadlines, so each is looked at again when due."""
        while self._deadlines and self._deadlines[0][0] <= ctx.now():
            _, request = heapq.heappop(self._deadlines)
            record = self.ledger.requests.get(request)
            if record is None:
                continue
            if record.deadline > ctx.now():
                heapq.heappush(self._deadlines, (record.look_at(ctx.now()), request))
                continue
            self._fail(ctx, record, _too_late(record, ctx.now()))

    # --- drain and status

    def _report_drained(self, ctx: Context) -> None:
        if self._draining and not self.ledger.requests:
            for address in self._drain_to:
                ctx.post(address, Drained())
            self._drain_to.clear()

    def _ask_drain(self, ctx: Context, asked: AskDrain) -> None:
        """Decides from the board, answers at once, and tells the scheduler."""
        order: DrainWorker | ResumeWorker
        if asked.timeout_s is None:
            error, order = self.board.resume(asked.worker), ResumeWorker(worker=asked.worker)
        else:
            deadline = ctx.now() + asked.timeout_s
            error, order = self.board.drain(asked.worker, deadline), DrainWorker(worker=asked.worker, deadline=deadline)
        if error is None:
            ctx.post(SCHEDULER, order)
        ctx.post(asked.reply_to, DrainAnswer(worker=self.board.status(asked.worker), error=error))

    def _status(self) -> Status:
        return Status(running=len(self.ledger.requests), draining=self._draining, workers_down=self.board.down_names())


def _whole(request: str) -> Key:
    """Stands for all of a request."""
    return Key(request, 0, 0)


def _too_late(record: RequestRecord, now: float) -> ErrorInfo:
    """Which of its times a request has used up."""
    submit = record.submit
    if submit.timeout_s is not None and now >= record.submitted + submit.timeout_s:
        # Not 408: that says that the client was slow to send its request.
        message = f"The request was not complete within its {submit.timeout_s:g} s."
        return ErrorInfo(status=504, message=message, code="deadline_exceeded")
    limit_s = submit.progress_timeout_s if record.started else submit.queue_timeout_s
    what, code = ("next", "no_progress") if record.started else ("first", "queue_timeout")
    message = f"No {what} token within {limit_s:g} s."
    return ErrorInfo(status=503, message=message, code=code, retry_after_s=10)
