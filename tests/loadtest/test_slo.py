"""Objectives from text, and statistics against numpy."""

import random

import numpy as np
import pytest

from loadtest.errors import UsageError
from loadtest.metrics import max_overlap, measure
from loadtest.record import Record
from loadtest.slo import EXAMPLE, is_inside, parse_slo, request_limits_s
from loadtest.statistics import Summary
from loadtest.units import parse_count, parse_duration_s, parse_fraction, parse_positive


def record(first_s: float, gap_s: float, chunks: int = 5, **changes: object) -> Record:
    times_s = tuple(1.0 + first_s + gap_s * index for index in range(chunks))
    fields: dict[str, object] = {
        "index": 0,
        "scheduled_s": 1.0,
        "sent_s": 1.0,
        "ended_s": times_s[-1],
        "outcome": "ok",
        "chunk_times_s": times_s,
        "chunk_tokens": (1,) * chunks,
    }
    return Record(**(fields | changes))  # type: ignore[arg-type]


def test_the_example_is_read() -> None:
    limits = {objective.name: (objective.limit, objective.statistic) for objective in parse_slo(EXAMPLE)}
    assert limits == {
        "ttft_p99": (0.5, "p99"),
        "tpot_p99": (0.05, "p99"),
        "e2e_p95": (10.0, "p95"),
        "error_rate": (0.0, ""),
        "output_tok_s": (200.0, ""),
        "request_rate": (4.0, ""),
        "goodput": (3.5, ""),
    }


def test_objectives_are_judged() -> None:
    records = [record(0.1, 0.02), record(0.3, 0.02), record(0.2, 0.02, outcome="failed", error="HTTP 500")]
    text = (
        "ttft_p99=200ms, ttft_mean<=201ms,ttft_max=1s,tpot_p99.9=21ms,error_rate=1%,request_rate>=1,output_tok_s>=100"
    )
    verdicts = measure(records, parse_slo(text)).judge(parse_slo(text))
    assert [verdict.met for verdict in verdicts] == [False, True, True, True, False, True, False]
    assert [verdict.shown for verdict in verdicts] == [
        "298 ms",
        "200 ms",
        "300 ms",
        "20 ms",
        "33.33%",
        "1.449",
        "7.246",
    ]
    nothing = measure([]).judge(parse_slo("ttft_p99=1s,error_rate=0"))
    assert [(verdict.met, verdict.shown) for verdict in nothing] == [(False, "nothing"), (True, "0.00%")]


def test_a_request_is_inside_when_it_meets_every_latency() -> None:
    limits_s = request_limits_s(parse_slo("ttft_p50=100ms,ttft_p99=500ms,tpot_p99=50ms,itl_p99=1ms,e2e_p95=1s"))
    assert limits_s == {"ttft": 0.5, "tpot": 0.05, "e2e": 1.0}
    assert is_inside(record(0.4, 0.04), limits_s)
    assert not is_inside(record(0.6, 0.04), limits_s)
    assert not is_inside(record(0.4, 0.06), limits_s)
    assert not is_inside(record(0.45, 0.04, 20), limits_s)
    assert not is_inside(record(0.4, 0.04, outcome="failed"), limits_s)
    assert is_inside(record(0.4, 0.04, 1), limits_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "allowed: NAME=LIMIT"),
        ("ttft_p99", "--slo 'ttft_p99': allowed: NAME=LIMIT"),
        ("ttft_p99=500ms,", "--slo ''"),
        ("ttft_p99=500", "--slo ttft_p99: '500': allowed: a duration with its unit"),
        ("ttft_p99=-5ms", "'-5ms'"),
        ("ttft_p99=nans", "'nans'"),
        ("ttft=500ms", "--slo 'ttft': allowed: ttft_pNN"),
        ("ttft_p100=500ms", "'ttft_p100'"),
        ("latency_p99=1s", "'latency_p99'"),
        ("ttft_p99>=1s", "ttft_p99 takes = or <=, not >="),
        ("goodput=3", "goodput takes >=, not ="),
        ("goodput>=0", "--slo goodput: '0'"),
        ("error_rate=2", "--slo error_rate: '2': allowed: a fraction"),
        ("ttft_p99=1s,ttft_p99=2s", "--slo ttft_p99: named twice"),
    ],
)
def test_bad_text_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_slo(text)
    assert message in str(error.value)


def test_statistics_are_numpys() -> None:
    rng = random.Random(0)
    for count in (1, 2, 7, 100):
        values = [rng.gammavariate(1, 1) for _ in range(count)]
        summary = Summary.of(values)
        assert [summary.mean, summary.std, summary.max] == pytest.approx(
            [np.mean(values), np.std(values), np.max(values)]
        )
        for percent in (0, 1, 50, 90, 99, 99.9, 100):
            assert summary.statistic(f"p{percent}") == pytest.approx(np.percentile(values, percent))
    assert [Summary.of([]).statistic(name) for name in ("mean", "max", "p99")] == [None] * 3
    assert Summary.of([]).std is None


def test_overlap() -> None:
    assert max_overlap([]) == 0
    assert max_overlap([(0, 1), (1, 2), (2, 3)]) == 1
    assert max_overlap([(0, 5), (1, 2), (1.5, 3), (4, 6)]) == 3


def test_units() -> None:
    assert [parse_duration_s(text) for text in ("500ms", "10s", "1.5m", "2h", "0s")] == [0.5, 10, 90, 7200, 0]
    assert [parse_fraction(text) for text in ("0.05", "5%", "1", "0")] == [0.05, 0.05, 1, 0]
    assert (parse_positive("2.5"), parse_positive("inf"), parse_count("0", 0)) == (2.5, float("inf"), 0)
    for parse, text in (
        (parse_duration_s, "10"),
        (parse_duration_s, "s"),
        (parse_fraction, "101%"),
        (parse_positive, "0"),
    ):
        with pytest.raises(ValueError, match="allowed"):
            parse(text)
    for text in ("-1", "1.5", "0", "x", "9" * 10, "\N{SUPERSCRIPT TWO}"):
        with pytest.raises(ValueError, match="allowed: a whole number from 1"):
            parse_count(text)
