"""An operator who drains workers and takes them back while requests run."""

from typing import TYPE_CHECKING

from actors.context import Context
from actors.messages import GATEWAY, SCHEDULER, Address, AskDrain, DrainAnswer, Message, Reserve, StartPrefill

if TYPE_CHECKING:
    from tests.simulation.system import SimSystem

Order = tuple[float, str, float | None]
"""When, from the moment at which all workers are known, which one, and the seconds that its work gets; None takes it
back."""


class Operator:
    """Gives orders at their times, and sees what is placed on whom.

    `began_s` is when all workers were known, `quiet_at` when the last order was answered.
    """

    address = Address("client/operator")

    def __init__(self, system: "SimSystem", orders: tuple[Order, ...]) -> None:
        self._system = system
        self._orders = orders
        self.answers: list[DrainAnswer] = []
        self.began_s = 0.0
        self.quiet_at = 0.0
        self.placed: list[tuple[float, Address]] = []

    @property
    def done(self) -> bool:
        """Whether all orders have been answered."""
        return len(self.answers) == len(self._orders)

    async def run(self, ctx: Context) -> None:
        """Waits for all workers, then gives one order after the other."""
        while any(status.state == "down" for status in self._system.gateway.board.statuses()):
            await ctx.sleep(0.01)
        self.began_s = ctx.now()
        for at_s, worker, timeout_s in self._orders:
            await ctx.sleep(max(0.0, self.began_s + at_s - ctx.now()))
            await ctx.send(GATEWAY, AskDrain(worker=Address(worker), timeout_s=timeout_s, reply_to=ctx.address))
            answer = await ctx.receive()
            assert isinstance(answer, DrainAnswer)
            self.answers.append(answer)
            self.quiet_at = ctx.now()

    def observe(self, source: Address, target: Address, message: Message) -> None:
        """Sees every message of the system."""
        if source == SCHEDULER and isinstance(message, Reserve | StartPrefill):
            self.placed.append((self._system.carrier.loop.now, target))

    def placed_on(self, worker: str, after_s: float) -> int:
        """How often work was given to this worker later than so long after the beginning."""
        return sum(target == worker and at_s > self.began_s + after_s for at_s, target in self.placed)
