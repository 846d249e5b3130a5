"""Judging runs of the same load on two servers: goodput, verdicts, what is held, and how it is told."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from loadtest.comparison import Compared, CompareRun, Step, capacities, compare_all, run_of, stages, turns
from loadtest.comparison_text import capacity_lines, conclusion, conclusions, page, render, tables
from loadtest.record import Record
from loadtest.slo import parse_slo
from loadtest.stages import OUTSIDE
from loadtest.timing import STAGES, Timing

A, B = "prefill=2,decode=2", "mixed=4"
TEXTS = ["ttft_p90=500ms", "ttft_p90=2s"]
SLOS = [parse_slo(text) for text in TEXTS]
TIMING = Timing(queue_s=0.01, prefill_s=0.02, transfer_s=0.0, handoff_s=0.0, decode_s=0.03, total_s=0.06)


def answered(index: int, rate: float, ttft_s: float | None, timing: Timing | None = None) -> Record:
    """Of two tokens; without a TTFT it failed."""
    due_s = (index + 1) / rate
    times_s = () if ttft_s is None else (due_s + ttft_s, due_s + ttft_s + 0.04)
    return Record(
        index=index,
        scheduled_s=due_s,
        sent_s=due_s,
        ended_s=times_s[-1] if times_s else due_s,
        outcome="failed" if ttft_s is None else "ok",
        chunk_times_s=times_s,
        chunk_tokens=(1,) * len(times_s),
        timing=timing,
    )


def run(
    server: str,
    ttfts_s: Sequence[float | None],
    rate: float = 2.0,
    seed: int = 0,
    invalid: str | None = None,
    stopped: str | None = None,
    timing: Timing | None = None,
) -> CompareRun:
    records = [answered(index, rate, ttft_s, timing) for index, ttft_s in enumerate(ttfts_s)]
    step = Step(server=server, rate=rate, round=seed, seed=seed)
    return run_of(step, records[::-1], SLOS, invalid, stopped)


def compared(**changes: object) -> Compared:
    fields: dict[str, object] = {
        "slo": 0,
        "rate": 4.0,
        "a": A,
        "b": B,
        "goodput_a": 3.9,
        "goodput_b": 3.1,
        "fraction_a": 0.97,
        "fraction_b": 0.77,
        "ratio": 1.26,
        "low": 1.18,
        "high": 1.35,
        "verdict": "a",
    }
    return Compared(**(fields | changes))  # type: ignore[arg-type]


def test_a_run_is_counted_over_the_time_in_which_it_was_due() -> None:
    made = run(A, [0.1, 1.0, None, 3.0])
    assert (made.window_s, made.inside, made.total) == (2.0, (1, 2), 4)
    assert made.goodput == (0.5, 1.0)
    assert made.duration_s == pytest.approx(2.0 + 3.04)
    assert [one.index for one in made.requests] == [0, 1, 2, 3]


def test_order_changes_so_that_everybody_is_first_as_often() -> None:
    assert [turns(["a", "b"], round_, 0) for round_ in range(4)] == [["a", "b"], ["b", "a"], ["b", "a"], ["a", "b"]]
    firsts = [turns(["a", "b", "c"], round_, 0)[0] for round_ in range(6)]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]
    assert turns(["a", "b"], 0, 1) == turns(["a", "b"], 1, 0)


def test_the_better_server_is_found() -> None:
    good = [0.1 if index % 20 else 1.0 for index in range(100)]
    bad = [0.1 if index % 3 else 1.0 for index in range(100)]
    runs = [run(server, ttfts_s, seed=seed) for seed in (0, 1) for server, ttfts_s in ((A, good), (B, bad))]
    first, second = compare_all(runs, [A, B], SLOS)
    assert (first.goodput_a, first.goodput_b) == (pytest.approx(1.9), pytest.approx(1.32))
    assert (first.fraction_a, first.fraction_b) == (0.95, 0.66)
    assert first.ratio == pytest.approx(95 / 66)
    assert first.low is not None
    assert first.low > 1.3
    assert (first.verdict, second.verdict, second.is_same) == ("a", "open", True)
    assert [one.verdict for one in compare_all(runs, [B, A], SLOS)] == ["b", "open"]


def test_a_difference_of_one_request_is_open() -> None:
    found = compare_all([run(A, [0.1] * 60), run(B, [1.0, *[0.1] * 59])], [A, B], SLOS)[0]
    assert (found.verdict, found.low) == ("open", 1.0)


def test_a_server_that_has_none() -> None:
    found = compare_all([run(A, [0.1] * 60), run(B, [None] * 60)], [A, B], SLOS)[0]
    assert (found.ratio, found.low, found.high, found.verdict, found.is_same) == (None, None, None, "a", False)
    turned = compare_all([run(A, [0.1] * 60), run(B, [None] * 60)], [B, A], SLOS)[0]
    assert (turned.ratio, turned.low, turned.high, turned.verdict) == (0.0, 0.0, 0.0, "b")


def test_only_valid_runs_of_the_same_load_are_compared() -> None:
    runs = [run(A, [0.1] * 10), run(B, [0.1] * 10, invalid="late"), run(A, [1.0] * 10, seed=3)]
    assert compare_all(runs, [A, B], SLOS) == []
    found = compare_all([*runs, run(B, [0.1] * 10, seed=3)], [A, B], SLOS)[0]
    assert (found.goodput_a, found.goodput_b) == (0.0, 2.0)
    assert compare_all([run(A, [0.1]), run(B, [0.1], stopped="interrupted")], [A, B], SLOS) == []


def test_every_server_is_compared_with_the_last() -> None:
    runs = [run(name, [0.1] * 10, rate) for name in "abc" for rate in (4.0, 2.0)]
    found = [(one.a, one.b, one.rate) for one in compare_all(runs, ["a", "b", "c"], SLOS[:1])]
    assert found == [("a", "c", 2.0), ("a", "c", 4.0), ("b", "c", 2.0), ("b", "c", 4.0)]


def test_what_is_held_needs_the_whole_interval() -> None:
    runs = [run(A, [0.1] * 100, 2.0), run(A, [0.1] * 95 + [1.0] * 5, 4.0), run(A, [1.0] * 100, 8.0)]
    found = [(one.slo, one.rate) for one in capacities(runs, [A], SLOS, 0.9)]
    assert found == [(0, 2.0), (1, 8.0)]  # 95 of 100 may well be 89 %
    assert capacity_lines(capacities(runs, [A, B], SLOS, 0.9), TEXTS, 0.9) == [
        f"held with 90% inside ttft_p90=500ms, at 95 % confidence: {A} up to 2 requests/s; {B} none of the rates",
        f"held with 90% inside ttft_p90=2s, at 95 % confidence: {A} up to 8 requests/s; {B} none of the rates",
    ]


def test_stages_are_those_of_servers_that_tell_them() -> None:
    found = stages([run(A, [0.05] * 4, timing=TIMING), run(B, [0.05] * 4)], [A, B])
    assert [(one.server, one.stage) for one in found] == [(A, stage) for stage in (*STAGES, OUTSIDE)]
    assert [round(one.mean_s, 6) for one in found] == [0.01, 0.02, 0.0, 0.0, 0.03, 0.03]


SENTENCES = {
    "pays": ([compared()], "Disaggregation pays here: prefill=2,decode=2 serves 1.26 times (1.18 to 1.35) the goodput "
             "of mixed=4 at 4 requests/s."),
    "pays not": ([compared(ratio=0.5, low=0.4, high=0.8, verdict="b")], "Disaggregation does not pay here: mixed=4 "
                 "serves 2.00 times (1.25 to 2.50) the goodput of prefill=2,decode=2 at 4 requests/s."),
    "same": ([compared(rate=rate, ratio=1.0, low=0.98, high=1.02, verdict="open") for rate in (2.0, 4.0, 8.0)],
             "Disaggregation does not pay here: both serve the same to within 5% at 2, 4 and 8 requests/s."),
    "surely the same": ([compared(ratio=1.02, low=1.01, high=1.03)], "Disaggregation does not pay here: both serve "
                        "the same to within 5% at 4 requests/s."),
    "open": ([compared(ratio=1.1, low=0.9, high=1.3, verdict="open")], "Whether disaggregation pays cannot be told "
             "here: at 4 requests/s it may be chance: 1.10 (0.90 to 1.30) times the goodput of mixed=4."),
    "depends": ([compared(rate=2.0, ratio=0.5, low=0.4, high=0.8, verdict="b"), compared(), compared(rate=8.0)],
                "Whether disaggregation pays depends on the rate: prefill=2,decode=2 serves 1.26 times (1.18 to 1.35) "
                "the goodput of mixed=4 at 4 requests/s, 1.26 times (1.18 to 1.35) at 8 requests/s; mixed=4 serves "
                "2.00 times (1.25 to 2.50) the goodput of prefill=2,decode=2 at 2 requests/s."),
    "without an upper end": (
        [compared(high=None)],
        "Disaggregation pays here: prefill=2,decode=2 serves 1.26 times (at least 1.18) the goodput of mixed=4 at 4 "
        "requests/s.",
    ),
    "only one": ([compared(goodput_b=0.0, ratio=None, low=None, high=None)], "Disaggregation pays here: only "
                 "prefill=2,decode=2 answers requests inside at 4 requests/s."),
    "only the other": ([compared(goodput_a=0.0, ratio=0.0, low=0.0, high=0.0, verdict="b")], "Disaggregation does not "
                       "pay here: only mixed=4 answers requests inside at 4 requests/s."),
    "neither": ([compared(goodput_a=0.0, goodput_b=0.0, ratio=1.0, low=1.0, high=1.0, verdict="open")],
                "Disaggregation does not pay here: neither answers any request inside at 4 requests/s."),
    "nothing": ([], "nothing can be said about prefill=2,decode=2 and mixed=4: no load was measured on both."),
}  # fmt: skip


@pytest.mark.parametrize(("found", "said"), SENTENCES.values(), ids=SENTENCES.keys())
def test_conclusions(found: list[Compared], said: str) -> None:
    assert conclusion(found, A, B, [one.rate for one in found]) == said


def test_rates_without_a_valid_run_are_named() -> None:
    same = compared(rate=2.0, ratio=1.0, low=0.98, high=1.02, verdict="open")
    assert conclusion([same], A, B, [2.0, 4.0, 8.0]) == (
        "Whether disaggregation pays cannot be told here: both serve the same to within 5% at 2 requests/s; at 4 and 8 "
        "requests/s nothing valid was measured on both."
    )
    assert conclusion([compared()], A, B, [4.0, 8.0]).startswith("Disaggregation pays here: ")


def test_servers_that_are_no_topologies_are_not_asked_about_disaggregation() -> None:
    url = "http://127.0.0.1:8000"
    said = conclusion([compared(a=url, b=f"{url} (2)")], url, f"{url} (2)", [4.0])
    assert said == f"{url} serves 1.26 times (1.18 to 1.35) the goodput of {url} (2) at 4 requests/s."


def test_emulation_is_said_in_every_sentence() -> None:
    found = conclusions([compared()], [A, B], TEXTS, [4.0], {A: "0.3b, measured", B: "0.3b, measured"})
    assert found[0].startswith("ttft_p90=500ms: Disaggregation pays here: ")
    assert all(said.endswith(" EMULATED (0.3b, measured).") for said in found)
    assert conclusions([], [A, B], TEXTS[:1], [], {A: "x", B: "y"})[0].endswith(f" EMULATED ({A}: x; {B}: y).")


def test_tables() -> None:
    found = stages([run(A, [0.05] * 4, 4.0, timing=TIMING), run(B, [0.05] * 4, 4.0)], [A, B])
    nothing = compared(rate=8.0, goodput_b=0.0, fraction_b=0.0, ratio=None, low=None, high=None)
    titled = tables([compared(), nothing], found, [A, B], TEXTS)
    assert [title for title, _ in titled] == [
        "ttft_p90=500ms: A is prefill=2,decode=2, B is mixed=4",
        "where the time went, ms: mean, p50, p99",
    ]
    assert titled[0][1][1:] == [
        ["4", "3.90", "3.10", "1.26 (1.18 to 1.35)", "97.0%", "77.0%", "A"],
        ["8", "3.90", "0.00", "only A", "97.0%", "0.0%", "A"],
    ]
    assert titled[1][1][:3] == [
        ["requests/s", "stage", A],
        ["4", "queue", "10.00, 10.00, 10.00"],
        ["4", "prefill", "20.00, 20.00, 20.00"],
    ]
    terminal = Console(file=io.StringIO(), width=120)
    terminal.print(render(titled[0][1]))
    assert "1.26 (1.18 to 1.35)" in terminal.file.getvalue()  # type: ignore[attr-defined]
    text = page("a and b", ["A sentence."], ["a note"], titled, "loadtest compare")
    assert text.startswith(
        "# a and b\n\nA sentence.\n\nNote: a note\n\nMade by `loadtest compare`\n\n## ttft_p90=500ms"
    )
    assert "| 8 | 3.90 | 0.00 | only A | 97.0% | 0.0% | A |\n" in text
