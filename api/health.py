"""From the states of workers to what `/health` says. Pure."""

from collections.abc import Sequence
from typing import Any

from actors.messages import WorkerStatus
from actors.placement import has_path
from api.model import Readiness


def readiness_of(workers: Sequence[WorkerStatus]) -> Readiness:
    """Ready while all are up, degraded while those that are leave a path from prompt to answer.

    Without a path, requests are taken as long as one can come back by itself: they wait.
    """
    off = [worker for worker in workers if worker.state != "up"]
    if not off:
        return Readiness(state="ready", workers=tuple(workers))
    detail = "; ".join(_described(worker) for worker in off)
    if has_path(worker.role for worker in workers if worker.state == "up"):
        return Readiness(state="degraded", detail=detail, workers=tuple(workers))
    comes_back = has_path(worker.role for worker in workers if worker.state in ("up", "down"))
    return Readiness(state="starting", detail=detail, workers=tuple(workers), takes_requests=comes_back)


def health_body(readiness: Readiness) -> dict[str, Any]:
    """The answer to `GET /health`."""
    content: dict[str, Any] = {"status": readiness.state}
    if readiness.detail:
        content["detail"] = readiness.detail
    if readiness.workers:
        content["workers"] = {worker.name: worker_body(worker) for worker in readiness.workers}
    return content


def worker_body(worker: WorkerStatus) -> dict[str, Any]:
    """One worker as JSON shows it."""
    content: dict[str, Any] = {"role": worker.role, "state": worker.state}
    return content | ({"reason": worker.reason} if worker.reason else {})


def _described(worker: WorkerStatus) -> str:
    return f"{worker.name} is {worker.state}" + (f": {worker.reason}" if worker.reason else "")
