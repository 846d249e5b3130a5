"""What became of the time of many requests, by the stages that the server told for each."""

from collections.abc import Sequence

import msgspec

from loadtest.record import Record
from loadtest.statistics import Summary
from loadtest.timing import STAGES

OUTSIDE = "network and client"
"""E2E less the server's own total: the way there and back, and what the client was late."""


class StageRow(msgspec.Struct, frozen=True):
    """One of `STAGES` or `OUTSIDE`, over all requests that were timed."""

    stage: str
    mean_s: float
    p50_s: float
    p99_s: float


def stage_rows(records: Sequence[Record]) -> list[StageRow]:
    """In the order of `STAGES`, and `OUTSIDE` last; empty when no complete answer was timed."""
    timed = [(record, record.timing) for record in records if record.outcome == "ok" and record.timing is not None]
    if not timed:
        return []
    samples = {stage: [timing.stage_s(stage) for _, timing in timed] for stage in STAGES}
    samples[OUTSIDE] = [(record.e2e_s or 0.0) - timing.total_s for record, timing in timed]
    return [_row(stage, Summary.of(values)) for stage, values in samples.items()]


def _row(stage: str, summary: Summary) -> StageRow:
    return StageRow(stage, summary.mean or 0.0, summary.percentile(50) or 0.0, summary.percentile(99) or 0.0)
