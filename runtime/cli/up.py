"""`runtime up`: the life of a server process from the flags to its exit code.

What can be checked without jax is checked first, and a model that is not on this machine is downloaded. Then the port
is taken, so that a busy one costs no loading; while the model loads and until one request of the server's own has been
answered, `/health` says "starting". The first SIGTERM or Ctrl-C drains: new requests get 503, running ones
finish or run out of time. The second one ends the process at once.
"""

import contextlib
import gc
import shlex
import socket
import time
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
import msgspec
from starlette.types import ASGIApp

from runtime import composition
from runtime.admin_key import read_admin_key
from runtime.cli.console import Report
from runtime.cli.server import Front, HttpServer, address_of, bind
from runtime.cli.signals import StopSignal, leave, leave_after, leave_on_interrupt
from runtime.cli.warm_up import warm_up
from runtime.errors import UsageError
from runtime.key_file import read_key_file
from runtime.logs import configure_logging
from runtime.plan import Plan, make_plan
from runtime.settings import Settings

_EXIT_GRACE_S = 20.0
"""What shutting down may take on top of the drain timeout before the process is ended regardless, with code 1."""


def up(settings: Settings) -> int:
    """Serves until a signal. Raises UsageError for what the operator has to change."""
    started = time.monotonic()
    configure_logging(settings.log_level, settings.log_format)
    report = Report()
    settings = msgspec.structs.replace(
        settings,
        admin_key=read_admin_key(settings.admin_key),
        api_keys=settings.api_keys + read_key_file(settings.api_key_file),
    )
    with leave_on_interrupt():
        plan = make_plan(settings, report.line)
    stop = StopSignal()
    stop.install()
    with bind(settings.host, settings.port) as listener:
        outcome = anyio.run(_serve, plan, listener, report, stop, started)
    if isinstance(outcome, UsageError):
        raise outcome
    return outcome


async def _serve(
    plan: Plan, listener: socket.socket, report: Report, stop: StopSignal, started: float
) -> UsageError | int:
    front = Front()
    server = HttpServer(front)
    outcome: UsageError | int
    async with anyio.create_task_group() as group:
        await group.start(server.run_on, listener)
        report.line(f"Listening on {address_of(listener)}, loading {plan.name}")
        loaded = await _load(plan, report, stop)
        if isinstance(loaded, UsageError):
            outcome = loaded
        else:
            outcome = await _live(loaded, front, report, stop, _Greeting(address_of(listener), started))
        await server.stop()
    return outcome


async def _load(plan: Plan, report: Report, stop: StopSignal) -> composition.Loaded | UsageError:
    """Loads in a thread. A signal meanwhile has nothing to drain and ends the process."""
    async with _left_on_signal(stop):
        try:
            return await anyio.to_thread.run_sync(composition.load, plan, report)
        except UsageError as error:
            return error


@contextlib.asynccontextmanager
async def _left_on_signal(stop: StopSignal) -> AsyncIterator[None]:
    """Inside, nothing is served yet: the first signal ends the process."""

    async def leave_on_signal() -> None:
        await stop.wait()
        leave(0)

    async with anyio.create_task_group() as group:
        group.start_soon(leave_on_signal)
        yield
        group.cancel_scope.cancel()


async def _live(
    loaded: composition.Loaded, front: Front, report: Report, stop: StopSignal, greeting: "_Greeting"
) -> int:
    """Serves until a signal or a failure; returns the exit code."""
    settings = loaded.plan.settings
    async with composition.service(loaded) as service:
        failure = None if settings.skip_server_warmup else await _warmed_up(service.app, loaded.plan, report, stop)
        if failure is None:
            front.app = service.app
            # What exists now lives as long as the process: without this, collections scan it for seconds.
            gc.collect()
            gc.freeze()
            greeting.say(report, loaded)
            service.begin_chaos()
            failure = await _until_stop_or_failure(service, stop)
        limit_s = _EXIT_GRACE_S + (settings.drain_timeout_s if failure is None else 0)
        safety_net = leave_after(limit_s, 1, f"runtime up: not stopped after {limit_s:g} s; ending the process")
        if failure is not None:
            report.line(f"Failed: {failure}")
        else:
            report.line(f"Draining: running requests get up to {settings.drain_timeout_s:g} s.")
            if not await service.drain(settings.drain_timeout_s):
                report.line("Drain timeout: the requests that were still running are cut off.")
    safety_net.cancel()
    if failure is not None:
        return 1
    report.line("Stopped.")
    return 0


async def _warmed_up(app: ASGIApp, plan: Plan, report: Report, stop: StopSignal) -> str | None:
    """Sends a request of our own and says so; a failure's reason, or None. A signal meanwhile ends the process."""
    started = time.monotonic()
    async with _left_on_signal(stop):
        failed = await warm_up(app, plan)
    if failed is None:
        report.table([("warm-up request", f"answered in {time.monotonic() - started:.1f} s")])
    return failed


async def _until_stop_or_failure(service: composition.Service, stop: StopSignal) -> str | None:
    """What ended the wait: a failure's message, or None for a signal."""
    failure: str | None = None

    async def watch() -> None:
        nonlocal failure
        failure = (await service.until_failure()).message
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await stop.wait()
        group.cancel_scope.cancel()
    return failure


class _Greeting(msgspec.Struct, frozen=True):
    """The line that says that the server serves, and a first thing to try."""

    address: str
    started: float

    def say(self, report: Report, loaded: composition.Loaded) -> None:
        took_s = time.monotonic() - self.started
        name, topology = loaded.plan.name, loaded.topology
        emulated = "" if loaded.plan.emulation is None else "EMULATED, "
        report.line(
            f"Serving {name} on {self.address} ({emulated}{topology}, ready in {took_s:.1f} s)", style="bold green"
        )
        body = msgspec.json.encode(
            {"model": name, "stream": True, "messages": [{"role": "user", "content": "What is 37 + 58?"}]}
        )
        report.line("Try:")
        report.line(f"  curl -N {self.address}/v1/chat/completions \\")
        if loaded.plan.settings.api_keys:
            report.line('    -H "Authorization: Bearer $API_KEY" \\')
        report.line("    -H 'Content-Type: application/json' \\")
        report.line(f"    -d {shlex.quote(body.decode())}")
