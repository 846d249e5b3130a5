"""The OpenAI client of a load test: prepares requests, streams them, and makes a record of each, whatever happens.

Raises nothing for what a server does: a refused connection, a 500 or a broken stream is a record with its reason.
"""

import asyncio
from typing import Any, Literal

import h11
import msgspec

from loadtest.attempt import Attempt, Limits, Prepared
from loadtest.connection import CONNECT_TIMEOUT_S, Address, Connection, Pool
from loadtest.record import Record
from loadtest.request import Api, Request
from loadtest.timing import HEADER as TIMING_HEADER

UsageMode = Literal["final", "each", "none"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The server, the model, and what every request says beside its prompt."""

    address: Address
    model: str
    api: Api = "completions"
    api_key: str | None = None
    temperature: float = 0.0
    usage: UsageMode = "final"
    ignore_eos: bool | None = None
    extra_body: dict[str, Any] = {}
    limits: Limits = Limits()
    timing: bool = False


def prepare(target: Target, request: Request) -> Prepared:
    """The request's bytes."""
    is_exact = request.exact_output if target.ignore_eos is None else target.ignore_eos
    body: dict[str, Any] = {"model": target.model} | _content(target.api, request)
    body |= {"max_tokens": request.max_tokens, "temperature": target.temperature, "stream": True}
    if is_exact:
        body["ignore_eos"] = True
    if target.usage != "none":
        body["stream_options"] = {"include_usage": True}
        if target.usage == "each":
            body["stream_options"]["continuous_usage_stats"] = True
    encoded = msgspec.json.encode(body | target.extra_body)
    return Prepared(request, _head(target, len(encoded)), encoded, is_exact)


def _content(api: Api, request: Request) -> dict[str, Any]:
    if api == "completions":
        return {"prompt": request.prompt}
    return {"messages": request.messages or [{"role": "user", "content": request.prompt}]}


def _head(target: Target, num_bytes: int) -> h11.Request:
    headers = [
        ("Host", target.address.authority),
        ("Content-Type", "application/json"),
        ("Accept", "text/event-stream"),
        ("Content-Length", str(num_bytes)),
    ]
    if target.api_key is not None:
        headers.append(("Authorization", f"Bearer {target.api_key}"))
    if target.timing:
        headers.append((TIMING_HEADER, "1"))
    path = "/v1/completions" if target.api == "completions" else "/v1/chat/completions"
    return h11.Request(method="POST", target=target.address.path + path, headers=headers)


class Client:
    """Streams prepared requests to one address over as many connections as there are requests at once."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self._pool, self._limits = Pool(address), limits
        self.in_flight = set[Attempt]()

    async def ask(
        self, index: int, prepared: Prepared, origin: float, due_at: float | None = None, cancel_s: float | None = None
    ) -> Record:
        """Streams one answer. `cancel_s` after it was sent, the client goes away."""
        attempt = Attempt(asyncio.get_running_loop(), prepared, self._limits, cancel_s)
        self.in_flight.add(attempt)
        try:
            await self._exchange(attempt)
        finally:
            self.in_flight.discard(attempt)
            attempt.end("interrupted")
        return attempt.record(index, due_at, origin)

    async def _exchange(self, attempt: Attempt) -> None:
        connection = self._pool.take_idle()
        if connection is not None:
            await self._send(attempt, connection, is_new=False)
        if attempt.is_stale:
            attempt.revive()
        if not attempt.is_over:
            connection = await self._open(attempt)
            if connection is not None:
                await self._send(attempt, connection, is_new=True)

    async def _send(self, attempt: Attempt, connection: Connection, is_new: bool) -> None:
        try:
            attempt.start(connection, is_new)
            await attempt.over
        finally:
            self._pool.give_back(connection)

    async def _open(self, attempt: Attempt) -> Connection | None:
        """A connection, unless the attempt ends first or there is none to be had."""
        opening = asyncio.ensure_future(self._pool.open())
        try:
            await asyncio.wait((opening, attempt.over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not opening.done():
                opening.cancel()
        if not opening.done():
            return None
        try:
            connection = opening.result()
        except TimeoutError:
            attempt.end("failed", f"cannot connect within {CONNECT_TIMEOUT_S:g} s")
        except OSError as error:
            attempt.end("failed", f"cannot connect: {error.strerror or error}")
        else:
            if not attempt.is_over:
                return connection
            connection.close()
        return None

    def interrupt(self) -> None:
        """Ends what is on its way."""
        for attempt in list(self.in_flight):
            attempt.end("interrupted")

    def close(self) -> None:
        """Cuts the idle connections."""
        self._pool.close()
