"""Every metric of a run equals what the scripted server's delays say, in virtual time and so to the microsecond."""

import asyncio

import numpy as np
import pytest

from loadtest.arrivals import Steady, schedule
from loadtest.driver import Phase, Plan
from loadtest.metrics import Metrics, measure
from loadtest.slo import parse_slo
from loadtest.validity import lag_limit_s, why_invalid
from tests.loadtest.loads import chats, drive, requests, send, target
from tests.loadtest.stub import (
    DONE,
    END,
    Body,
    Step,
    Stub,
    Wait,
    answer,
    delta_chunk,
    head,
    text_chunk,
    usage_chunk,
)
from tests.loadtest.virtual import VirtualLoop, run_virtual

NEAR = 2e-6
"""Seconds: what rounding leaves of a virtual clock."""

STATISTICS = {
    "mean": np.mean,
    "median": np.median,
    "std": np.std,
    "max": np.max,
    "p50": lambda values: np.percentile(values, 50),
    "p90": lambda values: np.percentile(values, 90),
    "p95": lambda values: np.percentile(values, 95),
    "p99": lambda values: np.percentile(values, 99),
}


def constant(count: int, rate: float) -> tuple[float, ...]:
    return tuple((index + 1) / rate for index in range(count))


def check_latency(metrics: Metrics, name: str, truth_s: list[float]) -> None:
    values = metrics.to_json()
    for statistic, of in STATISTICS.items():
        assert values[f"{statistic}_{name}_ms"] == pytest.approx(of(truth_s) * 1e3, abs=NEAR * 1e3), (name, statistic)


def test_steady_streams() -> None:
    plan = Plan(arrivals_s=constant(20, 2.0))
    records, _ = send(lambda number, body: answer(body, 0.4, [0.05] * 15), requests(20), plan)
    metrics = measure(records, parse_slo("ttft_p99=500ms,tpot_p99=60ms,e2e_p95=2s"))
    check_latency(metrics, "ttft", [0.4] * 20)
    check_latency(metrics, "tpot", [0.05] * 20)
    check_latency(metrics, "itl", [0.05] * 300)
    check_latency(metrics, "e2el", [1.15] * 20)
    check_latency(metrics, "lag", [0.0] * 20)
    values = metrics.to_json()
    lasted_s = 10.0 + 1.15
    assert values["duration"] == pytest.approx(lasted_s, abs=NEAR)
    assert values["request_throughput"] == pytest.approx(20 / lasted_s)
    assert values["request_goodput"] == pytest.approx(20 / lasted_s)
    assert values["output_throughput"] == pytest.approx(320 / lasted_s)
    assert values["total_token_throughput"] == pytest.approx(380 / lasted_s)
    assert (values["total_input_tokens"], values["total_output_tokens"]) == (60, 320)
    assert (values["completed"], values["failed"], values["max_concurrent_requests"]) == (20, 0, 3)


def test_bursts_of_requests_and_of_chunks() -> None:
    arrivals_s = schedule(Steady(rate=5.0, burstiness=0.2), requests(60), seed=3)
    gaps_s = [0.0, 0.0, 0.3] * 5
    records, _ = send(lambda number, body: answer(body, 0.2, gaps_s), requests(60), Plan(arrivals_s=tuple(arrivals_s)))
    metrics = measure(records)
    check_latency(metrics, "ttft", [0.2] * 60)
    check_latency(metrics, "itl", gaps_s * 60)
    check_latency(metrics, "tpot", [1.5 / 15] * 60)
    ends_s = [begin + 1.7 for begin in arrivals_s]
    assert metrics.duration_s == pytest.approx(60 / 5.0 + 1.7, abs=NEAR)
    open_at = [sum(begin <= at < end for begin, end in zip(arrivals_s, ends_s, strict=True)) for at in arrivals_s]
    assert metrics.max_concurrent_requests == max(open_at) > 12


def test_slow_first_chunks_and_goodput() -> None:
    firsts_s = [2.0 if index % 4 == 0 else 0.1 for index in range(40)]
    plan = Plan(arrivals_s=constant(40, 10.0))
    records, _ = send(lambda number, body: answer(body, firsts_s[number], [0.02] * 7), requests(40, 8), plan)
    metrics = measure(records, parse_slo("ttft_p99=500ms,goodput>=3"))
    check_latency(metrics, "ttft", firsts_s)
    check_latency(metrics, "e2el", [first_s + 0.14 for first_s in firsts_s])
    lasted_s = max(at_s + first_s + 0.14 for at_s, first_s in zip(constant(40, 10.0), firsts_s, strict=True))
    assert metrics.goodput == pytest.approx(30 / lasted_s)
    assert [
        (verdict.objective, verdict.met) for verdict in metrics.judge(parse_slo("ttft_p50=500ms,ttft_p99=500ms"))
    ] == [
        ("ttft_p50=500ms", True),
        ("ttft_p99=500ms", False),
    ]


def test_cancellations_leave_the_server_and_the_figures() -> None:
    plan = Plan(arrivals_s=constant(40, 8.0), cancel_fraction=0.25, cancel_after_s=0.45, seed=1)
    records, stub = send(lambda number, body: answer(body, 0.3, [0.1] * 9), requests(40, 10), plan)
    metrics = measure(records)
    assert (metrics.completed, metrics.cancelled, metrics.failed, metrics.error_rate) == (30, 10, 0, 0.0)
    check_latency(metrics, "ttft", [0.3] * 30)
    check_latency(metrics, "e2el", [1.2] * 30)
    gone = [record for record in records if record.outcome == "cancelled"]
    assert {record.index for record in gone} == plan.cancelled(40)
    assert [record.ended_s - record.sent_s for record in gone] == pytest.approx([0.45] * 10, abs=NEAR)
    assert [len(record.chunk_times_s) for record in gone] == [2] * 10  # at 0.3 and 0.4 s
    assert stub.num_left == 10


