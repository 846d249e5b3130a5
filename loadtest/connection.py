"""One HTTP/1.1 connection as an asyncio protocol over h11, and the pool of those that are idle.

The bytes of an answer are stamped when the socket hands them over, before any task wakes up. This is why it is not
httpx, which also takes several times the processor time for a short stream: at a few hundred requests per second that
would be schedule lag. Knows nothing about events or tokens.
"""

import asyncio
from typing import Protocol, cast
from urllib.parse import urlsplit

import h11
import httpx
import msgspec

from loadtest.errors import UsageError

CONNECT_TIMEOUT_S = 10.0
_CLOSED = "the server closed the connection"


class Address(msgspec.Struct, frozen=True):
    """A server's origin, and the path before `/v1`."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """Of `http://host:port`, with or without `/v1`. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(f"{url!r}: allowed: a server's address, such as http://127.0.0.1:8000")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Address(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path)


class Listener(Protocol):
    """Told about the one exchange that a connection is in. Times are the event loop's."""

    def on_response(self, status: int, content_type: str, at_s: float) -> None:
        """The answer's head."""

    def on_body(self, data: bytes, at_s: float) -> None:
        """A piece of its body."""

    def on_end(self, at_s: float) -> None:
        """The answer is complete."""

    def on_lost(self, reason: str, is_unanswered: bool) -> None:
        """It will not be: the connection is gone or speaks no HTTP. Nothing more is told."""


class Connection(asyncio.BufferedProtocol):
    """Carries one exchange at a time.

    Reads into one buffer for all: asyncio's other way asks for 256 KiB of fresh memory before every read.
    """

    _BUFFER = memoryview(bytearray(1 << 16))

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._http = loop, h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._listener: Listener | None = None
        self._answered = False

    @property
    def is_reusable(self) -> bool:
        """Whether another request can go over it."""
        states = (self._http.our_state, self._http.their_state)
        is_open = self._transport is not None and not self._transport.is_closing()
        return is_open and self._listener is None and states in ((h11.IDLE, h11.IDLE), (h11.DONE, h11.DONE))

    def send(self, request: h11.Request, body: bytes, listener: Listener) -> None:
        """Starts an exchange; everything else is told to the listener."""
        assert self._transport is not None
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        self._listener, self._answered = listener, False
        head = self._http.send(request) or b""
        self._http.send(h11.Data(data=body))
        self._http.send(h11.EndOfMessage())
        self._transport.write(head + body)

    def close(self) -> None:
        """Cuts the connection; the listener is told nothing more."""
        self._listener = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it

    def get_buffer(self, sizehint: int) -> memoryview:
        """asyncio's. What was read is used up before anybody reads again."""
        return self._BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """asyncio's."""
        at_s = self._loop.time()
        try:
            self._http.receive_data(bytes(self._BUFFER[:nbytes]))
            self._tell_events(at_s)
        except h11.RemoteProtocolError as error:
            self._lose(f"not HTTP/1.1: {error}")

    def eof_received(self) -> None:
        """asyncio's. An answer without a length ends here."""
        try:
            self._http.receive_data(b"")
            self._tell_events(self._loop.time())
        except h11.RemoteProtocolError:
            self._lose(_CLOSED)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        self._lose(f"connection lost: {exc}" if exc else _CLOSED)

    def _tell_events(self, at_s: float) -> None:
        while (listener := self._listener) is not None:
            event = self._http.next_event()
            if isinstance(event, h11.Data):
                listener.on_body(bytes(event.data), at_s)
            elif isinstance(event, h11.Response):
                self._answered = True
                kind = next((value for name, value in event.headers if name == b"content-type"), b"")
                listener.on_response(event.status_code, kind.decode("latin-1"), at_s)
            elif isinstance(event, h11.EndOfMessage):
                self._listener = None
                listener.on_end(at_s)
            elif isinstance(event, h11.ConnectionClosed):
                self._lose(_CLOSED)
            elif event in (h11.NEED_DATA, h11.PAUSED):
                return

    def _lose(self, reason: str) -> None:
        listener, is_unanswered = self._listener, not self._answered
        self.close()
        if listener is not None:
            listener.on_lost(reason, is_unanswered)


class Pool:
    """Opens connections and keeps those that are idle. As many are open as there are requests at once."""

    def __init__(self, address: Address) -> None:
        self._address, self._idle = address, list[Connection]()
        self._tls = httpx.create_ssl_context() if address.scheme == "https" else None

    def take_idle(self) -> Connection | None:
        """One that an earlier request left open."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.close()
        return None

    async def open(self) -> Connection:
        """A new one. Raises OSError, and TimeoutError after CONNECT_TIMEOUT_S."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                lambda: Connection(loop), self._address.host, self._address.port, ssl=self._tls
            )
        return connection

    def give_back(self, connection: Connection) -> None:
        """For the next request, if it can take one."""
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Cuts every idle connection."""
        while self._idle:
            self._idle.pop().close()
