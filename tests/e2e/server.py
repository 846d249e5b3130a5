"""A server process for tests: started as a user starts it, watched through what it prints, ended within limits."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import Empty, Queue

from tests.runtime.command import environment

START_LIMIT_S = 240.0
EXIT_LIMIT_S = 60.0
_SERVING = re.compile(r"^Serving (?P<name>\S+) on (?P<url>http://\S+) ")


class ServerProcess:
    """`runtime up` with flags. Its output is collected by a thread, line by line."""

    def __init__(self, *flags: str, **extra: str) -> None:
        self.output: list[str] = []
        self._lines: Queue[str] = Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "runtime", "up", "--port", "0", *flags],
            env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.name = ""
        self.url = ""

    def wait_for(self, pattern: str, limit_s: float = START_LIMIT_S) -> re.Match[str]:
        """The first line from here on that matches; an error that shows the output if the process ends first."""
        while True:
            try:
                line = self._lines.get(timeout=limit_s)
            except Empty:
                raise AssertionError(f"no line like {pattern!r} in {limit_s} s:\n{self.text}") from None
            if line == "":
                raise AssertionError(f"ended without a line like {pattern!r}:\n{self.text}")
            if match := re.search(pattern, line):
                return match

    def wait_until_serving(self) -> None:
        """Reads on to the line that names the address."""
        match = self.wait_for(_SERVING.pattern)
        self.name, self.url = match["name"], match["url"]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the server."""
        os.kill(self._process.pid, number)

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._process.pid

    def stop(self) -> None:
        """Drains it; an error that shows the output when it does not end cleanly."""
        self.send(signal.SIGTERM)
        assert self.exit_code() == 0, self.text
        assert "Traceback" not in self.text, self.text

    def exit_code(self) -> int:
        """Waits for the end."""
        code = self._process.wait(timeout=EXIT_LIMIT_S)
        self._reader.join(timeout=EXIT_LIMIT_S)
        return code

    def close(self) -> None:
        """Ends the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(timeout=EXIT_LIMIT_S)
        self._reader.join(timeout=EXIT_LIMIT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def text(self) -> str:
        """All output so far."""
        return "\n".join(self.output)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line.rstrip("\n"))
            self._lines.put(line)
        self._lines.put("")


@contextlib.contextmanager
def server_process(*flags: str, **extra: str) -> Iterator[ServerProcess]:
    """A server that is gone afterwards, whatever happens in between."""
    server = ServerProcess(*flags, **extra)
    try:
        yield server
    finally:
        server.close()
