"""Result files as `run` and `compare` save them, from a simple model of a server: seeded, with stage times."""

import random
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from loadtest.record import Record
from loadtest.search import wilson
from loadtest.slo import is_inside, parse_slo, request_limits_s
from loadtest.statistics import Summary
from loadtest.timing import STAGES, Timing

ENVIRONMENT = {"date": "2026-11-26T12:00:00+00:00", "command": "loadtest compare ...", "python": "3.11.7", "cores": 2}
SLOS = (("ttft_p90=250ms", "tpot_p90=40ms"), ("ttft_p90=600ms", "tpot_p90=25ms"))
RATES = (2.0, 4.0, 6.0, 8.0)
TOKENS = 24


def timed_record(rng: random.Random, index: int, due_s: float, load: float, prefill: str, decode: str) -> Record:
    """An answer of a server at `load` (0 to 1 and beyond); the same worker twice means that it is a mixed one."""
    is_mixed = prefill == decode
    tpot_s = (0.016 + 0.02 * load * load * is_mixed) * rng.uniform(0.9, 1.2)
    stages_s = {
        "queue_s": 0.002 + max(0.0, load - 0.5) * rng.expovariate(5.0),
        "prefill_s": 0.09 * rng.uniform(0.9, 1.3),
        "transfer_s": 0.0 if is_mixed else 0.004 * rng.uniform(0.5, 2.0),
        "handoff_s": 0.0 if is_mixed else 0.012 * rng.uniform(0.2, 1.5),
        "decode_s": tpot_s * (TOKENS - 1),
    }
    timing = Timing(**stages_s, total_s=sum(stages_s.values()), prefill_worker=prefill, decode_worker=decode)
    sent_s = due_s + rng.uniform(0.0002, 0.002)
    first_s = sent_s + stages_s["queue_s"] + stages_s["prefill_s"] + 0.002
    handed_s = first_s + stages_s["transfer_s"] + stages_s["handoff_s"]
    times_s = (first_s, *(handed_s + tpot_s * (token + 1) for token in range(TOKENS - 1)))
    return Record(
        index=index,
        scheduled_s=due_s,
        sent_s=sent_s,
        ended_s=times_s[-1] + 0.001,
        outcome="ok",
        chunk_times_s=times_s,
        chunk_tokens=(1,) * TOKENS,
        prompt_tokens=256,
        timing=timing,
    )


def timed_records(
    seed: int, rate: float, duration_s: float, capacity: float, workers: Sequence[tuple[str, str]]
) -> list[Record]:
    """A run's records. Every tenth or so left early, without stage times."""
    rng, records, due_s = random.Random(seed), list[Record](), 0.0
    while (due_s := due_s + rng.expovariate(rate)) < duration_s:
        prefill, decode = rng.choice(workers)
        one = timed_record(rng, len(records), due_s, rate / capacity, prefill, decode)
        if rng.random() < 0.04:
            one = msgspec.structs.replace(one, outcome="failed", error="timeout", timing=None)
        records.append(one)
    return records


def pairs(num_prefill: int, num_decode: int) -> list[tuple[str, str]]:
    """Workers of a disaggregated topology."""
    return [(f"prefill.{p}", f"decode.{d}") for p in range(num_prefill) for d in range(num_decode)]


def run_file(records: Sequence[Record]) -> dict[str, Any]:
    """What is read of a run's file."""
    return {
        "format": "loadtest-run/1",
        "server": {"url": "http://127.0.0.1:8000", "version": "0.1.0"},
        "environment": ENVIRONMENT,
        "slo": [],
        "request_goodput": 1.0,
        "requests": records,
    }


def compare_file(seed: int = 0, duration_s: float = 30.0, rounds: int = 3, engine_b: str = "jax") -> dict[str, Any]:
    """A comparison of prefill=2,decode=2 with mixed=4 at `RATES`."""
    servers = {"prefill=2,decode=2": (10.0, pairs(2, 2)), "mixed=4": (8.0, [(f"mixed.{n}",) * 2 for n in range(4)])}
    limits_s = [request_limits_s(parse_slo(",".join(slo))) for slo in SLOS]
    runs = list[dict[str, Any]]()
    for rate in RATES:
        for number in range(rounds):
            for name, (capacity, workers) in servers.items():
                records = timed_records(seed + number * 100 + int(rate), rate, duration_s, capacity, workers)
                inside = [sum(is_inside(record, limits) for record in records) for limits in limits_s]
                run: dict[str, Any] = {"server": name, "rate": rate, "round": number, "seed": seed + number}
                run |= {"invalid": None, "stopped": None, "duration_s": duration_s, "requests": records}
                run |= {"inside": inside, "total": len(records), "goodput": [count / duration_s for count in inside]}
                runs.append(run)
    names = list(servers)
    engines = ["jax", engine_b]
    return {
        "format": "loadtest-compare/1",
        "date": ENVIRONMENT["date"],
        "environment": ENVIRONMENT,
        "setup": {"rates": list(RATES), "rounds": rounds, "input_tokens": 256, "output_tokens": TOKENS},
        "conclusion": [f"Under {', '.join(slo)} {names[0]} has the higher goodput at some rates." for slo in SLOS],
        "attainment": 0.9,
        "slos": SLOS,
        "servers": [
            {"name": name, "url": f"http://127.0.0.1:{8000 + index}", "version": "0.1.0", "engine": engines[index]}
            for index, name in enumerate(names)
        ],
        "runs": runs,
        "comparisons": [_compared(runs, slo, rate, *names) for slo in range(len(SLOS)) for rate in RATES],
        "capacity": [_capacity(runs, slo, name) for slo in range(len(SLOS)) for name in names],
        "stages": [_stage(runs, name, rate, stage) for name in names for rate in RATES for stage in STAGES],
    }


def _compared(runs: Sequence[dict[str, Any]], slo: int, rate: float, a: str, b: str) -> dict[str, Any]:
    goodputs = {
        name: [run["goodput"][slo] for run in runs if run["server"] == name and run["rate"] == rate] for name in (a, b)
    }
    ratios = [one / max(0.01, other) for one, other in zip(goodputs[a], goodputs[b], strict=True)]
    ratio, reach = statistics.mean(ratios), 0.03 + 2 * statistics.pstdev(ratios)
    low, high = max(0.0, ratio - reach), ratio + reach
    verdict = "a" if low > 1 else "b" if high < 1 else "open"
    means = {"goodput_a": statistics.mean(goodputs[a]), "goodput_b": statistics.mean(goodputs[b])}
    return {
        "slo": slo,
        "rate": rate,
        "a": a,
        "b": b,
        "ratio": ratio,
        "low": low,
        "high": high,
        "verdict": verdict,
    } | means


def _capacity(runs: Sequence[dict[str, Any]], slo: int, name: str) -> dict[str, Any]:
    held = list[float]()
    for rate in RATES:
        good = [run for run in runs if run["server"] == name and run["rate"] == rate]
        low, _ = wilson(sum(run["inside"][slo] for run in good), sum(run["total"] for run in good))
        held += [rate] if low >= 0.9 else []
    return {"slo": slo, "server": name, "rate": max(held, default=None)}


def _stage(runs: Sequence[dict[str, Any]], name: str, rate: float, stage: str) -> dict[str, Any]:
    records = [one for run in runs if run["server"] == name and run["rate"] == rate for one in run["requests"]]
    times = Summary.of([one.timing.stage_s(stage) for one in records if one.timing is not None])
    values = {"mean_s": times.mean, "p50_s": times.percentile(50), "p99_s": times.percentile(99)}
    return {"server": name, "rate": rate, "stage": stage} | values
