"""What `/health` says for which states of workers."""

import httpx
import pytest

from actors.messages import Address, WorkerState, WorkerStatus
from api.health import readiness_of
from api.model import ServerState
from runtime.topology import parse_topology
from tests.api.conftest import Server, chat
from tests.api.fake_client import FakeClient

pytestmark = pytest.mark.anyio


def statuses(topology: str, **states: WorkerState) -> tuple[WorkerStatus, ...]:
    return tuple(
        WorkerStatus(
            name=Address(part.name),
            role=part.role,
            state=(state := states.get(part.name.replace(".", "_"), "up")),
            reason=None if state == "up" else "it broke",
        )
        for part in parse_topology(topology).slices
    )


CASES: list[tuple[dict[str, WorkerState], ServerState, bool]] = [
    ({}, "ready", True),
    ({"decode_0": "down"}, "degraded", True),
    ({"decode_0": "lost", "prefill_1": "draining"}, "degraded", True),
    ({"decode_0": "drained"}, "degraded", True),
    ({"decode_0": "lost", "decode_1": "down"}, "starting", True),
    ({"decode_0": "drained", "decode_1": "down"}, "starting", True),
    ({"decode_0": "lost", "decode_1": "drained"}, "starting", False),
    ({"prefill_0": "lost", "prefill_1": "lost"}, "starting", False),
]


@pytest.mark.parametrize(("states", "expected", "is_open"), CASES, ids=str)
async def test_a_path_that_is_left_serves(
    http: httpx.AsyncClient,
    server: Server,
    client: FakeClient,
    states: dict[str, WorkerState],
    expected: ServerState,
    is_open: bool,
) -> None:
    server.readiness = readiness_of(statuses("prefill=2,decode=2", **states))
    health = await http.get("/health")
    assert health.status_code == (200 if expected in ("ready", "degraded") else 503)
    body = health.json()
    assert body["status"] == expected
    assert list(body["workers"]) == ["prefill.0", "prefill.1", "decode.0", "decode.1"]
    for name, state in states.items():
        shown = body["workers"][name.replace("_", ".")]
        assert shown == {"role": name.partition("_")[0], "state": state, "reason": "it broke"}
        assert f"{name.replace('_', '.')} is {state}: it broke" in body["detail"]
    answer = await http.post("/v1/chat/completions", json=chat())
    assert answer.status_code == (200 if is_open else 503)


def test_mixed_workers_are_a_path_each() -> None:
    assert readiness_of(statuses("mixed=2", mixed_0="lost")).state == "degraded"
    assert readiness_of(statuses("mixed=1", mixed_0="down")).state == "starting"
