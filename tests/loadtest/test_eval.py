"""`loadtest eval` against a stub: what it asks, counts, saves, goes on from, and one line for every mistake."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.accuracy.problems import read_problems
from loadtest.cli import main
from tests.loadtest.stub import Body, Step, Wait, plain, serving

ROOT = Path(__file__).parents[2]
PROBLEMS = [
    ("half", "\\frac{1}{2}", 1),
    ("same", "7", 1),
    ("pair", "(1, 2)", 2),
    ("words", "3", 2),
    ("cut", "4", 5),
    ("none", "5", 5),
]
ANSWERS = {
    "half": "so \\boxed{0.5}",
    "same": "\\boxed{6} no, \\boxed{ 7 }",
    "pair": "\\boxed{(2, 1)}",
    "words": "\\boxed{???}",
    "cut": "<think> 4",
    "none": "it is 5",
}


def write(path: Path, problems: Sequence[tuple[str, str, int]] = PROBLEMS) -> Path:
    lines = [
        {"problem": f"[{name}] {{x}}", "solution": "", "answer": answer, "subject": "Algebra", "level": level}
        | {"unique_id": f"test/{name}.json"}
        for name, answer, level in problems
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def named(body: Body) -> str:
    content: str = body["messages"][0]["content"]
    return content[1 : content.index("]")]


def completion(text: str | None, finish: str = "stop") -> list[Step]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return plain(200, {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})


def solve(number: int, body: Body) -> Sequence[Step]:
    name = named(body)
    return completion(ANSWERS[name], "length" if name == "cut" else "stop")


def failing_from(first: int) -> Callable[[int, Body], Sequence[Step]]:
    return lambda number, body: solve(number, body) if number < first else plain(500, {"error": {"message": "boom"}})


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


def run(url: str, *flags: str) -> int:
    return main(["eval", url, "--quiet", "--data", "problems.jsonl", "--output", "out.jsonl", *flags])


def saved() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(Path("out.json").read_text())
    return values


def test_answers_are_asked_compared_counted_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("problems.jsonl"))
    with serving(solve) as (url, stub):
        assert run(url, "--max-tokens", "9", "--api-key", "secret", "--label", "bfloat16") == 0
    bodies = {named(body): body for body in stub.bodies}
    assert bodies["half"] == {
        "model": "stub",
        "messages": [
            {
                "role": "user",
                "content": "[half] {x}\nPlease reason step by step, and put your final answer within \\boxed{}.",
            }
        ],
        "temperature": 0.6,
        "top_p": 0.95,
        "max_tokens": 9,
        "seed": 42,
    }
    values = saved()
    assert values["counts"] == {
        "answers": 6,
        "cut": 1,
        "right": 2,
        "wrong": 1,
        "unboxed": 2,
        "unparsed": 1,
        "undecided": 0,
    }
    assert [(row["subset"], row["num"], row["score"]) for row in values["rows"]] == [
        ("Level 1", 2, 1.0),
        ("Level 2", 2, 0.0),
        ("Level 5", 2, 0.0),
        ("OVERALL", 6, pytest.approx(1 / 3)),
    ]
    grades = {answer["unique_id"]: answer["grade"] for answer in values["answers"]}
    assert (grades["test/half.json"], grades["test/words.json"]) == ("right", "unparsed")
    assert values["settings"]["digest"]
    shown, page = capsys.readouterr().out, Path("out.md").read_text()
    for text in (shown, page):
        assert "| stub  | problems | Pass@1 | OVERALL |   6 | 0.3333 | -       |" in text
        assert "- bfloat16: 0.3333." in text
        assert "1 that the comparator cannot read" in text
        assert "1 cut at max_tokens" in text
    assert all("secret" not in Path(name).read_text() for name in ("out.json", "out.md", "out.jsonl"))


def test_the_data_sets_folder_and_the_demo_problems_work_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    Path("MATH-500").mkdir()
    write(Path("MATH-500/test.jsonl"))
    Path("MATH-500/README.md").write_text("# MATH-500")
    with serving(lambda number, body: completion("\\boxed{7}")) as (url, _):
        assert main(["eval", url, "--quiet", "--data", "MATH-500", "--limit", "2", "--output", "a.jsonl"]) == 0
        assert "| stub  | MATH-500 | Pass@1 | OVERALL |   2 |   0.5 |" in capsys.readouterr().out
        assert main(["eval", url, "--quiet", "--output", "b.jsonl", "--limit", "20"]) == 0
    assert "| stub  | demo    | Pass@1 | OVERALL |  20 |" in capsys.readouterr().out
    assert len(read_problems(None, None)[1]) == 500


def test_a_run_goes_on_where_a_failure_stopped_it(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("problems.jsonl"))
    with serving(failing_from(4)) as (url, stub):
        assert run(url, "--batch", "1") == 1
        shown = capsys.readouterr()
        assert shown.err.count("\n") == 1
        assert shown.err.startswith("loadtest eval: test/cut.json: HTTP 500: boom; 4 of 6 answers are in out.jsonl")
        assert not Path("out.json").exists()
        with Path("out.jsonl").open("a") as file:
            file.write('{"repeat": 0, "torn')
        stub.script = solve
        assert run(url, "--batch", "2") == 0
        assert [named(body) for body in stub.bodies[5:]] == ["cut", "none"]
        assert saved()["counts"]["answers"] == 6
        assert run(url) == 0
        assert len(stub.bodies) == 7


def test_repeats_have_their_own_seeds_and_may_be_added() -> None:
    write(Path("problems.jsonl"), PROBLEMS[:2])

    def lucky(number: int, body: Body) -> Sequence[Step]:
        return completion("\\boxed{7}" if body["seed"] == 7 else "\\boxed{1/2}")

    with serving(lucky) as (url, stub):
        assert run(url, "--seed", "6") == 0
        assert run(url, "--seed", "6", "--repeats", "2") == 0
        assert sorted(body["seed"] for body in stub.bodies) == [6, 6, 7, 7]
    overall = saved()["rows"][-1]
    assert (overall["repeats"], overall["score"], overall["interval"]) == ([0.5, 0.5], 0.5, "bootstrap")


def test_other_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("problems.jsonl"), PROBLEMS[:2])
    with serving(solve) as (url, stub):
        assert run(url) == 0
        capsys.readouterr()
        assert run(url, "--temperature", "0") == 2
        assert "was made with other settings: temperature 0.6, not 0.0; allowed" in capsys.readouterr().err
        write(Path("problems.jsonl"), [("half", "0.25", 1), ("same", "7", 1)])
        assert run(url) == 2
        assert "other settings: digest " in capsys.readouterr().err
        Path("out.jsonl").write_text("hello\n")
        assert run(url) == 2
        assert "out.jsonl:1: JSON is malformed" in capsys.readouterr().err
        assert len(stub.bodies) == 2


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (plain(404, {"error": {"message": "no such model"}}), "HTTP 404: no such model"),
        (plain(200, b"{"), "malformed answer: {"),
        (plain(200, {"choices": []}), "the answer has no choices"),
        ([Wait(30)], "no answer in time (ReadTimeout)"),
    ],
)
def test_a_broken_server_is_one_line(steps: Sequence[Step], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("problems.jsonl"))
    with serving(lambda number, body: solve(number, body) if number < 1 else steps) as (url, _):
        assert run(url, "--timeout", "300ms", "--batch", "1") == 1
    shown = capsys.readouterr().err
    assert (reason in shown, "1 of 6 answers" in shown, shown.count("\n")) == (True, True, 1)


def test_a_failure_waits_only_so_long_for_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("problems.jsonl"))
    monkeypatch.setattr("loadtest.accuracy.asking.DRAIN_S", 0.1)
    scripts = {"half": [Wait(30)], "same": completion("\\boxed{7}"), "pair": plain(503, {"error": "busy"})}
    with serving(lambda number, body: scripts[named(body)]) as (url, _):
        assert run(url, "--batch", "3") == 1
    assert "test/pair.json: HTTP 503: busy; 1 of 6 answers" in capsys.readouterr().err


@pytest.mark.parametrize(("is_terminal", "said"), [(True, "of 6 answered"), (False, "of 6 compared")])
def test_progress_is_shown(is_terminal: bool, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("problems.jsonl"))
    monkeypatch.setattr("loadtest.accuracy.evaluation.LINE_S", 0.01)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=is_terminal, width=100)
    monkeypatch.setattr("loadtest.eval.Console", lambda **options: console)
    with serving(solve) as (url, _):
        assert main(["eval", url, "--data", "problems.jsonl", "--output", "out.jsonl"]) == 0
    assert said in shown.getvalue()


MISTAKES = {
    "dead server": (["http://127.0.0.1:9"], "http://127.0.0.1:9: no server answers there"),
    "wrong model": (["URL", "--model", "gpt"], "--model 'gpt': allowed: what the server serves: stub"),
    "no file": (["URL", "--data", "none"], "none: No such file or directory"),
    "empty": (["URL", "--data", "empty.jsonl"], "empty.jsonl: the data set is empty"),
    "folder": (["URL", "--data", "folder"], "--data 'folder': allowed: a folder with one .jsonl file; it holds none"),
    "bad line": (["URL", "--data", "bad.jsonl"], "bad.jsonl:3: Object missing required field `answer`"),
    "twice": (["URL", "--data", "twice.jsonl"], "twice.jsonl:2: unique_id 'a' is that of twice.jsonl:1"),
    "batch": (["URL", "--batch", "0"], "--batch: '0': allowed: a whole number from 1"),
    "output": (["URL", "--output", "x.json"], "--output 'x.json': allowed: a file that ends in .jsonl"),
    "nowhere": (["URL", "--output", "no/x.jsonl"], "--output 'no/x.jsonl': allowed: a file in a folder that exists"),
}


@pytest.mark.parametrize(("argv", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    good = '{"problem": "p", "answer": "a", "level": 1, "unique_id": "a"}\n'
    Path("bad.jsonl").write_text(good + "\n" + '{"problem": "p", "level": 1}\n')
    Path("twice.jsonl").write_text(good * 2)
    Path("empty.jsonl").write_text("\n")
    Path("folder").mkdir()
    before = sorted(Path().iterdir())
    with serving(solve) as (url, _):
        assert main(["eval", *(url if word == "URL" else word for word in argv)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("loadtest eval: ")
    assert message in shown.err
    assert (shown.err.count("\n"), shown.out) == (1, "")
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("missing", ["math_verify", "runtime"])
def test_what_is_not_installed_is_said(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("comparison", "problems"):
        monkeypatch.setattr(
            f"loadtest.accuracy.{module}.find_spec", lambda name: None if name == missing else find_spec(name)
        )
    with serving(solve) as (url, _):
        assert main(["eval", url]) == 2
    wanted = {"math_verify": "pip install math-verify", "runtime": "--data is needed"}
    assert wanted[missing] in capsys.readouterr().err


def test_ctrl_c_saves_what_was_answered(tmp_path: Path) -> None:
    write(Path("problems.jsonl"))

    def script(number: int, body: Body) -> Sequence[Step]:
        if number == 3:
            os.kill(process.pid, signal.SIGINT)
            return [Wait(30)]
        return solve(number, body)

    with serving(script) as (url, _):
        flags = ["--data", "problems.jsonl", "--output", "out.jsonl", "--batch", "1"]
        command = [sys.executable, "-m", "loadtest", "eval", url, *flags]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert shown.startswith("loadtest eval: interrupted; 3 of 6 answers are in out.jsonl")
    assert len(Path("out.jsonl").read_text().splitlines()) == 4
