"""What a run's records amount to, under the names and definitions of vLLM's benchmark.

Only answers that are complete count for throughput and latency. Failures count for the error rate; requests that were
cancelled by plan, or by the user, count for neither.
"""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from loadtest.record import Record
from loadtest.slo import Objective, Verdict, is_inside, request_limits_s
from loadtest.statistics import PERCENTILES, Summary


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Totals, rates per second, and the latencies' samples in seconds."""

    duration_s: float
    completed: int
    failed: int
    cancelled: int
    interrupted: int
    inside: int
    total_input_tokens: int
    total_output_tokens: int
    max_concurrent_requests: int
    ttft: Summary
    tpot: Summary
    itl: Summary
    icl: Summary
    e2e: Summary
    lag: Summary
    errors: dict[str, int]
    usage_missing: int
    usage_unequal: int
    prompt_unequal: int
    output_unequal: int

    @property
    def request_rate(self) -> float:
        """Complete answers per second."""
        return self._per_second(self.completed)

    @property
    def goodput(self) -> float:
        """Answers inside every limit, per second."""
        return self._per_second(self.inside)

    @property
    def error_rate(self) -> float:
        """Failures among the requests that were to be completed."""
        return self.failed / max(1, self.completed + self.failed)

    def measured(self, objective: Objective) -> float | None:
        """The value that an objective is about."""
        if objective.kind == "latency":
            summary: Summary = getattr(self, objective.latency)
            return summary.statistic(objective.statistic)
        return {
            "error_rate": self.error_rate,
            "output_tok_s": self._per_second(self.total_output_tokens),
            "total_tok_s": self._per_second(self.total_input_tokens + self.total_output_tokens),
            "request_rate": self.request_rate,
            "goodput": self.goodput,
        }[objective.name]

    def judge(self, objectives: Sequence[Objective]) -> list[Verdict]:
        """Every objective with what was measured for it."""
        verdicts = list[Verdict]()
        for objective in objectives:
            value = self.measured(objective)
            verdicts.append(Verdict(objective.text, objective.kind, objective.limit, value, objective.is_met(value)))
        return verdicts

    def to_json(self) -> dict[str, object]:
        """vLLM's keys, and `icl` for the time between chunks and `lag` for the client's own lateness."""
        values: dict[str, object] = {
            "duration": self.duration_s,
            "completed": self.completed,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "interrupted": self.interrupted,
            "total_input_tokens": self.total_input_tokens,
            "total_output_tokens": self.total_output_tokens,
            "request_throughput": self.request_rate,
            "request_goodput": self.goodput,
            "output_throughput": self._per_second(self.total_output_tokens),
            "total_token_throughput": self._per_second(self.total_input_tokens + self.total_output_tokens),
            "max_concurrent_requests": self.max_concurrent_requests,
            "error_rate": self.error_rate,
        }
        for name in ("ttft", "tpot", "itl", "icl", "e2e", "lag"):
            values |= _latency_keys("e2el" if name == "e2e" else name, getattr(self, name))
        return values

    def _per_second(self, count: int) -> float:
        return count / self.duration_s if self.duration_s > 0 else 0.0


def measure(records: Sequence[Record], objectives: Sequence[Objective] = ()) -> Metrics:
    """Of one phase's records. It lasts from its start to the end of its last request."""
    limits_s = request_limits_s(objectives)
    done = [record for record in records if record.outcome == "ok"]
    outcomes = Counter(record.outcome for record in records)
    return Metrics(
        duration_s=max((record.ended_s for record in records), default=0.0),
        completed=len(done),
        failed=outcomes["failed"],
        cancelled=outcomes["cancelled"],
        interrupted=outcomes["interrupted"],
        inside=sum(is_inside(record, limits_s) for record in done),
        total_input_tokens=sum(record.input_tokens for record in done),
        total_output_tokens=sum(record.output_tokens for record in done),
        max_concurrent_requests=max_overlap([(record.sent_s, record.ended_s) for record in records]),
        ttft=Summary.of([ttft_s for record in done if (ttft_s := record.ttft_s) is not None]),
        tpot=Summary.of([tpot_s for record in done if (tpot_s := record.tpot_s) is not None]),
        itl=Summary.of([itl_s for record in done for itl_s in record.itls_s()]),
        icl=Summary.of([gap_s for record in done for gap_s in record.gaps_s()]),
        e2e=Summary.of([e2e_s for record in done if (e2e_s := record.e2e_s) is not None]),
        lag=Summary.of([record.lag_s for record in records]),
        errors=dict(Counter(record.error or "" for record in records if record.outcome == "failed").most_common()),
        usage_missing=sum(record.usage_tokens is None for record in done),
        usage_unequal=sum(record.counted_by == "spread" for record in done),
        prompt_unequal=sum(_differs(record.prompt_tokens, record.wanted_prompt_tokens) for record in done),
        output_unequal=sum(_differs(record.output_tokens, record.wanted_output_tokens) for record in done),
    )


def max_overlap(spans: Sequence[tuple[float, float]]) -> int:
    """The most spans that were open at once; one that ends as another begins is not open with it."""
    steps = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def _differs(found: int | None, wanted: int | None) -> bool:
    return found is not None and wanted is not None and found != wanted


def _latency_keys(name: str, summary: Summary) -> dict[str, object]:
    values = {"mean": summary.mean, "median": summary.percentile(50), "std": summary.std, "max": summary.max}
    values |= {f"p{percent}": summary.percentile(percent) for percent in PERCENTILES}
    return {
        f"{statistic}_{name}_ms": None if value is None or not math.isfinite(value) else value * 1e3
        for statistic, value in values.items()
    }
