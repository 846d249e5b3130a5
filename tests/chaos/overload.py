"""`python -m tests.chaos.overload`: a server under several times the load that it can take, over real HTTP.

Measures the capacity, then offers a multiple of it, and prints what became of the requests, of the server's memory and
of lone requests afterwards. The slices are emulated, or with `--demo` real ones with the demo model. Exit code 1 when a
promise is broken; the limits of time hold on a quiet machine.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import msgspec

from tests.chaos.wire import Reply, ask, completion
from tests.e2e.server import ServerProcess, server_process

SETTLE_S = 5.0
"""This long after the last request was sent, service is as before."""

REFUSED_S = 0.05
PATIENT_S = 60.0
"""With real slices nothing at all is to be lost, however busy the machine is."""

ACCEPTED_SHARE = 0.99


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. `step_s` lasts a decode step of the emulated slice, twice that a chunk of prompt."""

    demo: bool = False
    step_s: float = 0.01
    rows: int = 8
    prompt_chars: int = 64
    answer_tokens: int = 64
    max_queued: int = 256
    queue_timeout_s: float = 5.0
    progress_timeout_s: float = 5.0
    capacity_s: float = 10.0
    overload_s: float = 60.0
    times: float = 3.0
    lone: int = 10
    seed: int = 0


class Outcome(msgspec.Struct, kw_only=True):
    """What came of it. `memory` pairs the time since the overload began with the server's resident bytes.

    `busy` is the processor time that the server took during the overload, per second, in cores.
    """

    options: Options
    before: list[Reply]
    capacity_per_s: float
    overload: list[Reply]
    memory: list[tuple[float, int]]
    busy: float
    after: list[Reply]

    @property
    def accepted(self) -> list[Reply]:
        """Requests of the overload that were not refused."""
        return [reply for reply in self.overload if not reply.refused]

    @property
    def refused(self) -> list[Reply]:
        """Requests of the overload that were."""
        return [reply for reply in self.overload if reply.refused]


def step_table(step_s: float, rows: int) -> dict[str, object]:
    """A slice whose steps last as long whatever is in them."""
    nothing = {"fixed_s": 0.0, "per_token_s": 0.0}
    return {
        "format": "runtime-step-times/1", "model": "even", "dtype": "float32", "platform": "cpu",
        "source": "estimated", "how": "by hand, for load tests",
        "max_context_tokens": 1024, "kv_bytes_per_token": 100, "pool_tokens": 65536,
        "prefill": {"tokens": [256], "starts": [0], "step_s": [[2 * step_s]]},
        "decode": {"rows": [rows], "contexts": [0], "step_s": [[step_s]]},
        "mixed": {"start": 0, "context": 0, "tokens": [256], "rows": [rows], "step_s": [[3 * step_s]]},
        "gather": nothing, "insert": nothing, "transfer": nothing,
    }  # fmt: skip


