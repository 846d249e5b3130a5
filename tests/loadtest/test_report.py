"""The report: its figures from plain records, and a page that is well formed, complete and needs nothing else."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest import figures
from loadtest.charts import Axis, Series, plot
from loadtest.cli import main
from loadtest.search import Judged
from tests.loadtest.stub import Body, Step, answer, plain, serving
from tests.loadtest.test_slo import record

QUIET = ["--quiet", "--max-lag", "60s", "--input-tokens", "8", "--output-tokens", "4", "--warmup", "1"]


def test_ticks_are_round_and_inside() -> None:
    assert Axis([0.0, 97.0], 0, 100).ticks() == [0, 20, 40, 60, 80]
    assert Axis([3.0, 4000.0], 0, 100, is_log=True).ticks() == [10, 100, 1000]
    assert Axis([20.0, 90.0], 0, 100, is_log=True).ticks() == [20, 40, 60, 80]
    assert Axis([9.9, 101.0], 0, 100, is_log=True).ticks() == [10, 20, 50, 100]
    axis = Axis([1.0, 100.0], 10, 110, is_log=True)
    assert [axis.place(value) for value in (0.0, 1.0, 10.0, 100.0)] == [10, 10, pytest.approx(60), 110]
    assert Axis([], 0, 1).ticks()
    assert Axis([5.0, 5.0], 0, 1, is_log=True).place(5.0) == 0


def test_series_of_records() -> None:
    runs = [("a", [record(0.1 * index, 0.02, index=index, scheduled_s=1.0) for index in range(1, 5)])]
    ttft = figures.distribution(runs, lambda one: [one.ttft_s or 0.0])[0]
    assert [round(at, 6) for at, _ in ttft.points] == [100, 200, 300, 400, 400]
    assert [share for _, share in ttft.points] == [0.25, 0.5, 0.75, 1.0, 1.0]
    flight = figures.in_flight_over_time(runs)[0].points
    assert max(count for _, count in flight) == 4
    assert flight[-1][1] == 0
    tokens = figures.tokens_over_time(runs)[0].points
    assert sum(rate for _, rate in tokens) * (tokens[1][0] - tokens[0][0]) == pytest.approx(20)
    bars, num_rows = figures.request_bars([*runs[0][1], record(0.5, 0.1, outcome="failed")])
    assert (num_rows, [bar.style for bar in bars[-4:]]) == (5, ["lag", "wait", "stream", "failed"])
    p50, p99 = figures.itl_over_time(runs)
    assert {round(value, 3) for _, value in (*p50.points, *p99.points)} == {20.0}
    rates = [Judged(1.0, 1, 50, 50, 0.93, 1.0, "stable"), Judged(2.0, 1, 10, 50, 0.1, 0.3, "too much")]
    assert [one.name for one in figures.attainment_by_rate([("s", rates)], 0.9)] == ["s", "s", "s", "target 90%"]


def test_plots_of_nothing_are_plots() -> None:
    ElementTree.fromstring(plot([Series(name="none", points=[])], "x", "y"))


def script(number: int, body: Body) -> list[Step]:
    return (
        plain(500, {"error": "<b>boom</b>"}) if number == 3 else answer(body, 0.01, [0.01] * (body["max_tokens"] - 1))
    )


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(script) as (url, _):
        main(["run", url, *QUIET, "--requests", "6", "--out", "one.json"])
        main(["run", url, *QUIET, "--requests", "6", "--rate", "50", "--slo", "goodput>=1000", "--out", "two.json"])
        sweep = ["--from", "100", "--to", "100", "--duration", "1s", "--slo", "e2e_p99=30s", "--out", "sweep.json"]
        main(["sweep", url, *QUIET, *sweep])
    capsys.readouterr()
    assert main(["report", "one.json", "two.json", "sweep.json", "--out", "all.html"]) == 0
    assert "| requests/s |" in capsys.readouterr().out
    text = Path("all.html").read_text()
    plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(plots) == 2 + 4 + 2 + 2  # latency, over time, a timeline for each run, the sweep
    assert all(len(ElementTree.fromstring(one)) > 5 for one in plots)
    assert not re.search(r"<script|<link|src=|url\(|@import", text)
    assert not re.search(r"href=|xmlns=|https?:", re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL))
    assert "two: SLO MISSED goodput&gt;=1000" in text
    assert 'name="viewport"' in text
    assert "<b>" not in text


def test_bad_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.json"
    for content, message in (("{", "truncated"), ('{"format": "x"}', "Invalid value 'x'"), ("{}", "missing required")):
        bad.write_text(content)
        assert main(["report", str(bad), "--out", str(tmp_path / "out.html")]) == 2
        assert message in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.json"), "--out", str(tmp_path / "out.html")]) == 2
    assert "No such file" in capsys.readouterr().err
    bad.write_text(json.dumps({"format": "loadtest-run/1"}))
    assert main(["report", str(bad), "--out", str(tmp_path / "no" / "out.html")]) == 2
    assert "--out" in capsys.readouterr().err
