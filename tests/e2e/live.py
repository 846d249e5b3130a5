"""A server in this event loop, on a real socket, whose actors can be looked at."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
from anyio.lowlevel import checkpoint

from actors.gateway import GatewayActor
from actors.messages import GATEWAY, SCHEDULER
from actors.scheduler import SchedulerActor
from actors.supervisor import ActorSupervisor, WorkerSupervisor
from actors.system import System, running_system
from actors.worker import WorkerActor
from runtime import composition
from runtime.cli.console import Report
from runtime.cli.flags import parse_up
from runtime.cli.server import HttpServer, bind
from runtime.plan import make_plan

REST_LIMIT_S = 60.0


class Live:
    """The server: where it listens, and its system."""

    def __init__(self, port: int, name: str, system: System) -> None:
        self.port = port
        self.name = name
        self.system = system
        self._actors = {spec.address: spec.actor for spec in system.specs}

    @property
    def gateway(self) -> GatewayActor:
        gateway = self._actors[GATEWAY]
        assert isinstance(gateway, GatewayActor)
        return gateway

    def left_behind(self) -> list[str]:
        """What is held although nobody asks for anything; empty at rest."""
        carrier = self.system.carrier
        found = [f"request {name}" for name in self.gateway.ledger.requests]
        found += [f"inbox {name}" for name in carrier.inboxes if name not in self._actors]
        found += [f"{len(box.mailbox)} messages to {name}" for name, box in carrier.inboxes.items() if len(box.mailbox)]
        found += [f"{len(carrier.arrays)} arrays"] if len(carrier.arrays) else []
        scheduler = self._actors[SCHEDULER]
        assert isinstance(scheduler, ActorSupervisor)
        assert isinstance(scheduler.actor, SchedulerActor)
        found += [f"{key} waits" for key in scheduler.actor.queue] + [f"grant {key}" for key in scheduler.actor.grants]
        for actor in self._actors.values():
            if isinstance(actor, WorkerSupervisor) and isinstance(actor.worker, WorkerActor):
                found += _of_worker(actor.worker)
        return found

    async def until_rest(self) -> None:
        """Waits until nothing is left; an error that names what is."""
        with anyio.move_on_after(REST_LIMIT_S):
            while self.left_behind():
                await checkpoint()
        assert self.left_behind() == []


def _of_worker(worker: WorkerActor) -> list[str]:
    state = worker.state
    name, counts, spec = worker.address, state.pool.counts(), state.engine.spec
    state.pool.check_integrity()
    found = [f"{name} job {key}" for key in state.prefill.jobs]
    found += [f"{name} staged {key}" for key in state.prefill.staged]
    found += [f"{name} lease {key}" for key in state.decode.leases]
    found += [f"{name} sequence {key}" for key in state.decode.sequences]
    found += [f"{name} unanswered {key}" for key in state.deliveries.groups]
    if counts.free + counts.cached + counts.sentinel != counts.total:
        found.append(f"{name} pages {counts}")
    if sorted(state.free_rows) != list(range(spec.num_rows)):
        found.append(f"{name} rows {state.free_rows}")
    if state.prefill.credits_used:
        found.append(f"{name} has {state.prefill.credits_used} credits out")
    return found


@asynccontextmanager
async def live_server(*flags: str, send_buffer_bytes: int | None = None) -> AsyncIterator[Live]:
    """Serves until the context is left. Small send buffers make it soon notice that a client does not read."""
    settings = parse_up(list(flags))
    assert settings is not None
    plan = make_plan(settings)
    systems = list[System]()

    @asynccontextmanager
    async def seen(*arguments: Any, **options: Any) -> AsyncIterator[System]:
        async with running_system(*arguments, **options) as system:
            systems.append(system)
            yield system

    loaded = composition.load(plan, Report())
    with bind("127.0.0.1", 0) as listener, patch.object(composition, "running_system", seen):
        if send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        async with composition.service(loaded) as service, anyio.create_task_group() as group:
            server = HttpServer(service.app)
            await group.start(server.run_on, listener)
            yield Live(listener.getsockname()[1], plan.name, systems[0])
            await server.stop()


def emulated(folder: Path, table: dict[str, object]) -> str:
    """The flag for slices with these step times."""
    path = folder / "table.json"
    path.write_text(json.dumps(table))
    return f"--engine=emulated:{path}"
