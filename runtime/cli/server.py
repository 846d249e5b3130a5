"""The HTTP server around the application: its port is taken before anything is loaded, signals are ours."""

import contextlib
import logging
import socket
from collections.abc import Iterator

import anyio
import uvicorn
from anyio.abc import TaskStatus
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from api.edge import request_id
from runtime.errors import UsageError

_RETRY_AFTER_S = 5
_BACKLOG = 2048
_CLOSING_S = 5
"""What finished responses get to reach their clients when the server stops."""


class Front:
    """The application once there is one; before that every request is answered with 503."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or, never used here, another kind of connection."""
        app = self.app or _starting(scope)
        await app(scope, receive, send)


class HttpServer(uvicorn.Server):
    """uvicorn that leaves signals alone and is started and stopped from a task group."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSING_S,
        )
        super().__init__(config)
        self._stopped = anyio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to `runtime.cli.signals`."""
        yield

    async def run_on(
        self, listener: socket.socket, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves until `stop`; `task_status` is told when connections are accepted."""
        self._report_started = task_status.started
        try:
            await self.serve(sockets=[listener])
        finally:
            self._stopped.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own start, then the news of it."""
        await super().startup(sockets)
        self._report_started()

    async def stop(self) -> None:
        """Closes the port, lets responses finish for a few seconds and cuts the rest off."""
        logger = logging.getLogger("uvicorn.error")
        level = logger.level
        # What is cut off is known and not an error worth a stack trace.
        logger.setLevel(logging.CRITICAL)
        try:
            self.should_exit = True
            await self._stopped.wait()
        finally:
            logger.setLevel(level)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError when the address is wrong, foreign or taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {host!r}: not an address of this machine; allowed: 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"--port {port} on {host}: {error.strerror or error}; "
            "allowed: a free port of this machine, or 0 to have one picked"
        ) from error
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """A URL that a client on this machine can use."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _starting(scope: Scope) -> JSONResponse:
    headers = {"x-request-id": request_id(scope)}
    if scope["path"] == "/live":
        return JSONResponse({"status": "live"}, headers=headers)
    if scope["path"] in ("/health", "/ready"):
        return JSONResponse({"status": "starting"}, status_code=503, headers=headers)
    message = "The model is still being loaded; GET /health answers 200 once it is ready."
    error = {"message": message, "type": "server_error", "param": None, "code": "starting"}
    return JSONResponse({"error": error}, status_code=503, headers=headers | {"Retry-After": str(_RETRY_AFTER_S)})
