"""Servers under load: runs phases one after another, lets the terminal watch, and stops all of it on a signal."""

import asyncio
import gc
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec
from rich.console import Console

from loadtest.arrivals import schedule
from loadtest.attempt import Limits, Prepared
from loadtest.client import Client, Target, prepare
from loadtest.connection import Address, parse_address
from loadtest.datasets import Dataset, api_of
from loadtest.driver import Phase, Plan
from loadtest.errors import UsageError
from loadtest.live import watch
from loadtest.record import Record
from loadtest.request import Request
from loadtest.server import inspect
from loadtest.settings import LoadSettings

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""What they end a run with; what was measured is saved first."""


class Load(msgspec.Struct, frozen=True):
    """Requests of the data set, and when to send them, before it is known to whom."""

    requests: tuple[Request, ...]
    plan: Plan


class Workload(msgspec.Struct, frozen=True):
    """Requests ready to send, to whom, and when."""

    target: Target
    requests: tuple[Prepared, ...]
    plan: Plan


class Bench:
    """What stays the same between the phases of a command: the server, the model and the data."""

    def __init__(self, settings: LoadSettings, dataset: Dataset, target: Target, server: dict[str, Any]) -> None:
        self._settings, self.dataset, self.target, self.server = settings, dataset, target, server

    def warmup(self, count: int | None = None) -> Workload:
        """Requests of their own, as many at a time as there are, up to a closed loop's concurrency."""
        return self.prepare(self.take_warmup(count))

    def load(self, rate: float | None = None, count: int | None = None, seed: int | None = None) -> Workload:
        """As `take`, ready to send."""
        return self.prepare(self.take(rate, count, seed))

    def take_warmup(self, count: int | None = None) -> Load:
        """As `warmup`, for any server."""
        requests = self.dataset.warmup(self._settings.warmup if count is None else count)
        return Load(tuple(requests), Plan(concurrency=self._settings.kept_busy))

    def take(self, rate: float | None = None, count: int | None = None, seed: int | None = None) -> Load:
        """The next requests of the data set, at the settings' arrivals or at another rate. Raises UsageError."""
        settings = self._settings if rate is None else msgspec.structs.replace(self._settings, rate=rate)
        seed = settings.seed if seed is None else seed
        process, duration_s = settings.arrival_process(), settings.duration
        requests = self.dataset.take(count or settings.count(self.dataset.default_count))
        arrivals_s = None if process is None else schedule(process, requests, seed)
        if settings.arrivals == "trace" and arrivals_s is not None and duration_s is not None:
            arrivals_s = [at_s for at_s in arrivals_s if at_s <= duration_s]
            requests = requests[: len(arrivals_s)]
        plan = Plan(
            arrivals_s=None if arrivals_s is None else tuple(arrivals_s),
            concurrency=settings.concurrency_of(len(requests)),
            duration_s=duration_s,
            cancel_fraction=settings.cancel,
            cancel_after_s=settings.cancel_after,
            seed=seed,
        )
        return Load(tuple(requests), plan)

    def prepare(self, load: Load) -> Workload:
        """Makes a load's bytes for this server."""
        return Workload(self.target, tuple(prepare(self.target, request) for request in load.requests), load.plan)


def open_bench(settings: LoadSettings, dataset: Dataset | None = None) -> Bench:
    """Reads the data, unless that was done, and asks the server. Raises UsageError."""
    settings.check()
    address = parse_address(settings.url)
    dataset = dataset or open_dataset(settings)
    api = api_of(dataset.first, settings.api)
    model, server = inspect(address, settings.api_key, settings.model)
    return Bench(settings, dataset, settings.target(address, model, api), server | {"model": model, "api": api})


def open_dataset(settings: LoadSettings) -> Dataset:
    """The settings' data. Raises UsageError."""
    return Dataset(settings.data, settings.shape(), str(settings.seed))


class Session:
    """Used inside a running loop, as `async with`. `exit_code` is set when a signal ended it."""

    def __init__(self, console: Console | None) -> None:
        self._clients = dict[tuple[Address, Limits], Client]()
        self._console = console
        self._phase: Phase | None = None
        self._before = dict[int, Any]()
        self.exit_code: int | None = None

    async def __aenter__(self) -> "Session":
        for number, code in SIGNALS.items():
            self._before[number] = signal.getsignal(number)
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, code)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, self._before[number] or signal.SIG_DFL)

    async def run(self, workload: Workload, name: str, stop_if: Callable[[Record], str | None] | None = None) -> Phase:
        """A finished phase. After a signal nothing more is sent."""
        client = self._client(workload.target)
        phase = self._phase = Phase(client, workload.requests, workload.plan, stop_if)
        if self.exit_code is not None:
            phase.stop("interrupted")
            return phase
        # What was prepared lives until the end: the collector need not look at it between two chunks.
        gc.freeze()
        watcher = None if self._console is None else asyncio.create_task(watch(phase, name, self._console))
        try:
            await phase.run()
        finally:
            gc.unfreeze()
            if watcher is not None:
                watcher.cancel()
                await asyncio.wait((watcher,))
        return phase

    def _client(self, target: Target) -> Client:
        key = target.address, target.limits
        if key not in self._clients:
            self._clients[key] = Client(*key)
        return self._clients[key]

    def _on_signal(self, code: int) -> None:
        self.exit_code = code
        if self._phase is not None:
            self._phase.stop("interrupted")


def raise_file_limit() -> None:
    """As many connections as the system grants: the usual 1,024 files are fewer than a busy open loop has open."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def all_failed(phase: Phase) -> str | None:
    """Why nothing can be measured after a warm-up, or None."""
    if not phase.records or any(record.outcome != "failed" for record in phase.records):
        return None
    return f"every warm-up request failed: {phase.records[0].error}"


def refuse_empty(workload: Workload) -> None:
    """Raises UsageError when there is nothing to send."""
    if not workload.requests:
        raise UsageError("the data set is empty: no request is due within --duration")
