"""The `loadtest` command against a server on a port: what it writes, saves and returns, and one line for every mistake.

Nothing here depends on how fast the machine is: lateness of the client is allowed without limit, except where it is
what is tested.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtest.cli import main
from tests.loadtest.stub import Body, Raw, Step, Wait, answer, event, head, plain, serving, text_chunk

QUIET = ["--quiet", "--max-lag", "60s", "--input-tokens", "8", "--output-tokens", "4"]
ROOT = Path(__file__).parents[2]


def prompt_answer(number: int, body: Body) -> Sequence[Step]:
    return answer(body, 0.02, [0.01] * (body["max_tokens"] - 1))


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(prompt_answer) as (address, _):
        yield address


def saved(path: str = "out.json") -> dict[str, Any]:
    values: dict[str, Any] = json.loads(Path(path).read_text())
    return values


def test_a_run_is_shown_saved_and_judged(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", url, *QUIET, "--rate", "50", "--requests", "10", "--warmup", "2", "--api-key", "secret"]
    assert main([*argv, "--slo", "ttft_p99=60s,request_rate>=0.001", "--out", "out.json"]) == 0
    shown = capsys.readouterr()
    assert "10 complete, 0 failed" in shown.out
    assert "SLO met    ttft_p99=60s" in shown.out
    assert shown.err == ""
    values = saved()
    assert (values["completed"], values["total_input_tokens"], values["total_output_tokens"]) == (10, 80, 40)
    assert [len(values[name]) for name in ("ttfts", "itls", "requests", "warmup_requests")] == [10, 10, 10, 2]
    assert [len(itls) for itls in values["itls"]] == [3] * 10
    assert values["server"] == {"url": url, "version": "1.2.3", "engine": None, "model": "stub", "api": "completions"}
    assert [verdict["met"] for verdict in values["slo"]] == [True, True, True]
    assert "secret" not in Path("out.json").read_text()
    assert values["environment"]["command"].startswith(f"loadtest run {url} --quiet")
    assert (values["invalid"], values["stopped"], values["warnings"]) == (None, None, [])


def test_a_missed_objective_is_exit_code_1(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", url, *QUIET, "--requests", "4", "--slo", "goodput>=100000"]) == 1
    assert "SLO MISSED goodput>=100000" in capsys.readouterr().out
    assert len(list(Path().glob("loadtest-*.json"))) == 1


def test_a_late_client_is_exit_code_3(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*QUIET, "--max-lag", "0s", "--rate", "20", "--requests", "4", "--out", "out.json"]
    assert main(["run", url, *flags]) == 3
    assert "INVALID: the client was the bottleneck" in capsys.readouterr().out
    assert saved()["invalid"].startswith("the client was the bottleneck")


def test_files_and_chats(url: str) -> None:
    Path("chats.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}\n' * 3)
    assert main(["run", url, *QUIET, "--data", "jsonl:chats.jsonl", "--warmup", "0", "--out", "out.json"]) == 0
    assert (saved()["completed"], saved()["server"]["api"]) == (3, "chat")
    lines = [{"timestamp": 10 * index, "input_length": 9, "output_length": 2} for index in range(5)]
    Path("trace.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    flags = ["--data", "mooncake:trace.jsonl", "--arrivals", "trace", "--warmup", "0", "--speed", "2"]
    assert main(["run", url, *QUIET, *flags, "--out", "out.json"]) == 0
    assert saved()["start_times"] == pytest.approx([0.0, 0.005, 0.01, 0.015, 0.02])


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (plain(500, {"error": {"message": "boom"}}), "HTTP 500: boom"),
        ([head(), event(b"{")], "malformed chunk: {"),
        ([head(), text_chunk(), Wait(30)], "stalled: nothing came for 0.2 s in mid-stream"),
        ([Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")], "the answer is no stream but ''"),
    ],
)
def test_a_broken_server_is_told_saved_and_exit_code_1(
    steps: Sequence[Step], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda number, body: prompt_answer(number, body) if number < 3 else steps) as (address, _):
        flags = [*QUIET, "--requests", "4", "--warmup", "1", "--concurrency", "2", "--stall-timeout", "200ms"]
        assert main(["run", address, *flags, "--out", "out.json"]) == 1
    assert f"failed 2x: {reason}" in capsys.readouterr().out
    assert (saved()["completed"], saved()["failed"], saved()["errors_by_reason"]) == (2, 2, {reason: 2})


def test_nothing_is_measured_when_every_warm_up_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda number, body: plain(500, {"error": "down"})) as (address, stub):
        assert main(["run", address, *QUIET, "--out", "out.json"]) == 1
        assert len(stub.bodies) == 4
    assert "STOPPED EARLY: every warm-up request failed: HTTP 500: down" in capsys.readouterr().out
    assert len(saved()["warmup_requests"]) == 4


MISTAKES = {
    "no url": ([], "the following arguments are required: URL"),
    "bad url": (["nowhere"], "'nowhere': allowed: a server's address"),
    "dead server": (["http://127.0.0.1:9"], "http://127.0.0.1:9: no server answers there"),
    "wrong model": (["URL", "--model", "gpt"], "--model 'gpt': allowed: what the server serves: stub"),
    "flag": (["URL", "--requets", "3"], "unknown flag --requets"),
    "count": (["URL", "--requests", "0"], "--requests: '0': allowed: a whole number from 1"),
    "duration": (["URL", "--duration", "5"], "--duration: '5': allowed: a duration with its unit"),
    "rate": (["URL", "--rate", "x"], "--rate: 'x': allowed: a number above 0"),
    "two loops": (["URL", "--rate", "1", "--concurrency", "2"], "--rate and --concurrency: allowed: one of them"),
    "gamma": (["URL", "--rate", "1", "--arrivals", "gamma"], "--arrivals gamma: needs --burstiness"),
    "burstiness": (["URL", "--rate", "1", "--burstiness", "2"], "--burstiness: allowed: with --arrivals gamma"),
    "closed constant": (["URL", "--arrivals", "constant"], "--arrivals constant: needs --rate or --ramp"),
    "endless": (["URL", "--rate", "inf", "--duration", "1s"], "--rate inf sends everything at once"),
    "ramp": (["URL", "--ramp", "5"], "--ramp: '5': allowed: two rates, such as 1:10"),
    "ids": (["URL", "--token-ids", "9:3"], "--token-ids: '9:3': allowed: the lowest and the highest id"),
    "trace": (["URL", "--arrivals", "trace"], "--arrivals trace: the data set has no timestamps"),
    "slo": (["URL", "--slo", "ttft=1s"], "--slo: 'ttft': allowed: ttft_pNN"),
    "data": (["URL", "--data", "csv:x"], "--data 'csv:x': allowed: random, prefix, jsonl:FILE"),
    "no file": (["URL", "--data", "jsonl:none"], "none: No such file or directory"),
    "api": (["URL", "--api", "chat"], "--api chat: this data set's prompts are token ids"),
    "body": (["URL", "--extra-body", "[1]"], "--extra-body: '[1]': allowed: a JSON object"),
    "out": (["URL", "--out", "no/folder.json"], "--out 'no/folder.json': allowed: a file in a folder that exists"),
}


@pytest.mark.parametrize(("argv", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(argv: list[str], message: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *(url if word == "URL" else word for word in argv)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("loadtest run: ")
    assert message in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert list(Path().iterdir()) == []


def test_an_empty_data_set(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.jsonl").write_text("\n")
    assert main(["run", url, "--data", "jsonl:empty.jsonl"]) == 2
    assert capsys.readouterr().err == "loadtest run: empty.jsonl: the data set is empty\n"


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert main(["walk"]) == 2
    shown = capsys.readouterr()
    assert "run URL" in shown.out
    assert shown.err.startswith("loadtest walk: unknown command 'walk'; allowed: run")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--help"])
    assert stopped.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "exit codes: 0 done" in told
    assert "1% of the median TTFT, and at least 5 ms" in told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_what_was_measured(number: int, code: int, tmp_path: Path) -> None:
    def script(index: int, body: Body) -> Sequence[Step]:
        if index == 6:  # the others before it are done: their loop is closed and of one request
            os.kill(process.pid, number)
            return [head(), text_chunk(), Wait(30)]
        return prompt_answer(index, body)

    with serving(script) as (address, _):
        flags = [
            *QUIET,
            "--requests",
            "500",
            "--concurrency",
            "1",
            "--warmup",
            "1",
            "--out",
            str(tmp_path / "out.json"),
        ]
        command = [sys.executable, "-m", "loadtest", "run", address, *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "5 complete, 0 failed, 1 interrupted" in shown
    assert "STOPPED EARLY: interrupted" in shown
    assert (saved()["completed"], saved()["stopped"]) == (5, "interrupted")
