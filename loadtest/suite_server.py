"""The project's own server as a child process of the suite: `runtime up` on a port that the system chooses."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtest.errors import UsageError

READY_S, POLL_S, STOP_S = 600.0, 0.1, 30.0
_SERVING = re.compile(r"^Serving \S+ on (http://\S+)", re.MULTILINE)


@contextmanager
def started(arguments: Sequence[str], log: Path) -> Iterator[str]:
    """The server's address once it serves; it is ended with the block. Raises UsageError with the log's last lines."""
    command = [sys.executable, "-m", "runtime", "up", "--host", "127.0.0.1", "--port", "0", *arguments]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield _address(server, log)
    finally:
        _stop(server)


def make_checkpoint(shape: str, folder: Path) -> None:
    """A model folder of that shape, unless it is there already. Raises UsageError with what the program said."""
    if (folder / "config.json").is_file():
        return
    command = [sys.executable, "-m", "runtime.bench.checkpoint", shape, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise UsageError(f"no model folder of shape {shape}: {_last_lines(done.stdout)}")


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    until_s = time.monotonic() + READY_S
    while time.monotonic() < until_s:
        is_over = server.poll() is not None
        said = log.read_text(errors="replace")
        if found := _SERVING.search(said):
            return found[1]
        if is_over:
            raise UsageError(f"the server ended with code {server.returncode}: {_last_lines(said)}")
        time.sleep(POLL_S)
    raise UsageError(f"the server did not serve within {READY_S:.0f} s: {_last_lines(log.read_text(errors='replace'))}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:])
