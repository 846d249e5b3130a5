"""Stage times: asked for, read from the stream's last chunk, kept in the record, and summed up."""

from pathlib import Path
from typing import Any

import pytest

from loadtest.cli import main
from loadtest.driver import Plan
from loadtest.record import Record
from loadtest.stages import OUTSIDE, stage_rows
from loadtest.timing import STAGES, Timing
from tests.loadtest.loads import requests, send, target
from tests.loadtest.stub import DONE, END, Body, Step, Wait, event, head, serving, text_chunk

STAGES_S = {"queue_s": 0.01, "prefill_s": 0.1, "transfer_s": 0.02, "handoff_s": 0.03, "decode_s": 0.2, "total_s": 0.36}


def told(**changes: Any) -> Body:
    workers = {"prefill_worker": "prefill.0", "decode_worker": "decode.1"}
    return {"index": 0, "attempts": 2} | STAGES_S | workers | changes


def timed_answer(body: Body, timing: Any) -> list[Step]:
    """Two tokens in 0.4 s, and the stages in the last chunk, which has the usage if that was asked for."""
    steps: list[Step] = [Wait(0.2), head(), text_chunk(), Wait(0.2), text_chunk(finish="length")]
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 2} if "stream_options" in body else None
    return [*steps, event({"choices": [], "usage": usage, "runtime_timing": timing}), DONE, END]


def ask(content: Any, **options: Any) -> tuple[Record, str]:
    def script(number: int, body: Body) -> list[Step]:
        return timed_answer(body, content)

    records, stub = send(script, requests(1, 2), Plan(arrivals_s=(1.0,)), target(**options))
    return records[0], stub.heads[0]


@pytest.mark.parametrize("usage", ["final", "none"])
def test_stages_are_kept_and_change_nothing_else(usage: str) -> None:
    record, sent = ask({"choices": [told()]}, usage=usage, timing=True)
    assert "x-runtime-timing: 1" in sent
    expected = Timing(**STAGES_S, attempts=2, prefill_worker="prefill.0", decode_worker="decode.1")
    assert (record.outcome, record.timing, record.chunk_tokens) == ("ok", expected, (1, 1))
    assert (record.ttft_s, record.e2e_s) == (pytest.approx(0.2), pytest.approx(0.4))


def test_they_are_only_asked_for_on_demand() -> None:
    _, sent = ask({"choices": [told()]})
    assert "x-runtime-timing" not in sent


@pytest.mark.parametrize(
    ("timing", "reason"),
    [
        ({"choices": []}, "malformed runtime_timing: no choices"),
        ({"choices": [told(queue_s="x")]}, "malformed runtime_timing: Expected `float`, got `str`"),
        ({"choices": [{"total_s": 1.0}]}, "malformed runtime_timing: Object missing required field"),
        (5, "malformed runtime_timing: Expected `object`"),
    ],
)
def test_malformed_stages_fail_the_request(timing: Any, reason: str) -> None:
    record, _ = ask(timing, timing=True)
    assert record.outcome == "failed"
    assert (record.error or "").startswith(reason)


def test_rows_are_of_the_complete_and_timed() -> None:
    record, _ = ask({"choices": [told()]}, timing=True)
    untimed, _ = ask(None)
    failed, _ = ask({"choices": []}, timing=True)
    rows = {row.stage: row for row in stage_rows([record, untimed, failed])}
    assert list(rows) == [*STAGES, OUTSIDE]
    assert rows["prefill"].mean_s == rows["prefill"].p99_s == 0.1
    assert sum(row.mean_s for row in rows.values()) == pytest.approx(record.e2e_s)
    assert stage_rows([untimed, failed]) == []


def test_a_run_shows_stages_and_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--quiet", "--max-lag", "60s", "--requests", "2", "--warmup", "1", "--output-tokens", "2", "--timing"]
    with serving(lambda number, body: timed_answer(body, {"choices": [told()]}), "emulated: toy, measured") as (url, _):
        assert main(["run", url, *flags]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("EMULATED: device steps only last as long as a table says: toy, measured\n")
    assert ["handoff", "30.00", "30.00", "30.00"] in [line.split() for line in shown.splitlines()]
    with serving(lambda number, body: timed_answer(body, None), "jax") as (url, _):
        assert main(["run", url, *flags]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("engine: jax\n")
    assert "note: the server tells no stage times: --timing is for this project's" in shown
