"""Actors without a slice that die at a message: the scheduler and the transfer actor of a real system."""

from collections.abc import Mapping
from typing import Any, cast

from actors.context import Actor, Context
from actors.messages import Message
from actors.supervisor import ActorSupervisor
from actors.system import System


class Killed(Exception):
    """A planned death."""


class Mortal:
    """A life that ends with its `number`-th message, which is lost with it."""

    def __init__(self, actor: Actor, number: int) -> None:
        self._actor = actor
        self._number = number

    async def run(self, ctx: Context) -> None:
        await self._actor.run(cast(Context, _Counted(ctx, self._number)))


class _Counted:
    """The actor's context, which counts what it receives."""

    def __init__(self, ctx: Context, number: int) -> None:
        self._ctx = ctx
        self._left = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    async def receive(self, timeout_s: float | None = None) -> Message | None:
        return self._count(await self._ctx.receive(timeout_s))

    def receive_nowait(self) -> Message | None:
        return self._count(self._ctx.receive_nowait())

    def _count(self, message: Message | None) -> Message | None:
        if message is not None:
            self._left -= 1
            if self._left == 0:
                raise Killed(type(message).__name__)
        return message


def make_mortal(system: System, deaths: Mapping[str, int]) -> dict[str, ActorSupervisor]:
    """Has the first life of each named actor end with that message; for a system that does not run yet."""
    supervisors = {spec.address: spec.actor for spec in system.specs if isinstance(spec.actor, ActorSupervisor)}
    struck = {name: supervisor for name, supervisor in supervisors.items() if name in deaths}
    assert struck.keys() == deaths.keys(), f"there are {list(supervisors)}"
    for name, supervisor in struck.items():
        supervisor.actor = Mortal(supervisor.actor, deaths[name])
    return {str(name): supervisor for name, supervisor in struck.items()}
