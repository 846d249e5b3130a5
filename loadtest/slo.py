"""Service level objectives: `ttft_p99=500ms,error_rate=0,goodput>=3.5` as text, and whether a run met them.

Latencies and the error rate are upper limits, rates are lower ones. A single request is inside the SLO when it
succeeded and its own TTFT, TPOT and E2E are within the limits named for them, whichever percentile they are for;
of several limits for one latency the loosest counts.
"""

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from loadtest.errors import UsageError
from loadtest.record import Record
from loadtest.units import parse_duration_s, parse_fraction, parse_positive

LATENCIES = ("ttft", "tpot", "itl", "e2e")
RATES = ("output_tok_s", "total_tok_s", "request_rate", "goodput")
EXAMPLE = "ttft_p99=500ms,tpot_p99=50ms,e2e_p95=10s,error_rate=0,output_tok_s>=200,request_rate>=4,goodput>=3.5"

_TERM = re.compile(r"\s*([a-z0-9_.]+)\s*(<=|>=|=|<|>)\s*(\S+)\s*")
_LATENCY = re.compile(r"(ttft|tpot|itl|e2e)_(mean|max|p(\d{1,2}(?:\.\d+)?))")

Kind = Literal["latency", "error_rate", "rate"]


class Objective(msgspec.Struct, frozen=True):
    """One limit, in seconds, as a fraction, or per second. `statistic` is `mean`, `max` or `p99`, of a latency only."""

    name: str
    kind: Kind
    limit: float
    text: str
    statistic: str = ""

    @property
    def latency(self) -> str:
        """`ttft`, `tpot`, `itl` or `e2e`."""
        return self.name.split("_")[0]

    def is_met(self, value: float | None) -> bool:
        """A latency or rate that nothing was measured for is missed."""
        if value is None:
            return False
        return value >= self.limit if self.kind == "rate" else value <= self.limit


class Verdict(msgspec.Struct, frozen=True):
    """One objective and what was measured for it: seconds, a fraction, or per second."""

    objective: str
    kind: Kind
    limit: float
    measured: float | None
    met: bool

    @property
    def shown(self) -> str:
        """The measured value with its unit."""
        if self.measured is None:
            return "nothing"
        if self.kind == "latency":
            return f"{self.measured * 1e3:.4g} ms" if self.measured < 1 else f"{self.measured:.4g} s"
        return f"{self.measured:.2%}" if self.kind == "error_rate" else f"{self.measured:.4g}"


def parse_slo(text: str) -> tuple[Objective, ...]:
    """Comma separated objectives. Raises UsageError, which names the part that is wrong."""
    objectives = tuple(_parse_term(term) for term in text.split(","))
    names = [objective.name for objective in objectives]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--slo {name}: named twice")
    return objectives


def _parse_term(term: str) -> Objective:
    found = _TERM.fullmatch(term)
    if found is None:
        raise UsageError(f"--slo {term.strip()!r}: allowed: NAME=LIMIT or NAME>=LIMIT, such as {EXAMPLE}")
    name, sign, limit = found.groups()
    kind, statistic = _kind(name)
    wanted = ("=", "<=") if kind != "rate" else (">=",)
    if sign not in wanted:
        raise UsageError(f"--slo {term.strip()!r}: {name} takes {' or '.join(wanted)}, not {sign}")
    parse = {"latency": parse_duration_s, "error_rate": parse_fraction, "rate": parse_positive}[kind]
    try:
        return Objective(name, kind, parse(limit), term.strip(), statistic)
    except UsageError as error:
        raise UsageError(f"--slo {name}: {error}") from None


def _kind(name: str) -> tuple[Kind, str]:
    if name == "error_rate":
        return "error_rate", ""
    if name in RATES:
        return "rate", ""
    latency = _LATENCY.fullmatch(name)
    if latency is None:
        names = ", ".join(f"{each}_pNN" for each in LATENCIES)
        raise UsageError(f"--slo {name!r}: allowed: {names} (or _mean, _max), error_rate, {', '.join(RATES)}")
    return "latency", latency[2]


def request_limits_s(objectives: Sequence[Objective]) -> dict[str, float]:
    """The limit of every latency that a single request is held to."""
    limits = dict[str, float]()
    for objective in objectives:
        if objective.kind == "latency" and objective.latency != "itl":
            limits[objective.latency] = max(limits.get(objective.latency, 0.0), objective.limit)
    return limits


def is_inside(record: Record, limits_s: dict[str, float]) -> bool:
    """Whether one request met them all. An answer of one token has no TPOT and meets any."""
    if record.outcome != "ok":
        return False
    values = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2e": record.e2e_s}
    return all((values[name] or 0.0) <= limit for name, limit in limits_s.items())
