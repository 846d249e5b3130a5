"""The report's page of a comparison, from files as `compare` saves them."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from loadtest import report_compare as shown
from loadtest.charts import Series, plot
from loadtest.cli import main
from loadtest.saved import SavedCompare, read
from loadtest.search import wilson
from tests.loadtest.saved_files import RATES, SLOS, compare_file

EMULATED = "emulated: 0.3b bfloat16, <measured>"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return compare_file(duration_s=15.0, engine_b=EMULATED)


def as_read(content: dict[str, Any], **changes: object) -> SavedCompare:
    return msgspec.json.decode(msgspec.json.encode(content | changes), type=SavedCompare)


def test_goodput_and_fractions_are_of_all_rounds(content: dict[str, Any]) -> None:
    compare = as_read(content)
    mean, runs, *_, line = shown.goodput_by_rate(compare, 0)
    assert (mean.name, len(mean.points), len(runs.points)) == ("prefill=2,decode=2", len(RATES), 3 * len(RATES))
    first = [goodput for rate, goodput in runs.points if rate == RATES[0]]
    assert mean.points[0] == (RATES[0], pytest.approx(sum(first) / 3))
    assert (line.name, line.points) == ("all inside", [(0.0, 0.0), (RATES[-1], RATES[-1])])
    a, b, target = shown.inside_by_rate(compare, 1)
    runs_b = [run for run in compare.runs if run.server == "mixed=4" and run.rate == RATES[1]]
    inside, total = sum(run.inside[1] for run in runs_b), sum(run.total for run in runs_b)
    assert (b.points[1], b.spans[1]) == ((RATES[1], inside / total), wilson(inside, total))
    assert (a.name, b.name, target.name) == ("prefill=2,decode=2", "mixed=4 (emulated)", "target 90%")


def test_the_ratio_has_its_interval_and_a_line_at_one(content: dict[str, Any]) -> None:
    ratio, line = shown.ratio_by_rate(as_read(content), 0)
    given = [one for one in content["comparisons"] if one["slo"] == 0]
    assert ratio.points == [(one["rate"], one["ratio"]) for one in given]
    assert ratio.spans == [(one["low"], one["high"]) for one in given]
    assert [value for _, value in line.points] == [1.0, 1.0]


def test_a_ratio_without_an_end_is_told_as_infinite(content: dict[str, Any]) -> None:
    given = [one for one in content["comparisons"] if one["slo"] == 0]
    changes: list[dict[str, Any]] = [
        {"ratio": 2.0, "low": 1.5, "high": None, "verdict": "a"},
        {"ratio": None, "low": 1.2, "high": None, "verdict": "a", "goodput_b": 0.0},
        {"ratio": None, "low": 0.0, "high": None, "verdict": "open", "goodput_a": 0.0, "goodput_b": 0.0},
    ]
    compare = as_read(content, comparisons=[one | change for one, change in zip(given, changes, strict=False)])
    series = shown.ratio_by_rate(compare, 0)[0]
    assert (series.points, series.spans) == ([(RATES[0], 2.0)], [(1.5, 3.0)])
    assert [row[-2:] for row in shown.slo_table(compare, 0)[1:]] == [
        ["2.00 (1.50 to ∞)", "prefill=2,decode=2"],
        ["∞ (1.20 to ∞)", "prefill=2,decode=2"],
        ["-", "too close to call"],
        ["-", "-"],
    ]


def test_stages_of_other_names_are_listed_and_only_known_ones_drawn(content: dict[str, Any]) -> None:
    extra = [
        {"server": "mixed=4", "rate": RATES[0], "stage": stage, "mean_s": 0.5, "p50_s": 0.5, "p99_s": 0.5}
        for stage in ("network and client", '"<odd>"')
    ]
    sections = "".join(shown.compare_sections("x", as_read(content, stages=content["stages"] + extra)))
    assert 'class="rest"' in sections
    assert "network and client</th>" in sections
    assert "&lt;odd&gt;" in sections
    assert "<odd>" not in sections


def test_error_bars_are_drawn() -> None:
    series = [Series(name="a", points=[(1.0, 2.0)], spans=[(1.0, 4.0)], is_line=False)]
    drawn = ElementTree.fromstring(plot(series, "x", "y", is_framed=True))
    bars = drawn.findall("path")
    assert [one.get("class") for one in bars] == ["errors s0"]
    low, high = re.findall(r",([\d.]+)h8m-4,0V([\d.]+)m", bars[0].get("d") or "")[0]
    middle = float(next(drawn.iter("circle")).get("cy") or 0)
    assert float(high) < middle < float(low)


def test_latency_is_shown_at_the_highest_rate_that_both_hold(content: dict[str, Any]) -> None:
    def capacities(a: float | None, b: float | None) -> list[dict[str, Any]]:
        return [{"slo": 0, "server": "prefill=2,decode=2", "rate": a}, {"slo": 0, "server": "mixed=4", "rate": b}]

    assert shown.chosen_rate(as_read(content, capacity=capacities(8.0, 4.0)), 0) == 4.0
    assert shown.chosen_rate(as_read(content, capacity=capacities(2.0, 4.0)), 0) == 2.0
    assert shown.chosen_rate(as_read(content, capacity=capacities(8.0, None)), 0) == RATES[0]
    assert shown.chosen_rate(as_read(content, capacity=[]), 0) == RATES[0]


def test_an_invalid_run_is_named_and_left_out(content: dict[str, Any]) -> None:
    runs = [
        run | {"invalid": "late <client>"}
        if run["round"] == 0
        else run | {"stopped": "gone"}
        if run["round"] == 1
        else run
        for run in content["runs"]
    ]
    compare = as_read(content, runs=runs)
    assert len(shown.goodput_by_rate(compare, 0)[1].points) == len(RATES)
    sections = "".join(shown.compare_sections("x", compare))
    assert "INVALID, left out: mixed=4 at 2 requests/s, round 0: late &lt;client&gt;" in sections
    assert "STOPPED EARLY, left out: mixed=4 at 2 requests/s, round 1: gone" in sections


def test_the_page(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.json").write_bytes(msgspec.json.encode(content))
    Path("two.json").write_bytes(msgspec.json.encode(compare_file(seed=7, duration_s=15.0) | {"stages": []}))
    assert main(["report", "one.json", "two.json", "--out", "page.html"]) == 0
    text, printed = Path("page.html").read_text(), capsys.readouterr().out
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert all(len(ElementTree.fromstring(one)) > 3 for one in plots)
    # Of each: three per SLO, two per rate of latency; the first told its stages: two stacks.
    rates = [len({shown.chosen_rate(compare, slo) for slo in range(2)}) for compare in map(_read, ("one", "two"))]
    assert len(plots) == 2 * 3 * len(SLOS) + 2 * sum(rates) + 2
    assert not re.search(r"<script|<link|src=|url\(|@import", text)
    assert not re.search(r"href=|xmlns=|https?:", re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL))
    for out in (text, printed):
        assert out.index("EMULATED: mixed=4") < out.index("Under ttft_p90=250ms") < out.index("mixed=4 (emulated)")
        assert out.count("EMULATED") == 1
    assert "No server told its stage times." in text
    assert "<measured>" not in text
    assert "| SLO | prefill=2,decode=2, requests/s | mixed=4 (emulated), requests/s |\n|---|---:|---:|" in printed


def _read(name: str) -> SavedCompare:
    compare = read(Path(f"{name}.json"))
    assert isinstance(compare, SavedCompare)
    return compare
