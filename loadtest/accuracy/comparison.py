"""Whether an answer is the expected one: the text in its box, or else a real comparator's opinion, within a limit.

The comparator computes with what a model wrote, which can take for ever or all memory. So it lives in a process of its
own, which is ended and replaced when it takes too long.
"""

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from loadtest.errors import UsageError

Grade = Literal["right", "wrong", "unboxed", "unparsed", "undecided"]
"""All but the first count as wrong. `unboxed`: there is no box; `unparsed`: the comparator cannot read what is in it;
`undecided`: it did not come to an end.
"""

BOX = "\\boxed{"
LIMIT_S = 10.0
START_LIMIT_S = 120.0
WORKER = Path(__file__).with_name("comparator.py")


def boxed(text: str) -> str | None:
    """What stands inside the last `\\boxed{}`, braces matched; None when there is none."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(BOX)
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end]
    return None


def is_same_text(found: str, expected: str) -> bool:
    """White space aside."""
    return "".join(found.split()) == "".join(expected.split())


def check_installed() -> None:
    """Raises UsageError when there is no comparator."""
    if find_spec("math_verify") is None:
        raise UsageError("the comparator is not installed; allowed: after `pip install math-verify`, or '.[eval]'")


class Comparison:
    """Used as `async with`; grades one answer after another."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._worker: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "Comparison":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def grade(self, text: str, expected: str) -> Grade:
        """Of a whole answer. Raises UsageError when the comparator cannot even be started."""
        found = boxed(text)
        if found is None:
            return "unboxed"
        if is_same_text(found, expected):
            return "right"
        worker = self._worker or await self._start()
        assert worker.stdin is not None
        try:
            worker.stdin.write(msgspec.json.encode((expected, found, self._limit_s)) + b"\n")
            await worker.stdin.drain()
        except ConnectionError:
            line = None
        else:
            line = await self._read(worker, self._limit_s)
        if not line:
            await self._end()
            return "undecided"
        grade: Grade = msgspec.json.decode(line, type=Grade)
        return grade

    async def _start(self) -> asyncio.subprocess.Process:
        # A session of its own: Ctrl-C is for the command, which ends its worker itself.
        self._worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(WORKER)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        if not await self._read(self._worker, START_LIMIT_S):
            await self._end()
            raise UsageError(f"the comparator does not start: `python {WORKER}` says why")
        return self._worker

    async def _read(self, worker: asyncio.subprocess.Process, limit_s: float) -> bytes | None:
        assert worker.stdout is not None
        try:
            return await asyncio.wait_for(worker.stdout.readline(), limit_s)
        except TimeoutError:
            return None

    async def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        if worker.returncode is None:
            worker.kill()
        await worker.wait()
