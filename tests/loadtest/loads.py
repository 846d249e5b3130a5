"""Loads that tests send to a scripted server in virtual time."""

from collections.abc import Sequence
from typing import Any

from loadtest.attempt import Limits
from loadtest.client import Client, Target, prepare
from loadtest.connection import parse_address
from loadtest.driver import Phase, Plan
from loadtest.record import Record
from loadtest.request import Message, Request
from tests.loadtest.stub import Script, Stub
from tests.loadtest.virtual import run_virtual

ADDRESS = parse_address("http://stub:8000")
LIMITS = Limits(total_s=30.0, stall_s=10.0)


def target(**options: Any) -> Target:
    return Target(**({"address": ADDRESS, "model": "stub", "limits": LIMITS} | options))


def requests(count: int, tokens: int = 16) -> list[Request]:
    return [Request(prompt=(11, 12, 13), prompt_tokens=3, max_tokens=tokens, exact_output=True) for _ in range(count)]


def chats(count: int) -> list[Request]:
    return [Request(messages=(Message("user", "hello"),), max_tokens=16) for _ in range(count)]


async def drive(asked: Sequence[Request], plan: Plan, to: Target) -> Phase:
    client = Client(to.address, to.limits)
    phase = Phase(client, [prepare(to, request) for request in asked], plan)
    await phase.run()
    client.close()
    return phase


def send(script: Script, asked: Sequence[Request], plan: Plan, to: Target | None = None) -> tuple[list[Record], Stub]:
    """The records, in the order of their index."""
    stub = Stub(script)
    phase = run_virtual(drive(asked, plan, to or target()), stub)
    return sorted(phase.records, key=lambda record: record.index), stub
