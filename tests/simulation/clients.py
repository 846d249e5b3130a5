"""Simulated clients: each submits one request, keeps what it is told, and may leave or read too slowly."""

from actors.context import Context
from actors.messages import (
    GATEWAY,
    Address,
    Completed,
    Delta,
    Disconnect,
    Failed,
    MailboxClass,
    Message,
    Submit,
    TokensSampled,
)
from actors.wiring import CLIENT_CAPACITY
from runtime.text_stream import TextOptions
from tests.simulation.loop import Loop, Waiter
from tests.simulation.workload import PlannedRequest

_SLOW_ROOM = 3
_SLOW_PAUSE_S = 3.0


class SimClient:
    """One client. `events` pairs each message with its time; `left` tells that it went away on its own.

    `terminals` are the terminal records among them.
    """

    def __init__(self, plan: PlannedRequest, loop: Loop) -> None:
        self.plan = plan
        self.address = Address(f"client/{plan.request}")
        self.events: list[tuple[float, Delta | Completed | Failed]] = []
        self.terminals: list[Completed | Failed] = []
        self.submitted_s: float | None = None
        self.left = False
        self.cut_off = False
        self._leave = Waiter(loop)
        self._seen = 0

    @property
    def capacity(self) -> dict[MailboxClass, int]:
        """Room for everything, or for hardly anything."""
        room = self.plan.num_choices * self.plan.params.max_tokens + 2
        if self.plan.behaviour == "slow":
            room = _SLOW_ROOM
        return {**CLIENT_CAPACITY, "token": room}

    @property
    def done(self) -> bool:
        """Whether nothing more will happen to this client."""
        return self.left or self.cut_off or bool(self.terminals)

    def observe(self, source: Address, target: Address, message: Message) -> None:
        """Sees every message of the system; one of them is the moment to leave."""
        kind, count = self.plan.leave_at
        if type(message).__name__ != kind or not concerns(message, self.plan.request):
            return
        self._seen += 1
        if self._seen == count:
            self._leave.resolve()

    async def run(self, ctx: Context) -> None:
        """Submits at its time and reads on, also behind the terminal record, until it leaves."""
        plan = self.plan
        await ctx.sleep(plan.arrival_s)
        ctx.spawn("read", lambda: self._read(ctx))
        await ctx.send(
            GATEWAY,
            Submit(
                request=plan.request,
                client=ctx.address,
                prompt=plan.prompt,
                params=plan.params,
                num_choices=plan.num_choices,
                text=TextOptions(stop=plan.stop, min_tokens=plan.params.min_tokens),
                cache_salt=plan.cache_salt,
                queue_timeout_s=plan.queue_timeout_s,
                progress_timeout_s=plan.progress_timeout_s,
                priority=plan.priority,
                timeout_s=plan.timeout_s,
            ),
        )
        self.submitted_s = ctx.now()
        await self._leave.wait()
        await ctx.send(GATEWAY, Disconnect(request=plan.request))
        self.left = True

    async def _read(self, ctx: Context) -> None:
        while not self.left:
            message = await ctx.receive()
            assert isinstance(message, Delta | Completed | Failed), message
            self.events.append((ctx.now(), message))
            if not isinstance(message, Delta):
                self.terminals.append(message)
            if self.plan.behaviour == "slow":
                await ctx.sleep(_SLOW_PAUSE_S)


def concerns(message: Message, request: str) -> bool:
    """Whether the message is about this request."""
    if isinstance(message, TokensSampled):
        return any(token.key.request == request for token in message.tokens)
    key = getattr(message, "key", None)
    return (key.request if key is not None else getattr(message, "request", None)) == request