def server_flags(options: Options, folder: Path) -> list[str]:
    """Of `runtime up`."""
    flags = ["--topology", "prefill=1,decode=1", "--max-running-requests", str(options.rows)]
    flags += ["--max-queued-requests", str(options.max_queued), "--queue-timeout", str(options.queue_timeout_s)]
    flags += ["--progress-timeout", str(options.progress_timeout_s)]
    if not options.demo:
        path = folder / "even.json"
        path.write_text(json.dumps(step_table(options.step_s, options.rows)))
        flags += ["--engine", f"emulated:{path}"]
    return flags


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def processor_s(pid: int) -> float:
    """Time that a process has spent on processors, its own and the system's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Driver:
    """Sends the phases to one server. Prompts differ, so that no prefix is cached."""

    def __init__(self, options: Options, server: ServerProcess) -> None:
        self._options, self._model = options, server.name
        self._pid = server.pid
        self._port = int(server.url.rpartition(":")[2])
        self._random = Random(f"overload {options.seed}")

    async def run(self) -> Outcome:
        """All phases."""
        before = await self._lone()
        capacity_per_s = await self._capacity()
        used_s, begun = processor_s(self._pid), time.monotonic()
        overload, memory = await self._overload(self._options.times * capacity_per_s)
        busy = (processor_s(self._pid) - used_s) / (time.monotonic() - begun)
        after = await self._lone()
        return Outcome(
            options=self._options,
            before=before,
            capacity_per_s=capacity_per_s,
            overload=overload,
            memory=memory,
            busy=busy,
            after=after,
        )

    async def _ask(self) -> Reply:
        options = self._options
        prompt = "".join(self._random.choices("0123456789+-*/= ", k=options.prompt_chars))
        return await ask(
            self._port, completion(self._model, prompt, options.answer_tokens, self._random.getrandbits(32))
        )

    async def _lone(self) -> list[Reply]:
        return [await self._ask() for _ in range(self._options.lone)]

    async def _capacity(self) -> float:
        """Completed requests per second with a few more clients than rows, after a while of the same."""
        ends = list[float]()
        begun = time.monotonic()
        stop = begun + self._options.capacity_s

        async def client() -> None:
            while time.monotonic() < stop:
                if (await self._ask()).completed:
                    ends.append(time.monotonic())
                else:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(client() for _ in range(self._options.rows + 4)))
        first = begun + self._options.capacity_s / 4
        return len([end for end in ends if first <= end <= stop]) / (stop - first)

    async def _overload(self, per_s: float) -> tuple[list[Reply], list[tuple[float, int]]]:
        begun, memory = time.monotonic(), list[tuple[float, int]]()
        stop = begun + self._options.overload_s

        async def watch() -> None:
            while (now := time.monotonic()) < stop:
                memory.append((now - begun, resident_bytes(self._pid)))
                await asyncio.sleep(0.25)

        watching = asyncio.create_task(watch())
        sent, due = list[asyncio.Task[Reply]](), begun
        while (due := due + self._random.expovariate(per_s)) < stop:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent.append(asyncio.create_task(self._ask()))
        await watching
        await asyncio.sleep(max(0.0, stop + SETTLE_S - time.monotonic()))
        replies = [await task for task in sent]
        return replies, memory


def run(options: Options) -> Outcome:
    """Starts a server, drives it, and ends it. Raises AssertionError when it does not end as it should."""
    with tempfile.TemporaryDirectory() as folder, server_process(*server_flags(options, Path(folder))) as server:
        server.wait_until_serving()
        outcome = asyncio.run(Driver(options, server).run())
        server.stop()
    return outcome


def broken_promises(outcome: Outcome) -> list[str]:
    """What does not hold whatever the machine is busy with, one line each."""
    found, options = list[str](), outcome.options
    wrong = Counter(
        f"{reply.status} {reply.code or reply.lost or f'with {reply.tokens} tokens'}"
        for reply in [*outcome.before, *outcome.accepted, *outcome.after]
        if not (reply.completed and reply.tokens == options.answer_tokens)
    )
    late = wrong.pop("503 queue_timeout", 0)
    if late > (0 if options.demo else (1 - ACCEPTED_SHARE) * len(outcome.accepted)):
        found.append(f"{late} of {len(outcome.accepted)} accepted requests had no token in time")
    found += [f"{count} requests ended as {end}" for end, count in wrong.items()]
    odd = {str(reply.retry_after) for reply in outcome.refused if not 1 <= int(reply.retry_after or 0) <= 60}
    found += [f"a refusal says Retry-After: {value}" for value in sorted(odd)]
    codes = {reply.code for reply in outcome.refused} - {"queue_full", "queue_slow"}
    found += [f"a refusal has the code {code}" for code in codes]
    if not outcome.refused:
        found.append("nothing was refused: the load was none")
    return found


def main(arguments: list[str]) -> int:
    """Runs once and prints the table; 1 when a promise is broken."""
    from tests.chaos.overload_table import slow_promises, table

    parser = argparse.ArgumentParser(prog="python -m tests.chaos.overload", description=__doc__)
    parser.add_argument("--demo", action="store_true", help="real slices with the demo model")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--times", type=float, default=3.0, help="the capacity")
    parser.add_argument("--step-ms", type=float, default=10.0, help="a decode step of the emulated slice")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    options = Options(
        demo=given.demo, overload_s=given.seconds, times=given.times, step_s=given.step_ms / 1e3, seed=given.seed
    )
    if given.demo:
        options = msgspec.structs.replace(
            options, queue_timeout_s=PATIENT_S, progress_timeout_s=PATIENT_S, max_queued=32
        )
    outcome = run(options)
    print("\n".join(table(outcome)))  # noqa: T201
    broken = [*broken_promises(outcome), *slow_promises(outcome)]
    for line in broken:
        print(f"BROKEN: {line}")  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