@pytest.mark.parametrize("usage", ["final", "each"])
def test_several_tokens_per_chunk(usage: str) -> None:
    def script(number: int, body: Body) -> list[Step]:
        counted = body["stream_options"].get("continuous_usage_stats", False)
        steps: list[Step] = [head()]
        for index in range(5):
            told = {"prompt_tokens": 3, "completion_tokens": 4 * (index + 1)} if counted else None
            steps += [Wait(0.2), text_chunk(" a b c d", usage=told)]
        return [*steps, text_chunk("", "length", told), usage_chunk(body, 20), DONE, END]

    records, _ = send(script, requests(10, 20), Plan(arrivals_s=constant(10, 4.0)), target(usage=usage))
    metrics = measure(records)
    assert metrics.total_output_tokens == 200
    check_latency(metrics, "ttft", [0.2] * 10)
    check_latency(metrics, "tpot", [0.8 / 19] * 10)
    check_latency(metrics, "itl", [0.05] * 160)
    check_latency(metrics, "icl", [0.2] * 40)
    assert {record.counted_by for record in records} == {"spread" if usage == "final" else "each"}
    assert metrics.usage_unequal == (10 if usage == "final" else 0)


def test_uneven_chunks_are_told_apart_by_a_usage_in_each() -> None:
    def script(number: int, body: Body) -> list[Step]:
        steps: list[Step] = [head()]
        for total in (1, 4, 6):
            steps += [Wait(0.3), text_chunk(usage={"prompt_tokens": 3, "completion_tokens": total})]
        return [*steps, usage_chunk(body, 6), DONE, END]

    records, _ = send(script, requests(1, 6), Plan(), target(usage="each"))
    assert records[0].chunk_tokens == (1, 3, 2)
    check_latency(measure(records), "itl", [0.1] * 3 + [0.15] * 2)


def test_a_server_that_stalls() -> None:
    def script(number: int, body: Body) -> list[Step]:
        if number % 5 == 2:
            return [Wait(0.1), head(), text_chunk(), Wait(0.1), text_chunk(), Wait(40.0)]
        return answer(body, 0.1, [0.1] * 7)

    records, stub = send(script, requests(20, 8), Plan(arrivals_s=constant(20, 10.0)))
    metrics = measure(records)
    assert metrics.errors == {"stalled: nothing came for 10 s in mid-stream": 4}
    assert (metrics.completed, metrics.error_rate) == (16, 0.2)
    check_latency(metrics, "e2el", [0.8] * 16)
    stalled = [record for record in records if record.outcome == "failed"]
    assert [record.ended_s - record.sent_s for record in stalled] == pytest.approx([10.2] * 4, abs=NEAR)
    assert stub.num_left == 4


def test_a_role_chunk_is_no_token() -> None:
    def script(number: int, body: Body) -> list[Step]:
        return [
            head(),
            delta_chunk({"role": "assistant", "content": ""}),
            Wait(0.5),
            delta_chunk({"reasoning_content": "hm"}),
            Wait(0.1),
            delta_chunk({"content": "yes"}),
            Wait(0.1),
            delta_chunk({}, "stop"),
            usage_chunk(body, 3, prompt_tokens_details={"cached_tokens": 5}),
            DONE,
            END,
        ]

    records, stub = send(script, chats(1), Plan(), target(api="chat"))
    check_latency(measure(records), "ttft", [0.5])
    check_latency(measure(records), "e2el", [0.7])
    assert (records[0].chunk_tokens, records[0].cached_tokens, records[0].finish_reason) == ((1, 1, 1), 5, "stop")
    assert stub.bodies[0]["messages"] == [{"role": "user", "content": "hello"}]


def test_a_closed_loop_keeps_its_concurrency() -> None:
    records, stub = send(lambda number, body: answer(body, 0.5, [0.1] * 5), requests(40, 6), Plan(concurrency=4))
    metrics = measure(records)
    assert metrics.request_rate == pytest.approx(4 / 1.0)
    assert (metrics.max_concurrent_requests, stub.num_connections) == (4, 4)
    check_latency(metrics, "ttft", [0.5] * 40)


def test_a_late_client_is_counted_and_makes_the_run_invalid() -> None:
    async def late() -> Phase:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_later(1.06, loop.jump, 0.29)
        return await drive(requests(20, 4), Plan(arrivals_s=constant(20, 10.0)), target())

    phase = run_virtual(late(), Stub(lambda number, body: answer(body, 0.02, [0.01] * 3)))
    metrics = measure(phase.records)
    late_s = [0.25, 0.15, 0.05]  # due at 1.1, 1.2 and 1.3 s, sent at 1.35 s
    check_latency(metrics, "lag", [0.0] * 17 + late_s)
    check_latency(metrics, "ttft", [0.02] * 17 + [0.02 + lag_s for lag_s in late_s])
    assert "requests were sent" in (why_invalid(metrics, phase.tick_lags_s, lag_limit_s(metrics, None)) or "")
    assert why_invalid(metrics, phase.tick_lags_s, 0.3) is None
    assert "the client woke up" in (why_invalid(metrics, [0.0] * 9 + [0.4], 0.3) or "")
