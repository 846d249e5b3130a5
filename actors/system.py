"""A running system on the in-memory carrier, and the client through which the HTTP edge uses it."""

import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio

from actors.client import ClientEvent, GenerateRequest
from actors.gateway import GatewayActor, TextStreamFactory
from actors.memory import Inbox, MemoryCarrier
from actors.messages import (
    GATEWAY,
    SCHEDULER,
    Address,
    AskDrain,
    Completed,
    Delta,
    Disconnect,
    Drain,
    DrainAnswer,
    Drained,
    ErrorInfo,
    Failed,
    ForgetPrefixes,
    GetStatus,
    Message,
    PrefixesForgotten,
    Status,
    Submit,
    WorkerDown,
    WorkerStatus,
)
from actors.placement import has_path
from actors.supervisor import WorkerSupervisor
from actors.wiring import CLIENT_CAPACITY, ActorSpec, SystemOptions, wire
from runtime.constraints import Constraints
from runtime.engine import Engine, KvMover
from runtime.topology import Topology

logger = logging.getLogger(__name__)

_STATUS_TIMEOUT_S = 5.0


class System:
    """Actors that run. `failure` is set once an actor died that the system cannot do without."""

    def __init__(self, carrier: MemoryCarrier, specs: list[ActorSpec], topology: Topology) -> None:
        self.carrier = carrier
        self.specs = specs
        self.topology = topology
        self.failure: ErrorInfo | None = None
        self._gateway = next(spec.actor for spec in specs if isinstance(spec.actor, GatewayActor))
        self._failed = anyio.Event()
        self._calls = itertools.count()

    @property
    def client(self) -> "System":
        """The gateway as the API sees it (`actors.client.EngineClient`)."""
        return self

    @asynccontextmanager
    async def stream(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[ClientEvent]]:
        """Submits the request; leaving before its terminal event aborts it everywhere."""
        address = Address(f"client/{request.request}")
        inbox = self.carrier.open(address, CLIENT_CAPACITY)
        events = _Events(inbox, request.request, self)
        try:
            if self.failure is None and not self.carrier.post(GATEWAY, _submit(request, address)):
                error = ErrorInfo(status=429, message="The gateway has no room.", code="queue_full", retry_after_s=5)
                inbox.put(Failed(request=request.request, error=error))
            yield events
        finally:
            self.carrier.close(address)
            if not events.ended:
                self.carrier.post(GATEWAY, Disconnect(request=request.request))

    async def status(self) -> Status:
        """The gateway's counts; a system without a gateway is drained of everything."""
        message = await self._ask(lambda reply_to: GetStatus(reply_to=reply_to), _STATUS_TIMEOUT_S)
        return message if isinstance(message, Status) else Status(running=0, draining=True, workers_down=(GATEWAY,))

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for those in flight; False when the time was not enough."""
        return isinstance(await self._ask(lambda reply_to: Drain(reply_to=reply_to), timeout_s), Drained)

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The workers' states as the gateway knows them, without asking anybody."""
        return self._gateway.board.statuses()

    async def drain_worker(self, worker: Address, timeout_s: float) -> DrainAnswer | None:
        """Orders that the worker gets nothing new and what runs there after the time is moved."""
        return await self._ask_drain(worker, timeout_s)

    async def resume_worker(self, worker: Address) -> DrainAnswer | None:
        """Takes a drain back."""
        return await self._ask_drain(worker, None)

    async def _ask_drain(self, worker: Address, timeout_s: float | None) -> DrainAnswer | None:
        answer = await self._ask(
            lambda reply_to: AskDrain(worker=worker, timeout_s=timeout_s, reply_to=reply_to), _STATUS_TIMEOUT_S
        )
        return answer if isinstance(answer, DrainAnswer) else None

    async def forget_prefixes(self) -> dict[Address, int | None]:
        """Empties all prefix caches of pages that nobody uses: how many pages by worker, None without an answer."""
        workers = [Address(part.name) for part in self.topology.slices]
        pages: dict[Address, int | None] = dict.fromkeys(workers)
        address = Address(f"client/ask-{next(self._calls)}")
        inbox = self.carrier.open(address, CLIENT_CAPACITY)
        try:
            asked = [worker for worker in workers if self.carrier.post(worker, ForgetPrefixes(reply_to=address))]
            with anyio.move_on_after(_STATUS_TIMEOUT_S):
                for _ in asked:
                    answer = await inbox.take_within(None)
                    if isinstance(answer, PrefixesForgotten):
                        pages[answer.worker] = answer.num_pages
            return pages
        finally:
            self.carrier.close(address)

    async def _ask(self, question: Callable[[Address], Message], timeout_s: float) -> Message | None:
        address = Address(f"client/ask-{next(self._calls)}")
        inbox = self.carrier.open(address, CLIENT_CAPACITY)
        try:
            if self.failure is not None or not self.carrier.post(GATEWAY, question(address)):
                return None
            return await inbox.take_within(timeout_s)
        finally:
            self.carrier.close(address)

    async def run(self, spec: ActorSpec) -> None:
        """Runs one actor. A worker's supervisor may give up; any other end is the system's."""
        try:
            await self.carrier.run_actor(spec.address, spec.actor)
            reason = "returned"
        except* Exception as errors:
            logger.exception("%s failed", spec.address)
            reason = "; ".join(str(error) for error in errors.exceptions)
        if isinstance(spec.actor, WorkerSupervisor):
            self._give_up(spec.address, spec.actor.epoch, reason)
        else:
            self.fail(ErrorInfo(status=500, message=f"{spec.address} failed: {reason}", code="internal_error"))

    def _give_up(self, worker: Address, epoch: int, reason: str) -> None:
        """A worker is not coming back. Without a path from prompt to answer, neither is the system."""
        self.carrier.bury(worker)
        down = WorkerDown(worker=worker, epoch=epoch, reason=reason, final=True)
        for address in (GATEWAY, SCHEDULER):
            self.carrier.post(address, down)
        alive = [part for part in self.topology.slices if part.name in self.carrier.inboxes]
        if not has_path(part.role for part in alive):
            lost = ", ".join(part.name for part in self.topology.slices if part not in alive)
            message = f"No worker is left to serve this: {lost} failed."
            self.fail(ErrorInfo(status=503, message=message, code="no_workers"))

    def fail(self, error: ErrorInfo) -> None:
        """Answers every client that waits, and from now on each that comes: nothing will come any more."""
        self.failure = error
        self._failed.set()
        for address in [name for name in self.carrier.inboxes if name.startswith("client/")]:
            self.carrier.post(address, Failed(request=address.removeprefix("client/"), error=error))

    async def until_failure(self) -> ErrorInfo:
        """Waits until the system cannot serve any more and says why."""
        await self._failed.wait()
        assert self.failure is not None
        return self.failure


