"""Between two loads: waits until a server has done with the first one, which would spoil the second."""

import math
from collections.abc import Callable

from loadtest.record import Record
from loadtest.session import Session, Workload

MAX_PROBES = 20


async def recover(session: Session, probe: Callable[[], Workload], is_fast: Callable[[Record], bool]) -> None:
    """Sends lone requests until one is fast, or about as fast as the one before it: it gets no faster then."""
    before_s = math.inf
    for _ in range(MAX_PROBES):
        phase = await session.run(probe(), "recovery")
        if phase.stopped is not None or any(is_fast(record) for record in phase.records):
            return
        for record in phase.records:
            took_s = record.ended_s - record.scheduled_s if record.outcome == "ok" else math.inf
            if took_s < math.inf and took_s > before_s * 0.9:
                return
            before_s = took_s
