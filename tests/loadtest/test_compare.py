"""`loadtest compare`: alternation against scripted servers in virtual time, and the command with servers it starts."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadtest.alternation import Alternation
from loadtest.cli import main
from loadtest.comparison import CompareRun
from loadtest.connection import parse_address
from loadtest.session import Bench, Session, open_dataset
from loadtest.settings import LoadSettings
from loadtest.slo import parse_slo
from tests.loadtest.loads import target
from tests.loadtest.stub import Body, Script, Step, Stub, Wait, answer, event, head, plain, serving, text_chunk
from tests.loadtest.virtual import VirtualLoop, run_virtual

ROOT = Path(__file__).parents[2]
SLOS = [parse_slo("ttft_p90=200ms"), parse_slo("e2e_p90=1s")]
SETTINGS = LoadSettings(url="", rate=1.0, requests=10, warmup=2, input_tokens=4, output_tokens=4, seed=7)


def fast(number: int, body: Body) -> Sequence[Step]:
    return answer(body, 0.1, [0.01] * 3)


def slow(number: int, body: Body) -> Sequence[Step]:
    return answer(body, 0.3, [0.01] * 3)


def alternate(
    scripts: dict[str, Script],
    rates: Sequence[float] = (2.0, 4.0),
    rounds: int = 2,
    on_run: Callable[[CompareRun], None] = lambda run: None,
    dead: Callable[[], dict[str, str]] = dict,
) -> tuple[Alternation, dict[str, Stub]]:
    stubs = {name: Stub(script) for name, script in scripts.items()}
    dataset = open_dataset(SETTINGS)
    addresses = {name: parse_address(f"http://stub:{port}") for port, name in enumerate(scripts, 1)}
    benches = {name: Bench(SETTINGS, dataset, target(address=addresses[name], timing=True), {}) for name in scripts}
    made = Alternation(benches, SETTINGS, SLOS, on_run, dead)
    ports = {address.port: stubs[name] for name, address in addresses.items()}
    run_virtual(made.run(Session(None), rates, rounds), ports)
    return made, stubs


def test_servers_get_the_same_requests_in_changing_order() -> None:
    made, stubs = alternate({"a": fast, "b": slow})
    assert [(run.round, run.rate, run.server, run.seed) for run in made.runs] == [
        (0, 2.0, "a", 7), (0, 2.0, "b", 7), (0, 4.0, "b", 7), (0, 4.0, "a", 7),
        (1, 2.0, "b", 8), (1, 2.0, "a", 8), (1, 4.0, "b", 8), (1, 4.0, "a", 8),
    ]  # fmt: skip
    assert [run.inside for run in made.runs if run.server == "a"] == [(10, 10)] * 4
    assert [run.inside for run in made.runs if run.server == "b"] == [(0, 10)] * 4
    measured = {name: [body["prompt"] for body in stub.bodies[3:]] for name, stub in stubs.items()}
    loads = {name: [prompts[at : at + 10] for at in range(0, 44, 11)] for name, prompts in measured.items()}
    assert loads["a"] == loads["b"]
    assert len({tuple(prompt) for load in loads["a"] for prompt in load}) == 40  # no cache is of any use
    due = {(run.server, run.rate, run.round): [one.scheduled_s for one in run.requests] for run in made.runs}
    assert due["a", 4.0, 1] == due["b", 4.0, 1] != due["a", 4.0, 0]
    assert all("x-runtime-timing: 1" in sent for stub in stubs.values() for sent in stub.heads)


def test_a_busy_server_is_waited_for() -> None:
    """After the second load lone requests take a while to be as fast as before."""
    times_s = iter([0.1] * 3 + [0.1] * 10 + [3.0, 2.0, 1.0, 0.1] + [0.1] * 100)

    def busy(number: int, body: Body) -> Sequence[Step]:
        return answer(body, next(times_s), [0.01] * 3)

    made, stubs = alternate({"a": busy, "b": fast}, rates=[2.0])
    assert len(stubs["a"].bodies) == 3 + 2 * 10 + 4 + 1
    assert len(stubs["b"].bodies) == 3 + 2 * 11
    assert [run.inside[0] for run in made.runs] == [10] * 4
    prompts = {name: [body["prompt"] for body in stub.bodies] for name, stub in stubs.items()}
    assert prompts["a"][-11:-1] == prompts["b"][-11:-1]


def test_an_invalid_load_is_repeated_once_with_other_requests() -> None:
    jumps = iter([True, False, False])  # at the 9th request of the first load

    def jumping(number: int, body: Body) -> Sequence[Step]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        if number in (8, 8 + 11) and next(jumps):
            loop.jump(0.9)
        return fast(number, body)

    made, stubs = alternate({"a": jumping, "b": fast}, rates=[2.0], rounds=1)
    assert [(run.server, run.seed, run.invalid is None) for run in made.runs] == [
        ("a", 7, False), ("b", 7, True), ("b", 8, True), ("a", 8, True),
    ]  # fmt: skip
    assert (made.runs[0].invalid or "").startswith("the client was the bottleneck: requests were sent")
    assert stubs["a"].bodies[3]["prompt"] != stubs["a"].bodies[3 + 11]["prompt"]


def test_a_server_that_ends_ends_the_comparison() -> None:
    made, _ = alternate({"a": fast, "b": slow}, dead=lambda: {"a": "a ended with code 4"})
    assert [run.stopped for run in made.runs] == ["a ended with code 4"]
    assert made.failure == "a ended with code 4"


def test_a_server_that_fails_from_the_start() -> None:
    made, stubs = alternate({"a": fast, "b": lambda number, body: plain(500, {"error": "down"})})
    assert (made.runs, made.failure) == ([], "b: every warm-up request failed: HTTP 500: down")
    assert len(stubs["b"].bodies) == 2


LOAD = [
    "--quiet",
    "--max-lag",
    "60s",
    "--input-tokens",
    "8",
    "--output-tokens",
    "2",
    "--requests",
    "6",
    "--warmup",
    "1",
]
RATES = ["--rates", "60", "--rounds", "2", "--slo", "ttft_p90=60s"]
OUT = ["--out", "out.json"]
STARTED = ["--server-command", f"{sys.executable} -m tests.loadtest.fake_server"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(lambda number, body: answer(body, 0.01, [0.001]), "emulated: toy, measured") as (address, _):
        yield address


def saved() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(Path("out.json").read_text())
    return values


def has_ended(log: str) -> bool:
    """The server that wrote this log; it is nobody's child any more."""
    pid = int(re.findall(r"fake server (\d+)", Path(log).read_text())[0])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_running_servers(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    slos = ["--slo", "ttft_p90=60s", "--slo", "ttft_p90=1us", "--markdown", "out.md", "--api-key", "secret"]
    assert main(["compare", url, url, *LOAD, "--rates", "60,30", "--rounds", "2", *slos, *OUT]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "EMULATED: toy, measured" in shown.out
    assert f"A is {url}, B is {url} (2)" in shown.out
    assert "note: no stage times from" in shown.out
    values = saved()
    assert list(values)[:6] == ["format", "date", "environment", "setup", "attainment", "conclusion"]
    assert (values["format"], values["attainment"]) == ("loadtest-compare/1", 0.9)
    assert values["slos"] == [["ttft_p90=60s"], ["ttft_p90=1us"]]
    assert [one["name"] for one in values["servers"]] == [url, f"{url} (2)"]
    assert {one["engine"] for one in values["servers"]} == {"emulated: toy, measured"}
    assert len(values["runs"]) == 8
    assert {(run["rate"], run["total"], *run["inside"]) for run in values["runs"]} == {(30.0, 6, 6, 0), (60.0, 6, 6, 0)}
    assert len(values["runs"][0]["requests"]) == 6
    assert [(one["slo"], one["rate"], one["verdict"]) for one in values["comparisons"]] == [
        (0, 30.0, "open"), (0, 60.0, "open"), (1, 30.0, "open"), (1, 60.0, "open"),
    ]  # fmt: skip
    assert values["conclusion"][0].endswith(
        "both serve the same to within 5% at 30 and 60 requests/s. EMULATED (toy, measured)."
    )
    assert len(values["capacity"]) == 4
    assert (values["stages"], values["setup"]["rates"], values["setup"]["server_command"]) == ([], [30.0, 60.0], None)
    assert "secret" not in Path("out.json").read_text()
    assert Path("out.md").read_text().startswith(f"# {url} and {url} (2)\n\nttft_p90=60s: both serve")


def test_topologies_are_started_and_ended(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prefill=2,decode=2", "mixed=4", *LOAD[1:], *RATES, *OUT, *STARTED]
    assert main(["compare", *argv, "--", "--engine", "emulated: a toy"]) == 0
    shown = capsys.readouterr()
    assert "mixed=4: ready after" in shown.err
    assert "Disaggregation does not pay here: both serve the same" in shown.out
    assert "EMULATED (a toy)" in shown.out
    for name in ("prefill=2,decode=2", "mixed=4"):
        assert f"of {name}\n" in Path(f"out-{name}.log").read_text()
        assert has_ended(f"out-{name}.log")
    assert saved()["setup"]["server_command"][-2:] == ["--engine", "emulated: a toy"]
    ttfts = {name: [one["chunk_times_s"][0] - one["scheduled_s"] for run in saved()["runs"] if run["server"] == name
                    for one in run["requests"]] for name in ("prefill=2,decode=2", "mixed=4")}  # fmt: skip
    assert min(ttfts["mixed=4"]) >= 0.05  # each was sent to the server of its name


def test_a_server_that_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["compare", "prefill=1,decode=1", "mixed=2", *LOAD, *RATES, *OUT, *STARTED]
    assert main([*argv, "--", "--fail", "start"]) == 2
    told = capsys.readouterr().err
    assert "the server of prefill=1,decode=1 ended with code 3; its log out-prefill=1,decode=1.log ends with:" in told
    assert told.endswith("| no such thing as a wafer\n")
    assert not Path("out.json").exists()


def test_a_server_that_never_is_ready_is_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loadtest.servers.GRACE_S", 0.0)
    argv = ["compare", "mixed=1", "mixed=2", *LOAD, *RATES, *OUT, *STARTED, "--start-timeout", "1500ms"]
    assert main([*argv, "--", "--fail", "never"]) == 2
    assert "is not ready after 1.5 s (--start-timeout): nothing answers yet; its log" in capsys.readouterr().err
    assert has_ended("out-mixed=1.log")


def test_a_server_that_ends_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["compare", "mixed=1", "mixed=2", *LOAD, *RATES, *OUT, *STARTED]
    assert main([*argv, "--", "--fail", "later"]) == 1
    shown = capsys.readouterr().out
    assert "STOPPED EARLY: the server of mixed=" in shown
    assert "ended with code 4; its log" in shown
    assert "| out of wafers" in shown
    assert any(run["stopped"] for run in saved()["runs"])
    assert has_ended("out-mixed=1.log")
    assert has_ended("out-mixed=2.log")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_servers_and_keeps_what_was_measured(number: int, code: int) -> None:
    def script(index: int, body: Body) -> Sequence[Step]:
        if index == 1 + 1 + 7 + 3:  # warm-up, lone request, the first load, and into the second
            os.kill(process.pid, number)
            return [head(), text_chunk(), Wait(30)]
        return answer(body, 0.01, [0.001])

    with serving(script) as (address, _):
        argv = ["compare", address, "mixed=2", *LOAD, *RATES, *OUT, *STARTED]
        process = subprocess.Popen([sys.executable, "-m", "loadtest", *argv], stdout=subprocess.PIPE, text=True)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "STOPPED EARLY: interrupted" in shown
    assert [(run["server"], run["stopped"]) for run in saved()["runs"]][:2] == [(address, None), ("mixed=2", None)]
    assert saved()["runs"][-1]["stopped"] == "interrupted"
    assert has_ended("out-mixed=2.log")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_server_starts_ends_it(number: int, code: int) -> None:
    argv = ["compare", "mixed=1", "mixed=2", *LOAD[1:], *RATES, *OUT, *STARTED, "--", "--fail", "never"]
    command = [
        sys.executable,
        "-c",
        "import loadtest.servers as s, loadtest.cli as c, sys; s.GRACE_S = 0.0; sys.exit(c.main())",
    ]
    with subprocess.Popen([*command, *argv], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "mixed=1: starting on" in process.stderr.readline()
        process.send_signal(number)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert not Path("out-mixed=1.log").read_text() or has_ended("out-mixed=1.log")


def test_an_interrupt_inside_of_a_library_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a callback swallows it, whose exceptions Python only prints."""

    def get(client: httpx.Client, url: str) -> httpx.Response:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("httpx.Client.get", get)
    argv = ["compare", "mixed=1", "mixed=2", *LOAD[1:], *RATES, *OUT, *STARTED, "--start-timeout", "3s"]
    assert main([*argv, "--", "--fail", "never"]) == 130
    assert not Path("out-mixed=1.log").read_text() or has_ended("out-mixed=1.log")


def test_a_server_that_answers_nothing_is_exit_code_1(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda number, body: plain(500, {"error": "down"})) as (broken, _):
        assert main(["compare", url, broken, *LOAD[:-2], "--warmup", "0", *RATES, *OUT]) == 1
    assert f"only {url} answers requests inside at 60 requests/s" in capsys.readouterr().out


def test_invalid_runs_are_exit_code_3(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", url, url, *LOAD, "--max-lag", "0s", *RATES, "--rounds", "1", *OUT]) == 3
    assert "note: 4 of 4 runs are invalid and left out" in capsys.readouterr().out
    assert [run["seed"] for run in saved()["runs"]] == [0, 0, 1, 1]
    assert (saved()["comparisons"], {one["rate"] for one in saved()["capacity"]}) == ([], {None})


def test_stage_times_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"queue_s": 0.0, "prefill_s": 0.01, "transfer_s": 0.0, "handoff_s": 0.0, "decode_s": 0.0, "total_s": 0.01}

    def timed(number: int, body: Body) -> Sequence[Step]:
        *steps, done, end = answer(body, 0.01, [0.001])
        return [*steps, event({"choices": [], "runtime_timing": {"choices": [seconds]}}), done, end]

    with serving(timed) as (address, _):
        assert main(["compare", address, address, *LOAD, *RATES, *OUT]) == 0
    shown = capsys.readouterr().out
    assert "where the time went, ms: mean, p50, p99" in shown
    assert "10.00, 10.00, 10.00" in shown
    assert "no stage times" not in shown
    assert [one["stage"] for one in saved()["stages"]][:3] == ["queue", "prefill", "transfer"]
    assert saved()["runs"][0]["requests"][0]["timing"]["prefill_s"] == 0.01


SLO = ["--slo", "ttft_p90=1s"]
MISTAKES = {
    "one server": (["URL", "--rates", "2", *SLO], "servers: allowed: two or more"),
    "no rates": (["URL", "URL", *SLO], "the following arguments are required: --rates"),
    "no slo": (["URL", "URL", "--rates", "2"], "the following arguments are required: --slo"),
    "bad rates": (["URL", "URL", "--rates", "2,x", *SLO], "--rates: 'x': allowed: a number above 0"),
    "endless rate": (["URL", "URL", "--rates", "2,inf", *SLO], "--rates: '2,inf': allowed: different finite rates"),
    "rates twice": (["URL", "URL", "--rates", "2,2", *SLO], "--rates: '2,2': allowed: different finite rates"),
    "rounds": (["URL", "URL", "--rates", "2", *SLO, "--rounds", "0"], "--rounds: '0': allowed: a whole number from 1"),
    "goodput": (["URL", "URL", "--rates", "2", "--slo", "goodput>=2"], "--slo 'goodput>=2': allowed here: limits"),
    "itl": (["URL", "URL", "--rates", "2", *SLO, "--slo", "itl_p90=2s"], "--slo 'itl_p90=2s': allowed here: limits"),
    "attainment": (["URL", "URL", "--rates", "2", *SLO, "--attainment", "1"], "--attainment: allowed: above 0"),
    "dead": (["URL", "http://127.0.0.1:9", "--rates", "2", *SLO], "http://127.0.0.1:9: no server answers there"),
    "scheme": (["URL", "ftp://x", "--rates", "2", *SLO], "'ftp://x': allowed: a server's address"),
    "arguments": (["URL", "URL", "--rates", "2", *SLO, "--", "--x"], "--: arguments for servers that are started"),
    "command": (
        ["mixed=1", "mixed=2", "--rates", "2", *SLO, "--server-command", "no-such"],
        "'no-such': cannot be started",
    ),
    "no command": (
        ["mixed=1", "mixed=2", "--rates", "2", *SLO, "--server-command", " "],
        "--server-command ' ': allowed",
    ),
    "quotes": (["mixed=1", "mixed=2", "--rates", "2", *SLO, "--server-command", "'"], "No closing quotation"),
    "data": (["mixed=1", "mixed=2", "--rates", "2", *SLO, "--data", "csv:x"], "--data 'csv:x': allowed: random"),
    "markdown": (
        ["URL", "URL", "--rates", "2", *SLO, "--markdown", "no/x.md"],
        "--markdown 'no/x.md': allowed: a file",
    ),
    "gamma": (["URL", "URL", "--rates", "2", *SLO, "--arrivals", "gamma"], "--arrivals gamma: needs --burstiness"),
}


@pytest.mark.parametrize(("argv", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(argv: list[str], message: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--quiet", *(url if word == "URL" else word for word in argv)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("loadtest compare: ")
    assert message in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert not list(Path().glob("*.json"))