class _Events:
    """The event stream of one request; it ends after its terminal event."""

    def __init__(self, inbox: Inbox, request: str, system: System) -> None:
        self._inbox = inbox
        self._request = request
        self._system = system
        self.ended = False

    def __aiter__(self) -> AsyncIterator[ClientEvent]:
        return self

    async def __anext__(self) -> ClientEvent:
        if self.ended:
            raise StopAsyncIteration
        event = self._inbox.take() or self._without_waiting() or await self._inbox.take_within(None)
        assert isinstance(event, Delta | Completed | Failed), event
        self.ended = not isinstance(event, Delta)
        return event

    def _without_waiting(self) -> Failed | None:
        """The terminal event of a stream that gets none from the gateway."""
        if self._system.failure is not None:
            return Failed(request=self._request, error=self._system.failure)
        if self._inbox.mailbox.overflowed:
            message = "The client did not read its stream."
            return Failed(request=self._request, error=ErrorInfo(status=500, message=message, code="slow_client"))
        return None


def _submit(request: GenerateRequest, client: Address) -> Submit:
    return Submit(
        request=request.request,
        client=client,
        prompt=request.prompt,
        params=request.params,
        num_choices=request.num_choices,
        text=request.text,
        cache_salt=request.cache_salt,
        priority=request.priority,
        queue_timeout_s=request.queue_timeout_s,
        progress_timeout_s=request.progress_timeout_s,
        timeout_s=request.timeout_s,
    )


@asynccontextmanager
async def running_system(
    engines: Mapping[str, Engine],
    topology: Topology,
    mover: KvMover,
    make_text: TextStreamFactory,
    options: SystemOptions,
    constraints: Constraints | None = None,
) -> AsyncIterator[System]:
    """Starts the actors of a topology on this event loop; leaving stops them at once (drain first).

    Without `constraints` requests that want some are failed.
    """
    carrier = MemoryCarrier()
    specs = wire(engines, topology, mover, make_text, options, constraints=constraints)
    for spec in specs:
        carrier.open(spec.address, spec.capacity)
    system = System(carrier, specs, topology)
    async with anyio.create_task_group() as group:
        for spec in specs:
            group.start_soon(system.run, spec, name=spec.address)
        try:
            yield system
        finally:
            message = "The server is shutting down."
            system.fail(ErrorInfo(status=503, message=message, code="shutting_down", retry_after_s=30))
            group.cancel_scope.cancel()
            carrier.close_lanes()
