"""`loadtest sweep`: the search against a scripted server in virtual time, and the command over a socket."""

import asyncio
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.cli import main
from loadtest.datasets import Dataset
from loadtest.search import Finding, Goal
from loadtest.session import Bench, Session
from loadtest.settings import LoadSettings
from loadtest.slo import parse_slo
from loadtest.sweep import HOPELESS, Sweep, conclusion
from tests.loadtest.loads import target
from tests.loadtest.stub import Body, Step, Stub, answer, plain, serving
from tests.loadtest.virtual import run_virtual


class Queue:
    """A server that takes one request after another, each for `service_s`, and so holds 1 / service_s per second."""

    def __init__(self, service_s: float) -> None:
        self._service_s, self._free_at = service_s, 0.0

    def __call__(self, number: int, body: Body) -> Sequence[Step]:
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + self._service_s
        return answer(body, self._free_at - now, [0.001] * 3)


def search(service_s: float, slo: str, burstiness: float | None, goal: Goal) -> tuple[Finding | None, Sweep, str]:
    arrivals = "poisson" if burstiness is None else "gamma"
    settings = LoadSettings(
        url="", rate=1.0, duration=30.0, arrivals=arrivals, burstiness=burstiness, input_tokens=4, output_tokens=4
    )
    bench = Bench(settings, Dataset("random", settings.shape(), "0"), target(), {})
    sweep, log = Sweep(bench, settings, parse_slo(slo), goal), Console(file=io.StringIO(), width=200)
    finding = run_virtual(sweep.run(Session(None), log), Stub(Queue(service_s)))
    return finding, sweep, log.file.getvalue()  # type: ignore[attr-defined]


def test_even_arrivals_are_held_up_to_the_rate_of_service() -> None:
    finding, sweep, log = search(0.1, "ttft_p99=5s", float("inf"), Goal(precision=0.1))
    assert finding is not None
    assert finding.stable is not None
    assert finding.limit is not None
    assert (finding.ending, finding.stable.trials) == ("found", 2)
    assert 10.0 / 1.1 < finding.stable.rate <= 10.0 < finding.limit * 1.000001
    assert "latency grows" in log  # within 30 s no queue gets to 5 s: only its growth tells
    assert len(log.splitlines()) == len(sweep.attempts)


def test_random_arrivals_are_held_to_a_lower_rate() -> None:
    finding, _, _ = search(0.1, "ttft_p99=500ms", None, Goal(precision=0.1))
    assert finding is not None
    assert finding.stable is not None
    assert 4.0 < finding.stable.rate < 9.0
    said = conclusion(finding, None)
    assert said.startswith(f"highest stable rate {finding.stable.rate:.4g} requests/s: ")
    assert "too much or too close to call" in said


def test_a_hopeless_trial_is_cut_short() -> None:
    finding, sweep, log = search(3.0, "ttft_p99=1s", None, Goal())
    assert finding == Finding("none stable", None, 1 / 64)
    assert {attempt.stopped for attempt in sweep.attempts} == {HOPELESS}
    assert all(attempt.metrics.completed < 20 for attempt in sweep.attempts)
    assert "too much, stopped early" in log
    assert conclusion(finding, None) == "no rate is stable: even 0.0156 requests/s is too much"


def test_conclusions() -> None:
    assert conclusion(None, None) == "STOPPED EARLY: interrupted"
    assert conclusion(None, "the server is gone") == "STOPPED EARLY: the server is gone"
    assert conclusion(Finding("client", None, None), None).startswith("INVALID beyond this: the client")


FLAGS = ["--quiet", "--max-lag", "60s", "--input-tokens", "8", "--output-tokens", "2", "--duration", "1s", "--out", "o"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(lambda number, body: answer(body, 0.01, [0.01])) as (url, _):
        rates = ["--from", "60", "--to", "60"]
        # Whether latency grows is for this machine to say: its noise may cost the rate.
        assert main(["sweep", url, *FLAGS, *rates, "--slo", "e2e_p99=30s"]) in (0, 1)
        values = json.loads(Path("o").read_text())
        assert values["rates"][-1]["inside"] >= 50
        assert values["trials"][0]["completed"] == 60
        assert capsys.readouterr().out.splitlines()[-1] == "saved o"
        for mistake, message in (
            ([], "the following arguments are required: --slo"),
            (["--slo", "goodput>=1"], "--slo: needs a limit of TTFT, TPOT or E2E"),
            (["--slo", "ttft_p99=1s", "--from", "5", "--to", "2"], "--from and --to: allowed"),
            (["--slo", "ttft_p99=1s", "--attainment", "1"], "--attainment and --precision: allowed"),
            (["--slo", "ttft_p99=1s", "--rate", "5"], "unknown flag --rate"),
        ):
            assert main(["sweep", url, *FLAGS, *mistake]) == 2
            assert message in capsys.readouterr().err
    with serving(lambda number, body: plain(500, {"error": "down"})) as (url, _):
        assert main(["sweep", url, *FLAGS, "--slo", "ttft_p99=1s"]) == 1
        assert "STOPPED EARLY: every warm-up request failed: HTTP 500: down" in capsys.readouterr().out
