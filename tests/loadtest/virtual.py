"""An event loop whose clock moves only when there is nothing to do, and whose connections never leave the process.

Delays of a scripted server are then exact, whatever the machine is doing, and take no time. Both ends of a connection
are a socket pair: what one end has sent, the other can read at once.
"""

import asyncio
import selectors
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
Serve = Callable[[], asyncio.Protocol] | dict[int, Any]
"""What makes the far end of every connection, or one per port."""


class _Selector(selectors.DefaultSelector):
    """Waits by moving the clock."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("nothing will ever happen again")
        if not events and timeout is not None:
            self.now += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Connects to `serve()` instead of an address, or to the one of its port; None refuses connections."""

    def __init__(self, serve: Serve | None) -> None:
        self._virtual, self.serve = _Selector(), serve
        self.opened = list[Any]()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def jump(self, seconds: float) -> None:
        """As if this process had not been scheduled for a while."""
        self._virtual.now += seconds

    async def create_connection(self, factory: Any, *address: Any, **options: Any) -> Any:  # type: ignore[override]
        serve = self.serve.get(address[1]) if isinstance(self.serve, dict) else self.serve
        if serve is None:
            raise ConnectionRefusedError(111, "Connection refused")
        near, far = socket.socketpair()
        served, _ = await super().create_connection(serve, sock=far)
        transport, protocol = await super().create_connection(factory, sock=near)
        self.opened += [served, transport]
        return transport, protocol

    async def close_connections(self) -> None:
        """All of them, and then whatever their ends had still to do."""
        for transport in self.opened:
            transport.abort()
        await asyncio.sleep(1.0)


def run_virtual(main: Coroutine[Any, Any, T], serve: Serve | None) -> T:
    """Runs until `main` is done, and closes what it left open."""
    loop = VirtualLoop(serve)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        try:
            return runner.run(main)
        finally:
            runner.run(loop.close_connections())
