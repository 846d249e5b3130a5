"""Stage times on the report's page: spans that add up, how busy workers were, and what is drawn of runs with them."""

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from loadtest import stage_figures as stages
from loadtest.bars import Stack, stacks
from loadtest.cli import main
from loadtest.record import Record
from loadtest.timing import Timing
from tests.loadtest.saved_files import pairs, run_file, timed_records


def timed(due_s: float, prefill: str = "prefill.0", decode: str | None = "decode.0", **changes: object) -> Record:
    timing = Timing(
        queue_s=0.5,
        prefill_s=1.0,
        transfer_s=0.25,
        handoff_s=0.25,
        decode_s=2.0,
        total_s=4.0,
        prefill_worker=prefill,
        decode_worker=decode,
    )
    fields: dict[str, object] = {"index": 0, "scheduled_s": due_s, "sent_s": due_s + 1, "ended_s": due_s + 5.5}
    fields |= {"outcome": "ok", "chunk_times_s": (due_s + 3, due_s + 5.5), "chunk_tokens": (1, 1), "timing": timing}
    return Record(**(fields | changes))  # type: ignore[arg-type]


def test_parts_follow_each_other_from_due_to_the_end() -> None:
    assert stages.spans_of(timed(10.0)) == [
        ("lag", 10, 11),
        ("queue", 11, 11.5),
        ("prefill", 11.5, 12.5),
        ("transfer", 12.5, 12.75),
        ("handoff", 12.75, 13),
        ("decode", 13, 15),
        ("rest", 15, 15.5),
    ]
    untold = timed(0.0, timing=None, outcome="failed")
    assert stages.spans_of(untold) == [("lag", 0, 1), ("untold", 1, 5.5)]
    assert [bar.style for bar in stages.stage_bars([untold])[0]] == ["lag", "untold", "failed"]


def test_a_server_that_tells_more_than_the_client_saw_is_cut_where_the_request_ended() -> None:
    spans = stages.spans_of(timed(0.0, ended_s=3.25))
    assert [end_s for _, _, end_s in spans] == [1, 1.5, 2.5, 2.75, 3, 3.25, 3.25]


def test_means_are_of_complete_answers_with_times() -> None:
    times = stages.stage_times([timed(0.0), timed(3.0, sent_s=6.0, ended_s=10.0), timed(1.0, timing=None)])
    assert {name: one.mean for name, one in times.items()} == {
        "lag": 2.0,
        "queue": 0.5,
        "prefill": 1.0,
        "transfer": 0.25,
        "handoff": 0.25,
        "decode": 2.0,
        "rest": 0.25,
    }


def test_workers_are_busy_during_their_stages() -> None:
    records = [timed(0.0), timed(0.5, "prefill.10"), timed(20.0, "prefill.2", None), timed(30.0, timing=None)]
    prefill, decode = stages.workers_of(records, "prefill"), stages.workers_of(records, "decode")
    assert [worker.name for worker in prefill] == ["prefill.0", "prefill.2", "prefill.10"]
    assert [(worker.name, worker.spans) for worker in decode] == [("decode.0", ((2.75, 5.0), (3.25, 5.5)))]
    assert decode[0].share(10.0) == pytest.approx(0.275)
    assert decode[0].mean_at_once(10.0) == pytest.approx(0.45)
    assert prefill[0].share(10.0) == prefill[0].mean_at_once(10.0) == pytest.approx(0.1)


def test_occupancy_keeps_the_time_of_requests() -> None:
    workers = [stages.Worker(f"decode.{number}", ((1.0, 3.0), (2.5, 9.9))) for number in range(20)]
    series = stages.occupancy(workers, 12.0)
    assert len(series) == stages.MAX_WORKERS
    assert len({(one.colour, one.is_dashed) for one in series}) == stages.MAX_WORKERS
    points = series[0].points
    assert sum(count for _, count in points) * 12.0 / len(points) == pytest.approx(2.0 + 7.4)
    assert max(count for _, count in points) == pytest.approx(2.0)


def test_stacks_are_drawn_to_scale() -> None:
    drawn = ElementTree.fromstring(stacks([Stack("a", (("queue", 1.0), ("decode", 3.0), ("rest", 0.0)))], "ms"))
    widths = {one.get("class"): float(one.get("width") or 0) for one in drawn.iter("rect")}
    assert set(widths) == {"queue", "decode"}
    assert widths["decode"] == pytest.approx(3 * widths["queue"], abs=0.02)


def test_the_page_of_runs_with_and_without_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    records = timed_records(1, 5.0, 10.0, 10.0, pairs(2, 2))
    plain = [msgspec.structs.replace(record, timing=None) for record in records]
    emulated = run_file(records) | {"server": {"url": "u", "version": "v", "engine": "emulated: <table>"}}
    for name, content in (("told", run_file(records)), ("plain", run_file(plain)), ("emulated", emulated)):
        Path(f"{name}.json").write_bytes(msgspec.json.encode(content))
    assert main(["report", "told.json", "plain.json", "--out", "page.html"]) == 0
    text = Path("page.html").read_text()
    assert len(re.findall("<svg", text)) == 2 + 4 + 2 + 2 + 2  # latency, time, stacks, workers, timelines
    for word in (
        "Where the time goes",
        "Workers: told",
        "decode.1",
        "last attempt",
        'class="untold"',
        "no stage times",
    ):
        assert word in text
    assert "Workers: plain" not in text
    assert text.count("until the first token") == 1
    assert "EMULATED" not in text + capsys.readouterr().out
    assert main(["report", "plain.json", "--out", "plain.html"]) == 0
    assert "Where the time goes" not in Path("plain.html").read_text()
    assert main(["report", "emulated.json", "--out", "emulated.html"]) == 0
    assert "EMULATED: emulated computes nothing" in capsys.readouterr().out
    assert '<p class="banner">EMULATED: emulated computes nothing' in Path("emulated.html").read_text()
