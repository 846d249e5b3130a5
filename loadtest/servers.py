"""Servers that a comparison starts itself: child processes, one per topology, on free ports of this machine.

Whatever ends the command (its end, Ctrl-C, SIGTERM, SIGHUP, an exception) ends them too: SIGTERM first, and after a
grace SIGKILL. Each is the leader of a process group of its own, so that Ctrl-C on the terminal reaches only this
process, which saves first. Their output goes to a log file each.
"""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import httpx
import msgspec

from loadtest.errors import UsageError

HOST = "127.0.0.1"
POLL_S = 0.1
TELL_S = 10.0
HEALTH_TIMEOUT_S = 5.0
ENDING = (signal.SIGTERM, signal.SIGHUP)
GRACE_S = 40.0
"""From SIGTERM to SIGKILL: a little more than a server's own time to drain."""

LAST_LINES = 5
MAX_LOG_BYTES = 4096
_UNSAFE = re.compile(r"[^\w=,.-]+")


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How servers are started: the command, what follows `--topology` and `--port`, and where logs go."""

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    timeout_s: float
    log_stem: Path


class Server:
    """One running child."""

    def __init__(self, name: str, topology: str) -> None:
        self.name, self._topology, self._port = name, topology, _free_port()
        self.url, self.log = f"http://{HOST}:{self._port}", Path()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, launch: Launch) -> None:
        """Raises UsageError when there is no such command."""
        self.log = launch.log_stem.with_name(f"{launch.log_stem.name}-{_UNSAFE.sub('_', self.name)}.log")
        own = ["--topology", self._topology, "--host", HOST, "--port", str(self._port)]
        try:
            with self.log.open("wb") as output, _later(signal.SIGINT, *ENDING):
                self._process = subprocess.Popen(
                    [*launch.command, *own, *launch.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            said = error.strerror or error
            raise UsageError(f"--server-command {launch.command[0]!r}: cannot be started: {said}") from None

    def why_dead(self) -> str | None:
        """That it ended, with the end of its log; None while it runs."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the server of {self.name} {how}; {self.last_words()}"

    def last_words(self) -> str:
        """The log's path and its last lines."""
        try:
            with self.log.open("rb") as output:
                output.seek(max(0, self.log.stat().st_size - MAX_LOG_BYTES))
                lines = output.read().decode("utf-8", "replace").split("\n")
        except OSError as error:
            return f"its log {self.log}: {error.strerror or error}"
        told = [line.strip() for line in lines if line.strip()][-LAST_LINES:]
        return f"its log {self.log} ends with: {' | '.join(told) or '(nothing)'}"

    def wait_until_ready(self, timeout_s: float, tell: Callable[[str], None]) -> None:
        """Asks `/health` until it says 200. Raises UsageError when the server ends first, or takes too long.

        Signals are acted on between two questions: an exception that one raises in the midst of a library may get lost.
        """
        begun, told_at = time.monotonic(), time.monotonic()
        with _later(signal.SIGINT, *ENDING) as came, httpx.Client(trust_env=False, timeout=HEALTH_TIMEOUT_S) as client:
            tell(f"{self.name}: starting on {self.url}, log in {self.log}")
            while not came and (state := _health(client, self.url)) is not None:
                if (reason := self.why_dead()) is not None:
                    raise UsageError(reason)
                now = time.monotonic()
                if now - begun > timeout_s:
                    raise UsageError(
                        f"the server of {self.name} is not ready after {timeout_s:g} s (--start-timeout): "
                        f"{state}; {self.last_words()}"
                    )
                if now - told_at >= TELL_S:
                    told_at = now
                    tell(f"{self.name}: {now - begun:.0f} s, {state}")
                time.sleep(POLL_S)
        tell(f"{self.name}: ready after {time.monotonic() - begun:.1f} s")

    def ask_to_end(self) -> None:
        """SIGTERM."""
        if self._process is not None:
            self._process.terminate()

    def end(self, deadline: float) -> None:
        """Waits until `deadline` (of `time.monotonic`), then kills it and what it started."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """At once, with what it started; nothing when it has ended."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def running(topologies: dict[str, str], launch: Launch, tell: Callable[[str], None]) -> Iterator[list[Server]]:
    """A ready server per entry, name to topology, started one after another; all have ended when the block has.

    While it lasts SIGTERM and SIGHUP raise SystemExit with 143 and 129, as Ctrl-C raises KeyboardInterrupt. Raises
    UsageError when one does not start.
    """
    servers, before = list[Server](), {number: signal.signal(number, _exit) for number in ENDING}
    try:
        for name, topology in topologies.items():
            servers.append(Server(name, topology))
            servers[-1].start(launch)
            servers[-1].wait_until_ready(launch.timeout_s, tell)
        yield servers
    finally:
        _end_all(servers)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _later(*numbers: signal.Signals) -> Iterator[Sequence[int]]:
    """Signals of the block are acted on behind it, so that no child is born that nobody knows of.

    Yields those that came. Signals that are ignored stay so.
    """
    came = list[int]()
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in heard}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for late in came:
            signal.raise_signal(late)


def _end_all(servers: Sequence[Server]) -> None:
    """A second Ctrl-C while they end kills them at once."""
    deadline = time.monotonic() + GRACE_S
    for server in servers:
        server.ask_to_end()
    try:
        for server in servers:
            server.end(deadline)
    finally:
        for server in servers:
            server.kill()


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _health(client: httpx.Client, url: str) -> str | None:
    """What is missing; None when it is ready."""
    try:
        response = client.get(f"{url}/health")
    except httpx.HTTPError:
        return "nothing answers yet"
    return None if response.status_code == 200 else f"/health says {response.status_code}: {response.text[:200]}"


def _free_port() -> int:
    """One that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
