"""The nightly suite: what counts as worse, and the command against a stub and servers that do not start."""

import json
import re
import sys
from pathlib import Path

import msgspec
import pytest

from loadtest import suite_server
from loadtest.errors import UsageError
from loadtest.suite import main
from loadtest.suite_results import (
    SHOWN,
    Case,
    Machine,
    Suite,
    is_worse,
    medians,
    newest,
    read,
    regressions,
    table,
    widest_spread,
)
from tests.loadtest.stub import Body, Step, answer, plain, serving

HERE = Machine("a processor", 2, "Linux")
FAST = {"tokens/s": 100.0, "TTFT p50": 10.0, "TTFT p99": 20.0, "TPOT p50": 2.0, "TPOT p99": 3.0, "ITL p99": 4.0}


def case(model: str = "demo", **changes: object) -> Case:
    fields: dict[str, object] = {"model": model, "topology": "mixed=1", "load": "steady", "asked": ("--rate", "8")}
    fields |= {"repeats": (FAST, FAST, FAST), "medians": FAST}
    return Case(**(fields | changes))  # type: ignore[arg-type]


def suite(*cases: Case, date: str = "2026-11-26T01:00:00+00:00", machine: Machine = HERE) -> Suite:
    return Suite(date=date, commit="abc", machine=machine, versions={}, environment={}, cases=cases)


def test_more_tokens_and_less_time_are_better() -> None:
    assert is_worse("tokens/s", 100.0, 84.0, 0.15)
    assert not is_worse("tokens/s", 100.0, 86.0, 0.15)
    assert not is_worse("tokens/s", 100.0, 200.0, 0.15)
    assert is_worse("TTFT p99", 100.0, 116.0, 0.15)
    assert not is_worse("TTFT p99", 100.0, 114.0, 0.15)
    assert not is_worse("TTFT p99", 100.0, 10.0, 0.15)
    assert is_worse("TTFT p99", 100.0, None, 0.15)
    assert not is_worse("TTFT p99", None, 100.0, 0.15)


def test_medians_are_of_what_was_measured() -> None:
    repeats = [{"tokens/s": value, "TTFT p50": None} for value in (3.0, 1.0, 8.0)]
    assert medians(repeats) == dict.fromkeys(SHOWN) | {"tokens/s": 3.0}
    spread = widest_spread(suite(case(repeats=tuple(repeats), medians=medians(repeats))))
    assert spread == ["tokens/s 233%"]


def test_what_became_worse_is_marked() -> None:
    slow = case(medians=FAST | {"TTFT p99": 30.0, "tokens/s": 95.0})
    before, after = suite(case(), case("0.3b")), suite(slow, case("0.3b", asked=("--rate", "9"), medians=FAST))
    assert regressions(before, after, 0.15) == ["demo mixed=1 steady: TTFT p99 20 -> 30 (+50.0%)"]
    assert regressions(before, after, 0.6) == []
    head, demo, other = table(before, after, 0.15)
    assert demo[head.index("TTFT p99, ms")] == "30 (+50.0%) WORSE"
    assert demo[head.index("tokens/s")] == "95 (-5.0%)"
    assert other[1:] == ["100", "10", "20", "2", "3", "4"]  # asked for something else: nothing to compare with
    assert table(None, after, 0.15)[1][1] == "95"


def test_a_case_that_was_mostly_not_measured_is_not_compared() -> None:
    slow = case(repeats=(FAST,), medians=FAST | {"TTFT p99": 30.0}, invalid=("late", "late"))
    assert regressions(suite(case()), suite(slow), 0.15) == []
    assert regressions(suite(slow), suite(case(medians=FAST | {"TTFT p99": 90.0})), 0.15) == []
    assert "WORSE" not in "".join(table(suite(case()), suite(slow), 0.15)[1])
    twice = case(repeats=(FAST, FAST), medians=FAST | {"TTFT p99": 30.0}, invalid=("late",))
    assert len(regressions(suite(case()), suite(twice), 0.15)) == 1


def test_the_newest_of_this_machine_and_model_is_found(tmp_path: Path) -> None:
    files = {
        "a": suite(case(), date="2026-11-20T01:00:00+00:00"),
        "b": suite(case(), date="2026-11-21T01:00:00+00:00"),
        "c": suite(case(), date="2026-11-22T01:00:00+00:00", machine=Machine("another", 2, "Linux")),
        "d": suite(case("0.3b"), date="2026-11-23T01:00:00+00:00"),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_bytes(msgspec.json.encode(content))
    assert newest(tmp_path, HERE, ["demo"]) == tmp_path / "b.json"
    assert newest(tmp_path, HERE, ["demo", "0.3b"]) == tmp_path / "d.json"
    assert newest(tmp_path, Machine("none", 1, ""), ["demo"]) is None
    assert read(tmp_path / "b.json") == files["b"]


def quick(number: int, body: Body) -> list[Step]:
    return answer(body, 0.001, [0.001] * (body["max_tokens"] - 1))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*flags: str) -> tuple[int, str]:
        code = main(["--quick", "--url", url, "--folder", str(tmp_path / "new"), *flags])
        return code, capsys.readouterr().out

    with serving(quick) as (url, _):
        code, out = run()
        assert (code, "Nothing to compare with" in out) == (0, True)
        (first,) = (tmp_path / "new").glob("*.json")
        assert re.fullmatch(r"\d{8}T\d{6}-[0-9a-z-]+\.json", first.name)
        saved = read(first)
        assert [(one.load, len(one.repeats)) for one in saved.cases] == [("steady", 1), ("full", 1)]
        assert all(value is not None for one in saved.cases for value in one.medians.values())
        halved = [
            msgspec.structs.replace(one, medians={name: (value or 0) / 1e6 for name, value in one.medians.items()})
            for one in saved.cases
        ]
        worse = tmp_path / "worse.json"
        worse.write_bytes(msgspec.json.encode(msgspec.structs.replace(saved, cases=tuple(halved))))
        code, out = run("--against", str(worse))
        assert code == 1
        assert f"WORSE: {url} given steady: TTFT p50" in out
        assert "WORSE: " + url + " given steady: tokens/s" not in out
        assert main(["--quick", "--url", url, "--folder", str(worse / "no")]) == 2
        assert "--folder" in capsys.readouterr().err


def test_requests_that_fail_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(number: int, body: Body) -> list[Step]:
        return plain(500, {"error": "boom"}) if number > 8 else quick(number, body)

    with serving(broken) as (url, _):
        assert main(["--quick", "--url", url, "--folder", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"FAILED: {url} given full: seed 0: " in out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--models", "9b"], "--models '9b': allowed: demo, 0.3b"),
        (["--url", "http://127.0.0.1:1"], "--url: allowed: with --quick"),
        (["--against", "none.json"], "none.json: No such file"),
        (["--tolerance", "x"], "allowed: a fraction"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--folder", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert told.count("\n") == 1


def test_a_foreign_file_among_the_results_is_told_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"format": "loadtest-run/1"}))
    assert main(["--folder", str(tmp_path)]) == 2
    assert "x.json" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="ended with code 2: .*--topology"),
        suite_server.started(["--topology", "none=1"], tmp_path / "log"),
    ):
        raise AssertionError("unreachable")
    with pytest.raises(UsageError, match="no model folder of shape 9b: .*allowed"):
        suite_server.make_checkpoint("9b", tmp_path / "9b")


def test_a_model_folder_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    suite_server.make_checkpoint("0.3b", tmp_path)
